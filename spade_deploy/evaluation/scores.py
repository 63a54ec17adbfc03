"""What each image adds to the figures of its model, so that the figures of any draw of the samples can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spade_deploy.metrics import frechet_distance
from spade_deploy.metrics.bootstrap import DRAWS, FEW_DRAWS, LEAST_SAMPLES, draws, half_width
from spade_deploy.metrics.confusion import accuracy_of, miou_of
from spade_deploy.metrics.distances import kernel_of_draws
from spade_deploy.metrics.pixels import psnr_of

MOST_FOR_FRECHET = 600
"""With more images than this, a Frechet distance takes so long that FEW_DRAWS are made of it."""
MOST_FOR_KERNEL = 1500
"""A kernel distance of more images is drawn from so many of them, and its interval scaled."""

Figures = NDArray[np.float64]
"""A figure of each draw."""


@dataclass(frozen=True)
class Scores:
    """The parts of N images of one model. A part that is None was not measured."""

    indices: NDArray[np.int64]
    """The sample that each image belongs to."""
    features: NDArray[np.float64] | None = None
    """Their features, N x D."""
    sums: NDArray[np.int64] | None = None
    """The pixels of each class, as `ConfusionMatrix.sums`: N x 3 x C."""
    absolute: NDArray[np.float64] | None = None
    """The mean absolute difference from the photo, of pixels 0..255."""
    squared: NDArray[np.float64] | None = None
    """The mean squared difference from the photo."""
    lpips: NDArray[np.float64] | None = None
    """The LPIPS distance from the photo."""

    def of(self, indices: NDArray[np.int64]) -> Scores:
        """The parts of the images of these samples, in this order."""
        place = {int(index): n for n, index in enumerate(self.indices)}
        rows = [place[int(index)] for index in indices]

        def picked(part: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
            return None if part is None else part[rows]

        return Scores(
            indices,
            picked(self.features),
            None if self.sums is None else self.sums[rows],
            picked(self.absolute),
            picked(self.squared),
            picked(self.lpips),
        )


@dataclass(frozen=True)
class Drawn:
    """The figures of several models, by model and name, on draws of the samples that all of them have."""

    count: int
    """How many samples there are."""
    figures: tuple[dict[str, Figures], ...]
    """For each model the figure of each draw, by name."""
    sums: tuple[NDArray[np.int64] | None, ...]
    """For each model the pixels of each class in each draw: B x 3 x C."""
    scale: dict[str, float]
    """The factor of the intervals of figures that were drawn from fewer samples."""

    def interval(self, model: int, name: str) -> float | None:
        """Half the width of the 95 % interval of a model's figure; None if it was not drawn."""
        found = self.figures[model].get(name)
        return None if found is None else self._half(found, name)

    def noise(self, first: int, second: int, name: str) -> float | None:
        """Half the width of the 95 % interval of the difference of two models."""
        a, b = (self.figures[model].get(name) for model in (first, second))
        return None if a is None or b is None else self._half(a - b, name)

    def _half(self, figures: Figures, name: str) -> float:
        return self.scale.get(name, 1.0) * half_width(figures, self.count)


def draw_again(models: Sequence[Scores], real: Scores, seed: int) -> Drawn | None:
    """Draw the samples that all models have, again and again. None if there are fewer than LEAST_SAMPLES of them.

    real: the photos' own parts, of which the features are needed for distances.
    """
    common = set(map(int, real.indices)).intersection(*(map(int, model.indices) for model in models))
    if len(common) < LEAST_SAMPLES:
        return None
    indices = np.array(sorted(common))
    drawn = draws(len(indices), seed)
    photos = real.of(indices)
    here = [model.of(indices) for model in models]
    figures = tuple(_figures(model, photos, drawn) for model in here)
    sums = tuple(None if model.sums is None else _summed(model.sums, drawn) for model in here)
    few = np.sqrt(min(1.0, MOST_FOR_KERNEL / len(indices)))
    return Drawn(len(indices), figures, sums, {"kernel": float(few)})


def _figures(model: Scores, real: Scores, drawn: NDArray[np.int64]) -> dict[str, Figures]:
    count, found = len(model.indices), dict[str, Figures]()
    for name, part in (("l1", model.absolute), ("psnr", model.squared), ("lpips", model.lpips)):
        if part is not None:
            mean = drawn @ part / count
            found[name] = {"l1": lambda value: value / 255, "psnr": psnr_of}.get(name, lambda value: value)(mean)
    if model.sums is not None:
        summed = _summed(model.sums, drawn)
        found["miou"], found["accuracy"] = miou_of(summed), accuracy_of(summed)
    if model.features is not None and real.features is not None:
        a, b = model.features, real.features
        few = drawn if count <= MOST_FOR_FRECHET else drawn[:FEW_DRAWS]
        rows = [np.repeat(np.arange(count), often) for often in few]
        found["frechet"] = np.array([frechet_distance(a[row], b[row]).value for row in rows])
        some = np.arange(min(count, MOST_FOR_KERNEL)) * count // min(count, MOST_FOR_KERNEL)
        fewer = drawn if len(some) == count else draws(len(some), int(drawn[0, 0]), DRAWS)
        found["kernel"] = kernel_of_draws(a[some], b[some], fewer)
    return found


def _summed(sums: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """N x 3 x C of images -> B x 3 x C of draws."""
    flat = drawn.astype(np.float64) @ sums.reshape(len(sums), -1).astype(np.float64)  # exact below 2^53
    return flat.round().astype(np.int64).reshape(len(drawn), *sums.shape[1:])
