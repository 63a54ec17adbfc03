"""Kinds of files of a data set: where the label maps, photos or instance maps lie, and by what each is paired.

Only names are looked at here; no file is opened.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import DatasetError

CITYSCAPES_LABELS = "_gtFine_labelIds.png"
CITYSCAPES_TRAIN_IDS = "_gtFine_labelTrainIds.png"
CITYSCAPES_INSTANCES = "_gtFine_instanceIds.png"
CITYSCAPES_PHOTOS = "_leftImg8bit.png"
"""The endings of the names of Cityscapes' official files."""


@dataclass(frozen=True)
class Kind:
    """One kind of file of a layout."""

    folder: Path
    """The folder that they lie in."""
    key: Callable[[Path], str | None]
    """The key that a file is paired by; None for a file of another kind."""
    expected: str
    """What the files' names look like, for messages."""
    recursive: bool = False
    """Whether folders inside are searched, too."""
    is_labels: bool = False
    """Whether these are label maps, among which JPEGs are photos."""


@dataclass(frozen=True)
class Layout:
    """Where the files of a split lie."""

    labels: Kind
    """The label maps."""
    photos: Kind | None
    """The photos; None if the data set has none."""
    instances: Kind | None
    """The instance maps; None if the data set has none."""


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file or folder; links and other spellings included."""
    try:
        return first == second or first.samefile(second)
    except OSError:
        return False


def stem_of(path: Path) -> str:
    """The stem of a file's name, which files that belong together share.

    macOS writes 'ü' as two characters and other systems as one; both are the same stem.
    """
    return unicodedata.normalize("NFC", path.stem)


def by_stem(folder: Path, *, is_labels: bool = False) -> Kind:
    """All images of a folder, each by its stem."""
    return Kind(folder, stem_of, "*", is_labels=is_labels)


def by_place(folder: Path, *, is_labels: bool = False) -> Kind:
    """All images of the folders in a folder, each by its path below it without the suffix: 'berlin/0001'."""

    def key(path: Path) -> str | None:
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts):
            return None
        return "/".join((*(unicodedata.normalize("NFC", part) for part in below.parts[:-1]), stem_of(below)))

    return Kind(folder, key, "**/*", recursive=True, is_labels=is_labels)


def has_cityscapes_names(folder: Path, *, recursive: bool = False) -> bool:
    """Whether a folder holds label maps with Cityscapes' official names."""
    if not folder.is_dir():
        return False
    try:
        found = folder.rglob(f"*{CITYSCAPES_LABELS}") if recursive else folder.glob(f"*{CITYSCAPES_LABELS}")
        return next(iter(found), None) is not None
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed ({error.strerror})") from error


def train_ids_in(folder: Path) -> Path | None:
    """The first file of Cityscapes' train ids, which are no label ids, in a folder or its subfolders; else None."""
    return next(iter(sorted(folder.rglob(f"*{CITYSCAPES_TRAIN_IDS}"))), None) if folder.is_dir() else None


def cityscapes_kind(folder: Path, ending: str, *, is_labels: bool = False) -> Kind:
    """Files whose names have this ending, in a folder and its subfolders, by the first three parts of their names."""

    def key(path: Path) -> str | None:
        return cityscapes_key(path) if path.name.endswith(ending) else None

    return Kind(folder, key, f"**/*{ending}", recursive=True, is_labels=is_labels)


def cityscapes_key(path: Path) -> str:
    """City, sequence and frame: what the files of one sample share."""
    return "_".join(path.name.split("_")[:3])
