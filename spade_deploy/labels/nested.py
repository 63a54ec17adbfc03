"""Images in folders of a folder: where files are wanted, they are not read, and a message says so. Only names count."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.labels.files import is_image_name

_MOST_FOLDERS = 1000


def has_images(folder: Path) -> bool:
    """Whether a folder itself holds images, links and the like included."""
    try:
        return any(is_image_name(path) and not path.is_dir() for path in folder.iterdir())
    except OSError:  # there is no folder, or it cannot be listed, which is said where it is read
        return False


@dataclass(frozen=True)
class Inside:
    """The images in the folders of a folder."""

    count: int
    """How many were counted."""
    first: Path
    """One of them."""


def images_inside(folder: Path) -> Inside | None:
    """The images in the folders of a folder, hidden ones left out; None if there are none. It looks into 1000 folders.

    They are not read where a folder of files is wanted, and a message says so.
    """
    found: list[Path] = []
    for looked_at, (place, folders, names) in enumerate(os.walk(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(place) != folder:
            found += [Path(place) / name for name in names if is_image_name(Path(name))]
        if looked_at == _MOST_FOLDERS:
            break
    return Inside(len(found), min(found)) if found else None
