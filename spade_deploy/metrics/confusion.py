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
    def accuracy(self) -> float:
        """Share of the pixels that are found right; 0 where no pixel counts."""
        return float(np.trace(self.counts) / max(1, self.counts.sum()))

    @property
    def miou(self) -> float:
        """Mean intersection over union of the classes that occur in the truth.

        The mean is over the same classes for every model: a class that only occurs in predictions is not in it, though
        such predictions lower the scores of the true classes.
        """
        scores = self.classes
        return float(np.mean([score.iou for score in scores])) if scores else 0.0

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """The classes that occur in the truth, by id."""
        truth, predicted = self.counts.sum(1), self.counts.sum(0)[: self.num_labels]
        right, pixels = np.diagonal(self.counts), max(1, int(self.counts.sum()))
        return tuple(
            ClassScore(n, float(truth[n] / pixels), float(right[n] / (truth[n] + predicted[n] - right[n])))
            for n in range(self.num_labels)
            if truth[n]
        )
