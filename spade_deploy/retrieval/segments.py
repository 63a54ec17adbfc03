"""The segments of a label map, each with what it is compared by: its shape, and the classes in it and around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.labels.regions import number_regions

GRID = 16
"""Shapes and surroundings are compared at GRID x GRID points."""
OUTSIDE = -1
"""The class of a point outside the image."""
LEAST_SHARE = 1 / 1024
"""Smaller segments than this share of the image are left out: 16 pixels of 128 x 128."""
MOST_SEGMENTS = 256
"""Of a map of more segments the largest are taken, so that a map of noise takes no longer than others."""


@dataclass(frozen=True)
class Segments:
    """The segments of one label map, the largest first; of equal ones the upper left first."""

    label: NDArray[np.int32]
    """The class of each segment, S."""
    area: NDArray[np.int64]
    """How many pixels each has, S."""
    box: NDArray[np.int64]
    """Its bounding box, S x 4: top, left, height, width."""
    region: NDArray[np.int64]
    """The number of each segment in `regions`, S."""
    regions: NDArray[np.int64]
    """The number of each pixel's region, H x W."""
    mask: NDArray[np.bool_]
    """Whether each point of the bounding box is of the segment, S x GRID x GRID."""
    context: NDArray[np.int16]
    """The class at each point of the box widened by a quarter on each side, S x GRID x GRID; or OUTSIDE."""

    def __len__(self) -> int:
        return len(self.label)

    def inside(self, index: int) -> NDArray[np.bool_]:
        """Which pixels of its box are of a segment."""
        top, left, height, width = self.box[index]
        found: NDArray[np.bool_] = self.regions[top : top + height, left : left + width] == self.region[index]
        return found


def find_segments(label: NDArray[Any], unknown_id: int | None = None) -> Segments:
    """The connected regions of one class of a label map, H x W ids.

    unknown_id: the id of unknown pixels, which are of no segment.
    """
    regions = number_regions(label[None])[0]
    flat, ids = regions.reshape(-1), label.reshape(-1)
    area = np.bincount(flat)
    class_of = np.empty(len(area), np.int32)
    class_of[flat] = ids
    large = np.flatnonzero(area >= max(1.0, LEAST_SHARE * label.size))
    if unknown_id is not None:
        large = large[class_of[large] != unknown_id]
    chosen = large[np.argsort(-area[large], kind="stable")][:MOST_SEGMENTS]
    box = _boxes(regions, len(area))[chosen]
    height, width = label.shape
    rows, columns = _points(box[:, 0], box[:, 2]), _points(box[:, 1], box[:, 3])
    mask = regions[rows[:, :, None], columns[:, None, :]] == chosen[:, None, None]
    beside = np.maximum(1, box[:, 2:] // 4)
    rows = _points(box[:, 0] - beside[:, 0], box[:, 2] + 2 * beside[:, 0])
    columns = _points(box[:, 1] - beside[:, 1], box[:, 3] + 2 * beside[:, 1])
    around = label[np.clip(rows, 0, height - 1)[:, :, None], np.clip(columns, 0, width - 1)[:, None, :]]
    is_inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    context = np.where(is_inside, around.astype(np.int16), np.int16(OUTSIDE))
    return Segments(class_of[chosen], area[chosen], box, chosen, regions, mask, context)


def _boxes(regions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Top, left, height and width of each region, count x 4."""
    flat = regions.reshape(-1)
    ends = []
    for places in np.indices(regions.shape):
        low, high = np.full(count, places.max()), np.zeros(count, np.int64)
        np.minimum.at(low, flat, places.reshape(-1))
        np.maximum.at(high, flat, places.reshape(-1))
        ends.append((low, high - low + 1))
    (top, height), (left, width) = ends
    return np.stack([top, left, height, width], axis=1)


def _points(first: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixels at the centres of GRID equal parts of each range, S x GRID; in integers, so that none is rounded."""
    points: NDArray[np.int64] = first[:, None] + ((2 * np.arange(GRID) + 1) * size[:, None]) // (2 * GRID)
    return points
