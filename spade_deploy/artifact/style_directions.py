"""The main directions of a model's style vector z, a file of the artifact: what the sliders of a page move along.

They are those in which z changes the output of the generator's first layer the most: its right singular vectors, which
need no data (Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs", CVPR 2021). Each is of length 1,
so that a number along it counts standard deviations of the styles that training draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import parse
from spade_deploy.files.atomic import write_json

STYLE_DIRECTIONS = "style_directions.json"
MOST_DIRECTIONS = 6
"""How many an export keeps. More sliders than that nobody tries out, and the later ones change little."""
_LENGTH_TOLERANCE = 1e-4


def write_style_directions(folder: Path, directions: NDArray[np.float64]) -> None:
    """Write them, K x z_dim with K <= z_dim, the strongest one first; `write_manifest` comes after it."""
    write_json(folder / STYLE_DIRECTIONS, {"directions": np.asarray(directions).astype(float).tolist()})


def parse_style_directions(value: Mapping[str, Any], z_dim: int | None) -> NDArray[np.float32]:
    """K x z_dim float32 of the file's JSON. Raises ConfigError."""
    rows = parse(tuple[tuple[float, ...], ...], value.get("directions"), "directions")
    if not rows or any(len(row) != z_dim for row in rows):
        raise ConfigError(f"directions: {quoted([len(row) for row in rows])} are not the numbers of a style of {z_dim}")
    found = np.array(rows)
    lengths = np.linalg.norm(found, axis=1)
    if not (np.abs(lengths - 1) < _LENGTH_TOLERANCE).all():  # false of NaN and infinity, too
        raise ConfigError(f"directions: their lengths are {quoted(lengths.round(4).tolist())}, not 1")
    return found.astype(np.float32)
