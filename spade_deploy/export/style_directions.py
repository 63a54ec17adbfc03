"""The main directions of a generator's style vector; `artifact/style_directions.py` says what they are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spade_deploy.artifact import MOST_DIRECTIONS
from spade_deploy.networks.build import Generator


def style_directions(generator: Generator) -> NDArray[np.float64] | None:
    """K x z_dim unit vectors, the strongest one first; None for a model without styles.

    A singular vector has no sign of its own: here its largest number is positive, so that every export gives the same.
    """
    if generator.spec.is_dynamic:  # noise, which OASIS has instead of a style, has no layer of its own
        return None
    assert isinstance(generator.fc, nn.Linear)
    weight = generator.fc.weight.detach().to("cpu", torch.float64)
    vectors = torch.linalg.eigh(weight.T @ weight)[1].numpy()  # columns, the weakest one first
    found = vectors[:, ::-1][:, :MOST_DIRECTIONS].T
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
    return np.ascontiguousarray(found * np.sign(largest))
