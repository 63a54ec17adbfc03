"""Means over runs that differ only in their random seed, and whether two settings differ by more than their seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spade_deploy.metrics.bootstrap import student_t


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    """The mean over the seeds."""
    std: float
    """The standard deviation over the seeds, with n - 1."""
    seeds: int
    """How many seeds there are."""


def spread(values: Sequence[float]) -> Spread:
    """The mean and the deviation of two values or more."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))


def noise_of_means(a: Spread, b: Spread) -> float:
    """Half the width of the 95 % interval of the difference of two means (Welch's t, 1947)."""
    parts = [one.std**2 / one.seeds for one in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(part**2 / (one.seeds - 1) for part, one in zip(parts, (a, b), strict=True))
    return student_t(max(1, int(freedom))) * math.sqrt(total)
