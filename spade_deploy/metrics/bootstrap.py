"""How far figures are decided by chance: the samples are drawn again, and the figures of all draws are compared.

The bootstrap (Efron, 1979). All models are measured on the same draws, so that what makes a sample easy or hard for all
of them cancels in their difference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

DRAWS = 200
"""How many times the samples are drawn."""
FEW_DRAWS = 20
"""How many times where one takes seconds. Student's t makes up for it with a wider interval."""
LEAST_SAMPLES = 5
"""Fewer samples give no interval: a draw of three is one of ten."""
Z_95 = 1.959964
"""The normal distribution's quantile of a 95 % interval."""


def draws(count: int, seed: int, times: int = DRAWS) -> NDArray[np.int64]:
    """times x count: how often each of `count` samples is in each draw of `count` samples, with replacement."""
    random = np.random.default_rng(seed)
    return np.stack([np.bincount(random.integers(0, count, count), minlength=count) for _ in range(times)])


def half_width(figures: NDArray[np.float64], count: int) -> float:
    """Half the width of the 95 % interval of a figure of `count` samples, from the figure of each draw.

    It is Student's t times the standard error. The error is the deviation over the draws, which is too small by
    sqrt((count - 1) / count) and corrected. What a figure such as the Frechet distance gains by repeated samples moves
    all draws alike, and is not in it.
    """
    error = float(np.std(figures, ddof=1)) * math.sqrt(count / (count - 1))
    return student_t(min(count, len(figures)) - 1) * error


def student_t(freedom: int) -> float:
    """The quantile of Student's distribution of a 95 % interval, for 1 degree of freedom and more.

    From 4 on it is the expansion of Abramowitz and Stegun 26.7.5, whose error is below 0.3 %.
    """
    if freedom < 4:
        return (12.7062, 4.3027, 3.1824)[freedom - 1]
    z, n = Z_95, freedom
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return z + sum(terms)
