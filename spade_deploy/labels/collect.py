"""Collect the files of one kind in a folder, by the key that pairs them, and report each file that cannot be used.

Only names are looked at here; no file is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import DatasetError
from spade_deploy.labels.files import FOLDER, is_image_name, what_else
from spade_deploy.labels.kinds import Kind

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})


@dataclass(frozen=True)
class Problem:
    """A file that is in no sample."""

    path: Path
    """The file."""
    code: str
    """One of missing-label, missing-photo, missing-instance, duplicate-stem, not-a-file, photo (a photo that lies
    beside label maps), or nested (a folder whose folders hold images)."""
    message: str
    """What is wrong, in a sentence."""
    is_beside: bool = False
    """Whether the file is a photo or an instance map, not a label map."""


@dataclass(frozen=True)
class Collected:
    """The files of a kind."""

    files: dict[str, Path]
    """The files that can be used, by their keys."""
    problems: list[Problem]
    """A problem for each file that cannot be used."""
    unclear: dict[str, str]
    """The keys that have no usable file, each with the reason, which a problem states as well."""


def collect(kind: Kind) -> Collected:
    """Collect the files of a kind. If several files share a key, each of them is a problem: any could be meant."""
    if not kind.folder.is_dir():
        return Collected({}, [], {})
    try:
        entries = sorted(kind.folder.rglob("*") if kind.recursive else kind.folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{kind.folder}: the folder cannot be listed ({error.strerror})") from error
    by_key: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    unclear: dict[str, str] = {}
    for path in entries:
        if not is_image_name(path) or (key := kind.key(path)) is None:
            continue
        other = what_else(path)
        if other is None:
            by_key.setdefault(key, []).append(path)
        elif other != FOLDER:
            problems.append(Problem(path, "not-a-file", f"is {other}, not a file: left out"))
            unclear[key] = f"{path} is {other}"
    if kind.is_labels:
        problems += _photos_beside(by_key)
    for key, paths in by_key.items():
        if len(paths) > 1:
            unclear[key] = f"{key} occurs {len(paths)} times: " + ", ".join(map(str, paths))
            problems += [Problem(path, "duplicate-stem", unclear[key]) for path in paths]
    files = {key: paths[0] for key, paths in by_key.items() if len(paths) == 1}
    return Collected(files, problems, {key: why for key, why in unclear.items() if key not in files})


def _photos_beside(by_key: dict[str, list[Path]]) -> list[Problem]:
    """Take JPEGs out of `by_key` that lie beside another file of their key: photos, since no label map is a JPEG."""
    problems = []
    for key, paths in by_key.items():
        others = [path for path in paths if path.suffix.lower() not in JPEG_SUFFIXES]
        if others and len(others) < len(paths):
            by_key[key] = others
            message = f"a photo (JPEG) beside the label map {others[0].name}: left out"
            problems += [Problem(path, "photo", message) for path in paths if path not in others]
    return problems
