"""Distances against formulas that are computed another way: Gaussians in closed form, double sums, SciPy's root."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from spade_deploy.errors import ConfigError
from spade_deploy.metrics import diversity, frechet_distance, kernel_distance

Rows = NDArray[np.float64]


def exact_sample(mean: Rows, covariance: Rows, count: int, seed: int) -> Rows:
    """Rows whose sample mean and unbiased sample covariance are exactly these."""
    noise = np.random.default_rng(seed).standard_normal((count, len(mean)))
    noise -= noise.mean(0)
    orthonormal, _ = np.linalg.qr(noise)
    return mean + orthonormal * np.sqrt(count - 1) @ np.linalg.cholesky(covariance).T


def random_covariance(size: int, seed: int) -> Rows:
    root = np.random.default_rng(seed).standard_normal((size, size))
    return root @ root.T + 0.1 * np.eye(size)


def frechet_by_root(a: Rows, b: Rows, ddof: int = 1) -> float:
    """The formula as it is written, with a root of a matrix."""
    first, second = np.cov(a.T, ddof=ddof), np.cov(b.T, ddof=ddof)
    root = linalg.sqrtm(first @ second)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * np.real(root)))


class TestFrechet:
    def test_two_gaussians_with_a_common_basis(self) -> None:
        # Diagonal covariances: the distance is |mean difference|^2 + sum (s_a - s_b)^2.
        spreads = np.array([[0.5, 2.0, 3.0, 1.0], [1.5, 2.0, 0.25, 4.0]])
        means = np.array([[0.0, 1.0, -2.0, 3.0], [1.0, 1.0, 0.0, -1.0]])
        a, b = (exact_sample(means[n], np.diag(spreads[n] ** 2), 50, seed=n) for n in range(2))
        found = frechet_distance(a, b)
        assert found.mean_term == pytest.approx(21.0, abs=1e-11)  # measured 7e-15
        assert found.covariance_term == pytest.approx(((spreads[0] - spreads[1]) ** 2).sum(), abs=1e-11)  # 0
        assert found.value == found.mean_term + found.covariance_term
        assert found.images == (50, 50)
        assert found.dimensions == 4

    @pytest.mark.parametrize(("rows_a", "rows_b"), [(40, 60), (9, 60)])
    def test_the_formula_with_a_root_of_a_matrix(self, rows_a: int, rows_b: int) -> None:
        # Nine rows of eight features: SciPy's root still exists, and one more row would be needed to be asked for.
        a = exact_sample(np.zeros(8), random_covariance(8, 1), rows_a, seed=1)
        b = exact_sample(np.ones(8), random_covariance(8, 2), rows_b, seed=2)
        expected = frechet_by_root(a, b)
        assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-10)  # measured 8e-15
        assert abs(frechet_by_root(a, b, ddof=0) - expected) > 1e-3 * expected  # a biased covariance is another number

    def test_fewer_images_than_features(self) -> None:
        # The covariances are singular: the root's trace is compared by eigenvalues of the product.
        random = np.random.default_rng(3)
        a, b = random.standard_normal((6, 20)), 2 * random.standard_normal((9, 20)) + 1
        first, second = np.cov(a.T), np.cov(b.T)
        roots = np.sqrt(np.clip(np.real(np.linalg.eigvals(first @ second)), 0, None))
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * roots.sum()
        found = frechet_distance(a, b)
        assert found.value == pytest.approx(expected, rel=1e-6)  # measured 6e-9: the eigenvalues' own noise
        assert found.caveat is not None
        assert "6 images and 20 features" in found.caveat
        assert frechet_distance(random.standard_normal((21, 20)), random.standard_normal((21, 20))).caveat is None
        assert frechet_distance(random.standard_normal((20, 20)), random.standard_normal((21, 20))).caveat

    def test_symmetric_and_zero_for_the_same_set(self) -> None:
        random = np.random.default_rng(4)
        for count in (5, 80):
            a, b = random.standard_normal((count, 12)), random.standard_normal((count, 12)) * 2
            assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-10)  # measured 7e-15
            assert frechet_distance(a, b).value == pytest.approx(frechet_distance(b, a).value, rel=1e-12)  # 1e-15
            assert frechet_distance(a, b).value > 1


class TestKernel:
    def test_brute_force_double_sum(self) -> None:
        random = np.random.default_rng(5)
        a, b = random.standard_normal((7, 5)), random.standard_normal((7, 5)) + 0.5

        def kernel(x: Any, y: Any) -> float:
            return float((sum(p * q for p, q in zip(x, y, strict=True)) / 5 + 1) ** 3)

        within_a = sum(kernel(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
        within_b = sum(kernel(b[i], b[j]) for i in range(7) for j in range(7) if i != j) / 42
        between = sum(kernel(x, y) for x in a for y in b) / 49
        found = kernel_distance(a, b, subset_size=7, subsets=3)
        assert found.value == pytest.approx(within_a + within_b - 2 * between, rel=1e-11)  # measured 1e-16
        assert found.std == pytest.approx(0, abs=1e-12)  # every subset is the whole set
        assert (found.subsets, found.subset_size) == (3, 7)

    def test_unbiased(self) -> None:
        # Two samples of one distribution: zero on average. With the diagonal, which is biased, it is far from it.
        random = np.random.default_rng(6)
        found, biased = [], []
        for _ in range(300):
            a, b = random.standard_normal((8, 6)), random.standard_normal((8, 6))
            found.append(kernel_distance(a, b, subset_size=8, subsets=1).value)
            kernels = [(x @ y.T / 6 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
            biased.append(kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean())
        error = np.std(found) / np.sqrt(len(found))
        assert abs(np.mean(found)) < 3 * error  # measured 1.4
        assert np.mean(biased) > 10 * error  # measured 61

    def test_subsets_are_seeded(self) -> None:
        random = np.random.default_rng(7)
        a, b = random.standard_normal((30, 4)), random.standard_normal((40, 4))
        first, again, other = (kernel_distance(a, b, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        assert first.subset_size == 15  # half of the smaller set
        assert first.std > 0
        whole = kernel_distance(a, b[:30], subset_size=30, subsets=1).value
        many = kernel_distance(a, b[:30], subsets=2000).value
        assert many == pytest.approx(whole, abs=0.02)  # measured 0.005; the mean over subsets estimates the whole


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_what_has_no_distance_is_refused(distance: Any) -> None:
    rows = np.random.default_rng(8).standard_normal((5, 3))
    broken = rows.copy()
    broken[2, 1] = np.nan
    for a, b, said in (
        (rows, rows[:1], "two images or more"),
        (rows[0], rows, "N x D"),
        (rows, rows[:, :2], "3 and of 2"),
        (rows, broken, "NaN"),
    ):
        with pytest.raises(ConfigError, match=said):
            distance(a, b)
    with pytest.raises(ConfigError, match="subsets of 6 rows"):
        kernel_distance(rows, rows, subset_size=6)


class TestDiversity:
    def test_by_hand(self) -> None:
        right, up = np.array([1.0, 0.0]), np.array([0.0, 5.0])
        assert diversity(np.stack([right, 3 * right])) == pytest.approx(0, abs=1e-15)  # the length does not count
        assert diversity(np.stack([right, up])) == pytest.approx(2)
        assert diversity(np.stack([right, -right])) == pytest.approx(4)
        assert diversity(np.stack([right, right, up])) == pytest.approx(4 / 3)  # pairs 0, 2, 2

    def test_maps_are_averaged_over_positions(self) -> None:
        maps = np.random.default_rng(9).standard_normal((3, 4, 2, 5))
        total, pairs = 0.0, 0
        for i in range(3):
            for j in range(i):
                for y in range(2):
                    for x in range(5):
                        p, q = maps[i, :, y, x], maps[j, :, y, x]
                        total += 2 - 2 * float(p @ q) / np.linalg.norm(p) / np.linalg.norm(q)
                        pairs += 1
        assert diversity(maps) == pytest.approx(total / pairs, rel=1e-12)

    def test_one_style_has_none(self) -> None:
        with pytest.raises(ConfigError, match="two styles"):
            diversity(np.ones((1, 4)))
        with pytest.raises(ConfigError, match="finite"):
            diversity(np.full((2, 4), np.inf))


class TestBounds:
    def test_two_images_of_one_feature_are_enough_and_fewer_are_not(self) -> None:
        a, b = np.array([[1.0], [3.0]]), np.array([[2.0], [6.0]])
        found = frechet_distance(a, b)
        # Means 2 and 4; variances 2 and 8.
        assert found.value == pytest.approx(4 + (np.sqrt(2) - np.sqrt(8)) ** 2, rel=1e-9)
        assert found.caveat is None
        assert kernel_distance(a, b).subset_size == 2
        for wrong in (a[:1], a[:, :0], a[:, 0]):
            with pytest.raises(ConfigError, match="N x D features of two images or more"):
                frechet_distance(wrong, b)

    @pytest.mark.parametrize("size", [1, 7])
    def test_a_subset_has_two_rows_at_least_and_no_more_than_there_are(self, size: int) -> None:
        rows = np.random.default_rng(0).standard_normal((6, 3))
        with pytest.raises(ConfigError, match=f"subsets of {size} rows; there are 6 and 6 rows"):
            kernel_distance(rows, rows, subset_size=size)
        assert kernel_distance(rows, rows, subset_size=6).subset_size == 6

    def test_what_is_left_out_is_a_hundred_subsets_of_half_the_rows_up_to_a_thousand_drawn_with_seed_0(self) -> None:
        rows = np.random.default_rng(0).standard_normal((2, 40, 3))
        plain = kernel_distance(*rows)
        assert (plain.subsets, plain.subset_size) == (100, 20)
        assert plain == kernel_distance(*rows, subset_size=20, subsets=100, seed=0)
        assert plain != kernel_distance(*rows, seed=1)
        many = np.random.default_rng(0).standard_normal((2, 2100, 1))
        assert kernel_distance(*many, subsets=1).subset_size == 1000
        with pytest.raises(ConfigError, match="0 subsets"):
            kernel_distance(*rows, subsets=0)
