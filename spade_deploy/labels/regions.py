"""The connected regions of one class in label maps. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def number_regions(label: NDArray[Any]) -> NDArray[np.int64]:
    """The number of each pixel's region, N x H x W from 0 on; regions of different maps have different numbers.

    Pixels of one class that touch each other, at a side or a corner, are of one region. The numbers follow the first
    pixels of the regions, row by row.

    Runs of one class in a row are joined with those that they touch in the next row. Each run points to one with a
    smaller number of the same region, until all point to the smallest.
    """
    begins = np.ones(label.shape, np.bool_)
    begins[:, :, 1:] = label[:, :, 1:] != label[:, :, :-1]
    run = (np.cumsum(begins.reshape(-1)) - 1).reshape(label.shape)
    count, width, pairs = int(run[-1, -1, -1]) + 1, label.shape[2], []
    for shift in (-1, 0, 1):
        above = (slice(None), slice(None, -1), slice(max(0, -shift), width - max(0, shift)))
        below = (slice(None), slice(1, None), slice(max(0, shift), width - max(0, -shift)))
        touches = label[above] == label[below]
        pairs.append(run[above][touches] * count + run[below][touches])
    first, second = np.divmod(np.unique(np.concatenate(pairs)), count)
    parent = np.arange(count)
    while True:
        low, high = np.minimum(parent[first], parent[second]), np.maximum(parent[first], parent[second])
        if np.array_equal(low, high):
            break
        np.minimum.at(parent, high, low)
        while not np.array_equal(further := parent[parent], parent):
            parent = further
    numbers = np.unique(parent, return_inverse=True)[1]
    found: NDArray[np.int64] = numbers[run]
    return found
