"""Label maps that are files or objects of their own: a folder behind a URL, a glob, or a list in a text file."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from spade_deploy.errors import LabelMapError, NotFoundError, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.inference.jobs import Origin
from spade_deploy.inference.places.found import Finder, Found, by_name
from spade_deploy.inference.places.origins import Remote
from spade_deploy.inference.places.urls import as_place, filesystem, is_url, read_url, shown, url_error
from spade_deploy.labels.files import is_image_name, what_else

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
        raise NotFoundError(f"{shown(place)}: there are no {kind} of that pattern", hint="put the pattern into quotes")
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


def find_by_pattern(labels: Path | str, instances: Path | str | None) -> Found:
    """The images that a glob names; the id of each is its stem."""
    finder = Finder()
    listed = expanded(labels, "files")
    by_name(_images(listed, finder), finder, instance_finder(instances))
    return _some(finder, labels)


def find_in_folder(labels: str, instances: Path | str | None) -> Found:
    """The images in a folder behind a URL, or a single one."""
    finder = Finder()
    if is_image_name(Path(PurePosixPath(labels.partition("?")[0]).name)):
        entries: list[Path | str] = [labels]
    else:
        entries = list(list_url(labels))
    by_name(_images(entries, finder), finder, instance_finder(instances))
    return _some(finder, labels)


def find_in_list(labels: Path | str, instances: Path | str | None) -> Found:
    """The label maps that a text file lists: a path or URL a line, and after a tab that of the instance map.

    Relative paths begin in the folder of the list. Empty lines, and those that begin with #, are comments.
    """
    finder, instance_of = Finder(), instance_finder(instances)
    for line in _lines(labels):
        label, _, instance = (part.strip() for part in line.partition("\t"))
        origin = _origin(beside(labels, label))
        stem = PurePosixPath(label.partition("?")[0] if "://" in label else label).stem
        try:
            finder.add(stem, origin, _origin(beside(labels, instance)) if instance else instance_of(stem))
        except LabelMapError as error:
            finder.refuse(origin, error.message.removeprefix(f"{origin}: "), error.hint)
    return _some(finder, labels)


def instance_finder(instances: Path | str | None) -> Callable[[str], Origin | None]:
    """A function that gives the instance map of a stem, from a folder, a glob or a URL; without any, it gives None.

    It raises LabelMapError where there is none of that stem, or more than one.
    """
    if instances is None:
        return lambda stem: None
    if is_pattern(instances):
        listed = expanded(instances, "instance maps")
    else:
        listed = list(list_url(instances)) if isinstance(instances, str) else sorted(instances.iterdir())
    known: dict[str, list[Path | str]] = {}
    for place in listed:
        name = PurePosixPath(str(place))
        if is_image_name(Path(name.name)):
            known.setdefault(name.stem, []).append(place)

    def find(stem: str) -> Origin | None:
        found = known.get(stem, [])
        if len(found) != 1:
            count = "no instance map" if not found else f"{len(found)} instance maps"
            raise LabelMapError(f"there is {count} for it in {shown(instances)}")
        return _origin(found[0])

    return find


def list_url(folder: str) -> Iterator[str]:
    """The URLs of everything that lies directly in a folder behind a URL. Raises NotFoundError, PlaceError."""
    fs, path = filesystem(folder)
    try:
        entries: list[dict[str, Any]] = fs.ls(path, detail=True)
    except Exception as error:
        raise _unlisted(error, folder) from error
    for entry in sorted(entries, key=lambda one: str(one["name"])):
        if entry["type"] == "file":
            yield fs.unstrip_protocol(entry["name"])


def _unlisted(error: Exception, url: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{shown(url)}: there is nothing there", hint="see that bucket and folder are right")
    return url_error(error, url, "read")


def _images(places: list[Path | str], finder: Finder) -> Iterator[tuple[str, Origin]]:
    for place in places:
        path = str(place).partition("?")[0] if isinstance(place, str) else str(place)
        if not is_image_name(Path(PurePosixPath(path).name)):
            continue
        other = what_else(place) if isinstance(place, Path) else None
        if other is None:
            yield path, _origin(place)
        elif isinstance(place, Path) and not place.is_dir():
            finder.refuse(place, f"is {other}, not a file")


def _origin(place: Path | str) -> Origin:
    return Remote(place) if isinstance(place, str) else place


def beside(listing: Path | str, text: str) -> Path | str:
    """What a path or URL in a list or a table names; a relative one begins in the folder of that file."""
    place = as_place(text)
    if isinstance(place, str) or place.is_absolute():
        return place
    if isinstance(listing, str):
        return f"{listing.rpartition('/')[0]}/{text}"
    return listing.parent / place


def _lines(listing: Path | str) -> list[str]:
    try:
        content = read_url(listing) if isinstance(listing, str) else read_regular(listing, MAX_LIST_BYTES)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{shown(listing)}: the list cannot be read: {reason_of(error)}") from error
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _some(finder: Finder, labels: Path | str) -> Found:
    found = finder.found()
    if not (found.items or found.failures):
        raise NotFoundError(f"{shown(labels)} names no label maps (.png files and the like)")
    return found
