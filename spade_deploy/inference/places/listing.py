"""The files and objects that a place names: a folder behind a URL, a pattern, or a list in a text file."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from spade_deploy.errors import NotFoundError, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.inference.jobs import Origin
from spade_deploy.inference.places.origins import Remote
from spade_deploy.inference.places.urls import as_place, filesystem, is_url, read_url, shown, url_error

MAX_LIST_BYTES = 1 << 30
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(place: Path | str) -> bool:
    """Whether a place names several by *, ?, [] or {}; a file that really has such a name is no pattern."""
    if isinstance(place, Path) and place.exists():
        return False
    return re.search(r"[*?\[{]", str(place)) is not None


def expanded(place: Path | str, kind: str) -> list[Path | str]:
    """All files and objects that a place or a pattern names, in order. kind: what they are, for messages.

    {000..003} and {a,b} name each one, which need not exist; *, ?, [] and ** name what is there. Raises NotFoundError
    where nothing is there, PlaceError.
    """
    if not is_pattern(place):
        return [place]
    found: list[Path | str] = []
    for text in _without_braces(str(place)):
        if not re.search(r"[*?\[]", text):
            found.append(as_place(text))
        elif is_url(place):
            fs, path = filesystem(text)
            try:
                names = sorted(fs.glob(path))
            except Exception as error:
                raise _unlisted(error, text) from error
            found += [fs.unstrip_protocol(name) for name in names]
        else:
            found += [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
    if not found:
        raise NotFoundError(
            f"{shown(place)}: there are no {kind} of that pattern",
            hint="check the folder and the end of the names; ** stands for folders at any depth",
        )
    return list(dict.fromkeys(found))


def _without_braces(text: str) -> Iterator[str]:
    parts = _BRACES.split(text)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    for chosen in product(*choices):
        yield "".join(chosen)


def _choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    width = len(match[1])
    return [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]


def list_url(folder: str, *, in_folders: bool = False) -> Iterator[str]:
    """The URLs of all files in a folder behind a URL. Raises NotFoundError, PlaceError.

    in_folders: also those in its folders, and in theirs.
    """
    fs, path = filesystem(folder)
    try:
        entries: list[dict[str, Any]] = (
            list(fs.find(path, detail=True).values()) if in_folders else fs.ls(path, detail=True)
        )
    except Exception as error:
        raise _unlisted(error, folder) from error
    for entry in sorted(entries, key=lambda one: str(one["name"])):
        if entry["type"] == "file":
            yield fs.unstrip_protocol(entry["name"])


def _unlisted(error: Exception, url: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{shown(url)}: there is nothing there", hint="see that bucket and folder are right")
    return url_error(error, url, "read")


def origin_of(place: Path | str) -> Origin:
    """The place of an image that is a file or an object."""
    return Remote(place) if isinstance(place, str) else place


def beside(listing: Path | str, text: str) -> Path | str:
    """What a path or URL in a list or a table names; a relative one begins in the folder of that file."""
    place = as_place(text)
    if isinstance(place, str) or place.is_absolute():
        return place
    if isinstance(listing, str):
        return f"{listing.rpartition('/')[0]}/{text}"
    return listing.parent / place


def lines_of(listing: Path | str) -> list[str]:
    """The lines of a list, without comments. Raises NotFoundError."""
    try:
        content = read_url(listing) if isinstance(listing, str) else read_regular(listing, MAX_LIST_BYTES)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{shown(listing)}: the list cannot be read: {reason_of(error)}") from error
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
