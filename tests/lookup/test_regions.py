"""Positions in regions against the second writing, which fills one region at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spade_deploy.lookup.regions import region_positions
from tests.support.clade_by_the_facts import positions_of


def by_filling(label: np.ndarray) -> np.ndarray:
    return torch.stack([positions_of(one) for one in torch.from_numpy(label)]).numpy()


def spiral(side: int) -> np.ndarray:
    """One region that winds inwards through all rows, in another one."""
    label = np.zeros((side, side), np.uint8)
    row, column, down, right = 0, 0, 0, 1
    label[0, 0] = 1
    for length in [side - 1, *(step for step in range(side - 1, 0, -2) for _ in range(2))]:
        for _ in range(length):
            row, column = row + down, column + right
            label[row, column] = 1
        down, right = right, -down
    return label


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
@pytest.mark.parametrize(
    ("shape", "classes", "cell"),
    [((1, 17, 23), 3, 1), ((2, 32, 32), 2, 3), ((3, 20, 20), 4, 2), ((1, 1, 7), 2, 1), ((2, 9, 1), 2, 1)],
)
def test_positions_are_those_of_the_second_writing(
    shape: tuple[int, int, int], classes: int, cell: int, kind: type[np.integer]
) -> None:
    ids = np.random.default_rng(cell).integers(0, classes, shape)
    label = np.kron(ids, np.ones((1, cell, cell), int)).astype(kind)
    found = region_positions(label)
    assert found.dtype == np.float32
    assert np.abs(found - by_filling(label)).max() < 1e-6  # rounded to float32 once


def test_long_regions_and_corners() -> None:
    label = np.stack([spiral(21), 1 - spiral(21), np.eye(21, dtype=np.uint8)])
    assert np.abs(region_positions(label) - by_filling(label)).max() < 1e-6
    diagonal = region_positions(np.eye(3, dtype=np.uint8)[None])[0]
    assert diagonal[0].diagonal().tolist() == pytest.approx([-1, 0, 1], abs=2e-5)  # touching at corners is enough
    assert not diagonal[:, 0, 1:].any()  # class 0 has no positions


def test_positions_at_half_the_size_are_those_of_the_file_but_for_a_pixel_and_thin_bridges() -> None:
    """The original finds regions before it resizes a file, and here they are those of the map at the model's size."""
    blocks = np.kron(np.random.default_rng(0).integers(1, 4, (1, 4, 4)), np.ones((1, 16, 16), int))
    of_file = region_positions(blocks)[:, :, ::2, ::2]
    difference = np.abs(of_file - region_positions(blocks[:, ::2, ::2]))
    assert 0 < difference.max() < 1 / 7  # the smallest region has 8 pixels a side at half the size: measured 0.067
    bridged = np.ones((1, 32, 32), int)
    bridged[:, 4:28, 2:12] = bridged[:, 4:28, 20:30] = 2
    bridged[:, 15, 12:20] = 2  # a row that half the size does not have
    apart = region_positions(bridged[:, ::2, ::2])[0, 1, 8]
    together = region_positions(bridged)[0, 1, ::2, ::2][8]
    assert together[1] == pytest.approx(-1, abs=0.01)  # the left edge of one region
    assert together[5] < 0 < apart[5]  # the right edge of the left part: left of one centre, right of the other
