"""Make a memory bank of the segments of photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.segments import GRID, find_segments
from spade_deploy.spec import LabelSpec

PATCH_SIDE = 128
"""The longest side of a patch in pixels; a larger one is scaled down. It bounds a bank: 2048 segments take at most 135
MB, and those of photos of 128 x 128 a tenth of it."""


@dataclass(frozen=True)
class _Segment:
    """A segment of a photo that may become one of the bank."""

    photo: int
    """The number of its photo."""
    mask: NDArray[np.bool_]
    """Its shape, GRID x GRID."""
    context: NDArray[np.int16]
    """The classes in and around it, GRID x GRID."""
    colors: NDArray[np.uint8]
    """Its bounding box, h x w x 3."""
    inside: NDArray[np.bool_]
    """Which pixels of the box are its own, h x w."""


class BankBuilder:
    """Collects the segments of photos, and makes a bank of the most useful ones."""

    def __init__(self, labels: LabelSpec) -> None:
        self._labels = labels
        self._found: list[list[_Segment]] = [[] for _ in range(labels.num_ids)]
        self._shares = np.zeros(labels.num_ids)

    def add(self, number: int, label: NDArray[Any], photo: NDArray[np.uint8]) -> None:
        """Add the segments of a photo. number: its own; label: H x W ids; photo: H x W x 3 RGB."""
        found = find_segments(label, self._labels.unknown_id)
        for index in range(len(found)):
            top, left, height, width = found.box[index].tolist()
            colors = photo[top : top + height, left : left + width]
            patch = _bounded(colors, found.inside(index))
            own = int(found.label[index])
            self._found[own].append(_Segment(number, found.mask[index], found.context[index], *patch))
            self._shares[own] += found.area[index] / label.size

    def bank(self, most: int) -> MemoryBank:
        """A bank of at most `most` segments.

        Each class gets the same number of them, as far as it has so many; what one class leaves over, others get. The
        segments of a class are those of evenly spaced photos.
        """
        counts = [len(entries) for entries in self._found]
        chosen: list[_Segment] = []
        label: list[int] = []
        for own, count in enumerate(fair_shares(counts, most)):
            entries = self._found[own]
            chosen += [entries[index * len(entries) // count] for index in range(count)]
            label += [own] * count
        means = self._shares / np.maximum(counts, 1)
        depth = np.empty(len(means), np.int32)
        depth[np.argsort(-means, kind="stable")] = np.arange(len(means))
        grid = (len(chosen), GRID, GRID)
        return MemoryBank(
            label=np.array(label, np.int32),
            photo=np.array([one.photo for one in chosen], np.int32),
            mask=np.array([one.mask for one in chosen], np.bool_).reshape(grid),
            context=np.array([one.context for one in chosen], np.int16).reshape(grid),
            size=np.array([one.inside.shape for one in chosen], np.int32).reshape(-1, 2),
            colors=np.concatenate([np.zeros((0, 3), np.uint8), *(one.colors.reshape(-1, 3) for one in chosen)]),
            inside=np.concatenate([np.zeros(0, np.bool_), *(one.inside.reshape(-1) for one in chosen)]),
            depth=depth,
        )


def fair_shares(counts: Sequence[int], most: int) -> list[int]:
    """How many of each kind are taken of `most` in all: the same of each, or all of those that are fewer.

    What cannot be divided goes to the first kinds.
    """
    shares = [0] * len(counts)
    left = min(most, sum(counts))
    while left:
        wanting = [kind for kind, count in enumerate(counts) if shares[kind] < count]
        each = max(1, left // len(wanting))
        for kind in wanting:
            more = min(each, counts[kind] - shares[kind], left)
            shares[kind] += more
            left -= more
    return shares


def _bounded(colors: NDArray[np.uint8], inside: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A patch whose longer side is at most PATCH_SIDE; a copy, so that the photo is not kept."""
    longest = max(inside.shape)
    if longest <= PATCH_SIDE:
        return colors.copy(), inside
    height, width = (max(1, side * PATCH_SIDE // longest) for side in inside.shape)
    scaled = Image.fromarray(np.ascontiguousarray(colors)).resize((width, height), Image.Resampling.BILINEAR)
    shape = Image.fromarray(inside.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(scaled), np.asarray(shape) > 0
