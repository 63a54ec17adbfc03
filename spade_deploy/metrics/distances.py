"""Distances between two sets of features: Frechet (Heusel et al., 2017) and kernel (Binkowski et al., 2018).

Both compare how the features of two sets of images are distributed; none compares an image with its photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError

Features = NDArray[Any]
"""Features, N x D: one row for each image."""

KERNEL_DEGREE = 3
KERNEL_SUBSETS = 100
MAX_SUBSET = 1000
"""Rows of a subset of the kernel distance, as in the paper that introduced it."""


@dataclass(frozen=True)
class FrechetDistance:
    """The squared distance of two Gaussians."""

    value: float
    """The sum of the two terms."""
    mean_term: float
    """The squared distance of the means."""
    covariance_term: float
    """The part of the distance that the covariances make."""
    images: tuple[int, int]
    """How many images each set has."""
    dimensions: int
    """How many features an image has."""

    @property
    def caveat(self) -> str | None:
        """A warning that a reader of the value has to know; None if there is none."""
        fewest = min(self.images)
        if fewest > self.dimensions:
            return None
        return (
            f"of {fewest} images and {self.dimensions} features: too few for the covariance, so the value is too large"
            " and comparable only with one of as many images; the kernel distance has no such bias"
        )


@dataclass(frozen=True)
class KernelDistance:
    """The squared maximum mean discrepancy, over random subsets of both sets."""

    value: float
    """The mean over the subsets."""
    std: float
    """The standard deviation over the subsets."""
    subsets: int
    """How many subsets there are."""
    subset_size: int
    """How many rows a subset has."""


def frechet_distance(a: Features, b: Features) -> FrechetDistance:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with unbiased covariances C; a: N x D, b: M x D.

    With centred rows X = (a - mean_a) / sqrt(N - 1), so C_a = X^T X, and Y of b alike, the eigenvalues of C_a C_b are
    the squared singular values of X Y^T: the trace of the root is their sum. No root of a matrix is taken, which
    would be inexact where a covariance is singular, as it is when there are fewer images than features.
    Raises ConfigError for fewer than two rows, other numbers of columns, or values that are not finite.
    """
    a, b = _checked(a, b)
    mean_term = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    x, y = _factor(a), _factor(b)
    root_trace = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    covariance_term = max(0.0, float((x**2).sum() + (y**2).sum()) - 2 * root_trace)
    return FrechetDistance(
        mean_term + covariance_term, mean_term, covariance_term, (len(a), len(b)), dimensions=a.shape[1]
    )


def kernel_distance(
    a: Features, b: Features, *, subset_size: int | None = None, subsets: int = KERNEL_SUBSETS, seed: int = 0
) -> KernelDistance:
    """The unbiased squared MMD under the kernel (x.y / D + 1)^3, averaged over random subsets of both sets.

    It may be negative, since it is unbiased: then the sets cannot be told apart.
    subset_size: 1000 rows, or half of the smaller set where that is less, if left out. Drawn without replacement.
    Raises ConfigError as `frechet_distance` does, and for a subset that is larger than a set.
    """
    a, b = _checked(a, b)
    fewest = min(len(a), len(b))
    size = subset_size if subset_size is not None else max(2, min(MAX_SUBSET, fewest // 2))
    if not 2 <= size <= fewest or subsets < 1:
        raise ConfigError(f"kernel distance: {subsets} subsets of {size} rows; there are {len(a)} and {len(b)} rows")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        rows_a = a[random.choice(len(a), size, replace=False)]
        rows_b = b[random.choice(len(b), size, replace=False)]
        found.append(_unbiased_mmd(rows_a, rows_b))
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subsets, size)


def kernel_of_draws(a: Features, b: Features, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """The squared MMD of each draw of the rows of `a` and `b`, which belong together: both N x D; draws: B x N.

    A row that is drawn twice is compared with itself, so the values are larger than `kernel_distance`. Their
    differences and their deviation are not.
    """
    a, b = _checked(a, b)
    count = len(a)
    both = _kernel(a, a) + _kernel(b, b)
    weights = draws.astype(np.float64)

    def form(kernel: Features) -> NDArray[np.float64]:
        """The sum of w_i k_ij w_j of each draw."""
        found: NDArray[np.float64] = ((weights @ kernel) * weights).sum(1)
        return found

    within = (form(both) - weights @ np.diagonal(both)) / (count * (count - 1))
    return within - 2 * form(_kernel(a, b)) / count**2


def diversity(maps: Features) -> float:
    """How much the images of one label map differ from style to style: mean distance over all pairs of styles.

    maps: S x C (x ...) features of S styles. Each position's C features are scaled to length 1; the distance of two
    images is the squared difference, summed over C and averaged over positions. That is the form of LPIPS without its
    learned weights, and on another network: it is not LPIPS, and comparable under one extractor alone. 0..4.
    """
    if maps.ndim < 2 or len(maps) < 2 or not np.isfinite(maps).all():
        raise ConfigError(f"diversity: needs finite features of two styles or more, not {maps.shape}")
    columns = maps.astype(np.float64).reshape(len(maps), maps.shape[1], -1)
    columns /= np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-10)
    pairs = [(i, j) for i in range(len(maps)) for j in range(i)]
    return float(np.mean([((columns[i] - columns[j]) ** 2).sum(0).mean() for i, j in pairs]))


def _factor(rows: Features) -> NDArray[np.float64]:
    """A matrix X of at most D rows with X^T X = the covariance of `rows`."""
    centred: NDArray[np.float64] = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def _unbiased_mmd(a: Features, b: Features) -> float:
    size = len(a)

    def mean_off_diagonal(rows: Features) -> float:
        kernel = _kernel(rows, rows)
        return float((kernel.sum() - np.trace(kernel)) / (size * (size - 1)))

    return mean_off_diagonal(a) + mean_off_diagonal(b) - 2 * float(_kernel(a, b).mean())


def _kernel(a: Features, b: Features) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE
    return kernel


def _checked(a: Features, b: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for rows in (a, b):
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
            raise ConfigError(f"a distance needs N x D features of two images or more, not {rows.shape}")
        if not np.isfinite(rows).all():
            raise ConfigError("a distance needs finite features, and some are NaN or infinite")
    if a.shape[1] != b.shape[1]:
        raise ConfigError(f"features of {a.shape[1]} and of {b.shape[1]} numbers cannot be compared")
    return a.astype(np.float64), b.astype(np.float64)
