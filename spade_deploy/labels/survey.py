"""Find out which ids a folder of label maps holds, before anybody has said how many classes there are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import read_samples
from spade_deploy.labels.class_file import own_labels
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

MOST_LABELS = 4096


@dataclass(frozen=True)
class IdCount:
    """How often an id occurs."""

    value: int
    """The id, as it stands in the files."""
    share: float
    """Its share of all pixels, 0 to 1."""
    files: int
    """How many files have it."""


@dataclass(frozen=True)
class Survey:
    """What a folder of label maps holds."""

    files: int
    """How many files there are."""
    read: int
    """How many of them hold ids; the others are colour images, or cannot be read."""
    ids: tuple[IdCount, ...]
    """The ids in their order."""

    def suggested(self, *, has_dontcare: bool = False, ignore_id: int | None = None) -> LabelSpec | None:
        """Labels that every id fits; None if no file holds ids, or too high ones. 255 is taken as unknown."""
        values = {found.value for found in self.ids} - {ignore_id}
        has_unknown = has_dontcare or (UNKNOWN_VALUE in values and ignore_id != UNKNOWN_VALUE)
        highest = max(values - {UNKNOWN_VALUE}, default=0)
        if not self.ids or highest >= MOST_LABELS:
            return None
        return own_labels(highest + 1, has_dontcare=has_unknown, ignore_id=ignore_id)

    @property
    def void_or_class(self) -> tuple[int, int] | None:
        """The highest id below 255, and how many classes there are if it means pixels of no class; else None.

        Data sets often give the pixels of no class the id after that of their last class.
        """
        below = [found.value for found in self.ids if found.value != UNKNOWN_VALUE]
        return (below[-1], below[-2] + 1) if len(below) > 1 else None

    @property
    def missing(self) -> tuple[int, ...]:
        """The ids up to the highest one that no file has."""
        below = {found.value for found in self.ids if found.value != UNKNOWN_VALUE}
        return tuple(value for value in range(max(below, default=0)) if value not in below)


def survey(paths: Sequence[Path], *, progress: Progress = SILENT, workers: int | None = None) -> Survey:
    """Count the ids of all files. What is wrong with files that hold none, `lint_folder` says."""
    pixels, files, read = Counter[int](), Counter[int](), 0
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(_counted, paths), start=1):
            progress.count("counting ids", done, len(paths))
            if found is not None:
                read += 1
                pixels.update(found)
                files.update(found.keys())
    total = sum(pixels.values())
    ids = tuple(IdCount(value, pixels[value] / total, files[value]) for value in sorted(pixels))
    return Survey(len(paths), read, ids)


def _counted(path: Path) -> dict[int, int] | None:
    """The ids of a file, each with its number of pixels; None for a file that holds no ids."""
    try:
        samples = read_samples(path, "label map")
    except LabelMapError:
        return None
    if samples.values is None or samples.is_lossy:
        return None
    values, counts = np.unique(samples.values, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
