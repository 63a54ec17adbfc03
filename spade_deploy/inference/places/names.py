"""How the images of files are named: by the stem of the label map, or by its path below a folder that holds them all.

The name of a sample is its id. The image of the id `berlin/0001` is `berlin/0001.png` in the place of the results.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from spade_deploy.errors import LabelMapError, quoted
from spade_deploy.inference.jobs import Origin
from spade_deploy.spec import Naming

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME_AND_USER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://(?:[^/@]*@)?")


def check_id(name: str, label: Origin) -> None:
    """Raise LabelMapError for an id that cannot be the path of a file inside the folder of results."""
    reason, parts = None, name.split("/")
    if not name:
        reason = "it has no id"
    elif "\\" in name:
        reason = f"its id {quoted(name)} has a backslash in it"
    elif "" in parts:
        reason = f"its id {quoted(name)} has a folder without a name, or begins at the root of the disk"
    elif any(part.startswith(".") for part in parts):
        reason = f"its id {quoted(name)} begins with a dot, or a part of it, which hides it or leads elsewhere"
    elif _CONTROL.search(name):
        reason = f"its id {quoted(name)} has control characters in it"
    if reason is not None:
        raise LabelMapError(f"{label}: {reason}", hint="give it an id that is a name or a path, as 0001 or berlin/0001")


def whole(place: Path | str) -> str:
    """A place's path with slashes; of a URL what comes behind the scheme, without its query."""
    if isinstance(place, Path):
        return place.as_posix()
    return _SCHEME_AND_USER.sub("", place.partition("?")[0]).lstrip("/")


def before_wildcards(pattern: Path | str) -> str:
    """The folder of a pattern in front of its first wildcard."""
    return re.split(r"[*?\[{]", whole(pattern), maxsplit=1)[0].rpartition("/")[0]


def around(listing: Path | str, files: Iterable[str]) -> str:
    """The folder below which the files of a list are named: that of the list, else the deepest that holds them all."""
    own, folders = whole(absolute(listing)).rpartition("/")[0], {file.rpartition("/")[0] for file in files}
    if all(f"{folder}/".startswith(f"{own}/") for folder in folders):
        return own
    try:
        return posixpath.commonpath(folders)
    except ValueError:  # files of this machine and objects
        return ""


def absolute(place: Path | str) -> Path | str:
    """A path that begins at the root and has no `..`; links are not followed. A URL as it is."""
    return Path(os.path.abspath(place)) if isinstance(place, Path) else place  # noqa: PTH100  # `..` goes, too


def below(file: str, folder: str) -> str:
    """The path of a file below a folder; all of it if it lies elsewhere."""
    is_inside = bool(folder) and file.startswith(f"{folder.rstrip('/')}/")
    return (file[len(folder) :] if is_inside else file).lstrip("/")


def pure(path: str) -> str:
    """A path without its suffix."""
    return posixpath.splitext(path)[0]


def stem(path: str) -> str:
    """The last part of a path, without its suffix."""
    return pure(path.rpartition("/")[2])


def chosen(asked: Naming, paths: Iterable[str]) -> Naming:
    """STEM or PATH for paths without suffixes. AUTO is PATH where files in different folders have the same stem.

    Upper and lower case do not count.
    """
    if asked is not Naming.AUTO:
        return asked
    distinct = {path.casefold() for path in paths}
    stems = {path.rpartition("/")[2] for path in distinct}
    return Naming.PATH if len(stems) < len(distinct) else Naming.STEM
