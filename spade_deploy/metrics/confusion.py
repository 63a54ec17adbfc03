"""Compare the classes that a segmenter finds in images with the label maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError


@dataclass(frozen=True)
class ClassScore:
    """The score of one class that occurs."""

    label_id: int
    """The id of the class."""
    share: float
    """The share of this class among the pixels that count."""
    iou: float
    """Intersection over union, 0..1."""


def accuracy_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """Share of the pixels that are found right: ... x 3 x C sums as `ConfusionMatrix.sums` -> ...; 0 without pixels."""
    found: NDArray[np.float64] = sums[..., 0, :].sum(-1) / np.maximum(1, sums[..., 1, :].sum(-1))
    return found


def iou_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each class: ... x 3 x C -> ... x C; NaN where a class does not occur in the truth."""
    right, truth, predicted = (sums[..., n, :].astype(np.float64) for n in range(3))
    found: NDArray[np.float64] = np.where(truth > 0, right / np.maximum(1, truth + predicted - right), np.nan)
    return found


def miou_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """The mean of `iou_of` over the classes that occur in the truth: ... x 3 x C -> ...; 0 where none does."""
    scores = iou_of(sums)
    occurs = ~np.isnan(scores)
    found: NDArray[np.float64] = np.where(occurs, scores, 0).sum(-1) / np.maximum(1, occurs.sum(-1))
    return found


def by_chance(sums: NDArray[Any]) -> float:
    """The share of pixels that would be found right by naming the same classes as often, but at random places.

    sums: 3 x C. It is the expected agreement of Cohen's kappa, and equals the accuracy of a constant answer.
    """
    pixels = max(1, int(sums[1].sum()))
    return float((sums[1].astype(np.float64) * sums[2]).sum() / pixels**2)


def kappa_of(sums: NDArray[Any]) -> float:
    """Cohen's kappa (1960): how much of what chance leaves open is found right; 1 is all, 0 is no better than chance.

    sums: 3 x C.
    """
    chance = by_chance(sums)
    return float((accuracy_of(sums) - chance) / (1 - chance)) if chance < 1 else 0.0


class ConfusionMatrix:
    """Pixels by their true and their predicted class.

    num_labels: classes 0..num_labels-1. Pixels whose truth is another number (dontcare) do not count; a prediction
    that is another number is wrong.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.counts: NDArray[np.int64] = np.zeros((num_labels, num_labels + 1), np.int64)

    def add(self, truth: NDArray[Any], predicted: NDArray[Any]) -> None:
        """Add the pixels of two integer maps of equal shape. Raises ConfigError if the shapes differ."""
        if truth.shape != predicted.shape:
            raise ConfigError(f"label maps of {truth.shape} cannot be compared with predictions of {predicted.shape}")
        counts = (truth >= 0) & (truth < self.num_labels)
        true, found = truth[counts].astype(np.int64), predicted[counts].astype(np.int64)
        found = np.where((found >= 0) & (found < self.num_labels), found, self.num_labels)
        cells = np.bincount(true * (self.num_labels + 1) + found, minlength=self.counts.size)
        self.counts += cells.reshape(self.counts.shape)

    @property
    def sums(self) -> NDArray[np.int64]:
        """3 x C: the pixels of each class that are found right, that have it, and that are taken for it."""
        return np.stack([np.diagonal(self.counts), self.counts.sum(1), self.counts.sum(0)[: self.num_labels]])

    @property
    def accuracy(self) -> float:
        """Share of the pixels that are found right; 0 where no pixel counts."""
        return float(accuracy_of(self.sums))

    @property
    def miou(self) -> float:
        """Mean intersection over union of the classes that occur in the truth.

        The mean is over the same classes for every model: a class that only occurs in predictions is not in it, though
        such predictions lower the scores of the true classes.
        """
        return float(miou_of(self.sums))

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """The classes that occur in the truth, by id."""
        return scores_of(self.sums)


def scores_of(sums: NDArray[Any]) -> tuple[ClassScore, ...]:
    """The score of each class that occurs in the truth, by id, from 3 x C sums as `ConfusionMatrix.sums`."""
    pixels, scores = max(1, int(sums[1].sum())), iou_of(sums)
    return tuple(
        ClassScore(n, float(sums[1, n] / pixels), float(scores[n])) for n in range(sums.shape[1]) if sums[1, n]
    )
