"""Where each pixel lies in its region, as the positional encoding of CLADE-ICPE sees it. NumPy only.

A region is a set of pixels of one class that touch each other, at a side or a corner. A pixel's position is its row and
its column less those of the region's centre, each divided by the largest such distance in the region. Pixels of class 0
have the position 0, as in the published encoding, whose class 0 was meant to be unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.labels.regions import number_regions

_LEAST = 1e-5
"""It is added to the largest distance, so that a region of one pixel or one row can be divided by it."""


def region_positions(label: NDArray[Any]) -> NDArray[np.float32]:
    """N x H x W integers -> N x 2 x H x W: the position of each pixel, rows first, in -1..1."""
    region = number_regions(label)
    count = int(region.max()) + 1
    flat = region.reshape(-1)
    size = np.bincount(flat, minlength=count)
    result = np.empty((len(label), 2, *label.shape[1:]), np.float32)
    for axis in (1, 2):
        shape = [1, 1, 1]
        shape[axis] = label.shape[axis]
        place = np.broadcast_to(np.arange(label.shape[axis], dtype=np.float64).reshape(shape), label.shape).reshape(-1)
        centre = np.bincount(flat, place, count) / size
        offset = place - centre[flat]
        largest = np.zeros(count)
        np.maximum.at(largest, flat, np.abs(offset))
        result[:, axis - 1] = (offset / (largest[flat] + _LEAST)).reshape(label.shape)
    result[np.broadcast_to(label[:, None] == 0, result.shape)] = 0
    return result
