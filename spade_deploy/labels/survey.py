"""Find out which ids a folder of label maps holds, before anybody has said how many classes there are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import read_samples
from spade_deploy.labels.class_file import own_labels
from spade_deploy.labels.colors import grey_values
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
    """How many of them hold ids, in one channel or in three equal ones; the others cannot be read, or have colours."""
    ids: tuple[IdCount, ...]
    """The ids in their order."""

    def suggested(self, *, has_dontcare: bool = False, ignore_id: int | None = None) -> LabelSpec | None:
        """Labels that every id fits; None if no file holds ids, or too high ones.

        255 is taken as unknown, except in masks, where it is the second class, and among ids above it.
        """
        values = {found.value for found in self.ids} - {ignore_id}
        highest = max(values - {UNKNOWN_VALUE}, default=0)
        if not self.ids or highest >= MOST_LABELS:
            return None
        if self.are_masks and not has_dontcare and ignore_id is None:
            return own_labels(2)
        has_unknown = has_dontcare or (UNKNOWN_VALUE in values and highest < UNKNOWN_VALUE)
        return own_labels(highest + 1, has_dontcare=has_unknown, ignore_id=ignore_id)

    @property
    def are_masks(self) -> bool:
        """Whether the files have no other values than 0 and 255."""
        return [found.value for found in self.ids] == [0, UNKNOWN_VALUE]

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
    counts: list[_Counted] = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(_counted, paths), start=1):
            progress.count("counting ids", done, len(paths))
            counts.append(found)
    # Beside maps of colours, a file of greys in three channels is one of colours, too: of black, for instance.
    has_colors = any(one.has_colors for one in counts)
    of_ids = [one.ids for one in counts if one.ids and not (one.has_channels and has_colors)]
    pixels, files = Counter[int](), Counter[int]()
    for ids_of_one in of_ids:
        pixels.update(ids_of_one)
        files.update(ids_of_one.keys())
    total = sum(pixels.values())
    ids = tuple(IdCount(value, pixels[value] / total, files[value]) for value in sorted(pixels))
    return Survey(len(paths), len(of_ids), ids)


@dataclass(frozen=True)
class _Counted:
    """What a file holds."""

    ids: dict[int, int] = field(default_factory=dict)
    """Its ids, each with its number of pixels; empty for a file that holds none."""
    has_channels: bool = False
    """Whether the ids are stored in three equal channels."""
    has_colors: bool = False
    """Whether it is an image of colours."""


def _counted(path: Path) -> _Counted:
    try:
        samples = read_samples(path, "label map")
    except LabelMapError:
        return _Counted()
    if samples.is_lossy:
        return _Counted()
    found = samples.values if samples.colors is None else grey_values(samples.colors)
    if found is None:
        return _Counted(has_colors=True)
    values, counts = np.unique(found, return_counts=True)
    ids = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    return _Counted(ids, has_channels=samples.colors is not None)
