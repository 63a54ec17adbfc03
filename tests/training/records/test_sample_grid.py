"""A sample grid shows the right images in the right places."""

import numpy as np

from spade_deploy.spec import LabelSpec
from spade_deploy.training.records.sample_grid import sample_grid


def test_the_grid_is_label_colours_generated_photo() -> None:
    labels = LabelSpec(2, palette=((10, 20, 30), (200, 100, 50)))
    label = np.stack([np.zeros((8, 6), np.uint8), np.ones((8, 6), np.uint8)])
    generated, photo = np.full((2, 8, 6, 3), 90, np.uint8), np.full((2, 8, 6, 3), 180, np.uint8)
    grid = sample_grid(labels, label, generated, photo)
    assert grid.shape == (8 + 4 + 8, 3 * 6 + 2 * 4, 3)
    assert grid[0, 0].tolist() == [10, 20, 30]
    assert grid[12, 0].tolist() == [200, 100, 50]
    assert grid[0, 10].tolist() == [90] * 3
    assert grid[0, 20].tolist() == [180] * 3
    assert grid[9, 0].tolist() == grid[0, 7].tolist() == [255] * 3
