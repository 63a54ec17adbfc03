"""Collect what each image adds to the figures of its model, and make the figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.evaluation.data import Sample
from spade_deploy.evaluation.judges import Judges
from spade_deploy.evaluation.scores import Scores
from spade_deploy.metrics import ConfusionMatrix, frechet_distance, kernel_distance
from spade_deploy.metrics.confusion import accuracy_of, miou_of, scores_of
from spade_deploy.metrics.extractor import pooled
from spade_deploy.metrics.pixels import psnr_of


class Tally:
    """Collects what each image adds to the figures, batch by batch."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self.images = 0

    def add(self, samples: Sequence[Sample], pixels: NDArray[np.uint8], *, is_real: bool = False) -> None:
        """pixels: N x H x W x 3 of N samples. is_real: they are the photos, which are not compared with themselves."""
        self.add_features(samples, pixels)
        if self._judges.segmenter is not None:
            found = self._judges.segmenter.predict(pixels)
            self._keep("sums", np.stack([self._counted(*pair) for pair in zip(samples, found, strict=True)]))
        if is_real:
            return
        photos = np.stack([sample.photo for sample in samples])
        difference = pixels.astype(np.float64) - photos
        self._keep("absolute", np.abs(difference).mean((1, 2, 3)))
        self._keep("squared", (difference**2).mean((1, 2, 3)))
        if self._judges.perceptual is not None:
            self._keep("lpips", self._judges.perceptual.distances(pixels, photos))

    def add_features(self, samples: Sequence[Sample], pixels: NDArray[np.uint8]) -> None:
        self.images += len(pixels)
        self._keep("indices", np.array([sample.index for sample in samples]))
        if self._judges.extractor is not None:
            self._keep("features", pooled(self._judges.extractor.maps(pixels)))

    def scores(self) -> Scores:
        parts = {name: np.concatenate(found) for name, found in self._parts.items()}
        return Scores(**{"indices": np.zeros(0, np.int64), **parts})

    def _counted(self, sample: Sample, found: NDArray[np.int32]) -> NDArray[np.int64]:
        matrix = ConfusionMatrix(self._judges.num_labels)
        matrix.add(sample.label.astype(np.int64), found)
        return matrix.sums

    def _keep(self, name: str, part: NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(part)


def distances(made: Scores, real: Scores, seed: int) -> dict[str, Any]:
    """The fields `frechet` and `kernel` of a Row; none if either side has fewer than two images."""
    a, b = made.features, real.features
    if a is None or b is None or min(len(a), len(b)) < 2:
        return {}
    return {"frechet": frechet_distance(a, b), "kernel": kernel_distance(a, b, seed=seed)}


def segmentation(scores: Scores) -> dict[str, Any]:
    """The fields `miou`, `accuracy` and `classes` of a Row."""
    if scores.sums is None or not scores.sums.any():
        return {}
    sums = scores.sums.sum(0)
    return {"miou": float(miou_of(sums)), "accuracy": float(accuracy_of(sums)), "classes": scores_of(sums)}


def pixel_errors(scores: Scores) -> dict[str, Any]:
    """The fields of a Row that compare each image with its photo."""
    if scores.absolute is None or scores.squared is None:
        return {}
    found = {"l1": float(scores.absolute.mean() / 255), "psnr": float(psnr_of(scores.squared.mean()))}
    return found if scores.lpips is None else {**found, "lpips": float(scores.lpips.mean())}
