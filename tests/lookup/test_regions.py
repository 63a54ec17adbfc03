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
