"""Label maps that are unlike those of photos, on which a half-precision graph must work, too.

Nobody knows what a deployed model will get: an empty map, one class, a map that a mistake filled with noise. The ranges
that decide what stays float32 are measured on these maps beside the golden ones, and half precision is emulated on
them. The maps are made with NumPy alone, and are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, Arrays, Z, with_features
from spade_deploy.labels.files import label_dtype
from spade_deploy.spec import GeneratorSpec

MOST_CLASSES = 24
"""How many maps of a single class are made at most. Of more classes, evenly spaced ones are taken."""
LATENT_SIDE = 4
"""Latent pixels on each side of a stress map, for a model that takes any size. At the fine levels such a map has both
pixels that the border reaches and pixels that it does not."""
MOST_EVALUATIONS = 60
LEAST_EVALUATIONS = 8
SEARCH_WORK = 16 * 64**2 * 128**2
"""The most work of a search, as channels squared times pixels: 16 evaluations of a full-size model at 128 x 128."""


@dataclass(frozen=True)
class StressMap:
    """A stress map."""

    name: str
    """What it shows, in words."""

    inputs: Arrays
    """The inputs of the dense graph by name, one of each."""


def stress_maps(spec: GeneratorSpec, *, classes: int = MOST_CLASSES) -> tuple[StressMap, ...]:
    """Noise, two checkerboards, a map of every class, and maps of one class each, of which there are at most `classes`.

    A map has the model's size where that is fixed, else LATENT_SIDE latent pixels a side or less.
    """
    rng = np.random.default_rng(11)
    height, width = stress_size(spec)
    ids = spec.labels.num_ids
    rows, columns = np.mgrid[:height, :width]
    noise = rng.integers(0, ids, (height, width))
    fine, coarse = (
        _checkerboard(rng, ids, rows, columns, cell) for cell in (1, spec.stride)
    )  # the coarse one alternates in the latent map, too; the fine one has a single class there
    every = _every_class(ids, rows, columns, height, width)
    one = sorted({index * ids // min(ids, classes) for index in range(min(ids, classes))})
    found = [("noise", noise), ("checkerboard", fine), ("coarse checkerboard", coarse), ("every class", every)]
    found += [(f"class {number} alone", np.full((height, width), number)) for number in one]
    return tuple(StressMap(name, _inputs(spec, rng, label)) for name, label in found)


def stress_size(spec: GeneratorSpec) -> tuple[int, int]:
    """Height and width of a stress map in pixels."""
    if not spec.is_dynamic:
        return spec.height, spec.width
    side = max(spec.least_side, LATENT_SIDE * spec.stride)
    return min(spec.height, side), min(spec.width, side)


def hardest_map(
    spec: GeneratorSpec, start: Arrays, score: Callable[[Arrays], float], evaluations: int, *, seed: int = 0
) -> tuple[StressMap, float]:
    """The map of the largest score that a short search finds: it changes a map at random while the score grows.

    start: the inputs that the search begins with, one of each. Returns the map and its score, which is at least that of
    `start`. A score that is not a number ends the search, since nothing is larger.
    """
    rng = np.random.default_rng(seed)
    best, reached = start, score(start)
    for _ in range(evaluations):
        if not np.isfinite(reached):
            break
        changed = _mutated(spec, rng, best)
        found = score(changed)
        if not found <= reached:
            best, reached = changed, found
    return StressMap("the largest activations found", best), reached


def evaluations_for(spec: GeneratorSpec) -> int:
    """How many maps a search may try, so that it takes about as long for every model."""
    height, width = stress_size(spec)
    affordable = SEARCH_WORK // (spec.base_channels**2 * height * width)
    return max(LEAST_EVALUATIONS, min(MOST_EVALUATIONS, affordable))


def _checkerboard(rng: np.random.Generator, ids: int, rows: Any, columns: Any, cell: int) -> NDArray[Any]:
    """Two alternating classes, another pair in each column of four cells."""
    pairs = rng.integers(0, ids, (2, columns.max() // (4 * cell) + 1))
    board: NDArray[Any] = pairs[(rows // cell + columns // cell) % 2, columns // (4 * cell)]
    return board


def _every_class(ids: int, rows: Any, columns: Any, height: int, width: int) -> NDArray[Any]:
    """A grid of patches, one for each class as far as there are enough pixels."""
    across = int(np.ceil(np.sqrt(ids)))
    patch: NDArray[Any] = (rows * across // height) * across + columns * across // width
    return patch % ids


def _inputs(spec: GeneratorSpec, rng: np.random.Generator, label: NDArray[Any]) -> Arrays:
    inputs: Arrays = {LABEL: label[None].astype(label_dtype(spec.labels))}
    if spec.labels.has_edges:
        inputs[INSTANCE] = rng.integers(0, 3, (1, *label.shape)).astype(np.int32)
    if spec.z_dim is not None:
        inputs[Z] = rng.standard_normal((1, spec.z_dim)).astype(np.float32)
    return with_features(spec, inputs, rng)


def _mutated(spec: GeneratorSpec, rng: np.random.Generator, inputs: Arrays) -> Arrays:
    """The inputs with one rectangle of any size changed to one class, to noise, or to two alternating classes."""
    label = inputs[LABEL][0].copy()
    height, width = label.shape
    rows, columns = (np.sort(rng.integers(0, side + 1, 2)) for side in (height, width))
    part = (slice(rows[0], max(rows[1], rows[0] + 1)), slice(columns[0], max(columns[1], columns[0] + 1)))
    inside = np.mgrid[part][0].shape
    first, second = rng.integers(0, spec.labels.num_ids, 2)
    painted = (
        np.full(inside, first),
        rng.integers(0, spec.labels.num_ids, inside),
        np.where(np.indices(inside).sum(0) % 2, first, second),
    )[rng.integers(3)]
    label[part] = painted[: label[part].shape[0], : label[part].shape[1]]
    changed = {**inputs, LABEL: label[None]}
    if INSTANCE in inputs:
        instance = inputs[INSTANCE][0].copy()
        instance[part] = rng.integers(0, 3, instance[part].shape) if rng.integers(2) else 0
        changed[INSTANCE] = instance[None]
    if Z in inputs and rng.integers(2):
        # About half of the style's numbers are drawn anew; it stays a style that an encoder may give.
        fresh = rng.standard_normal(inputs[Z].shape).astype(np.float32)
        changed[Z] = np.where(rng.random(fresh.shape) < 0.5, fresh, inputs[Z]).astype(np.float32)
    if FEATURES in inputs and rng.integers(2):
        features = inputs[FEATURES][0].copy()
        features[:, part[0], part[1]] = rng.uniform(-1, 1, (len(features), 1, 1))
        changed[FEATURES] = features[None]
    return changed
