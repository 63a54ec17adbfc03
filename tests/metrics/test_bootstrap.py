"""The noise of figures: intervals against known ones, and how often a model is called better by luck."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.scores import Drawn, Scores, draw_again
from spade_deploy.evaluation.seeds import group_by_seed
from spade_deploy.evaluation.tally import pixel_errors
from spade_deploy.evaluation.verdict import best_by_class, verdicts
from spade_deploy.metrics import kernel_distance
from spade_deploy.metrics.bootstrap import draws, half_width, student_t
from spade_deploy.metrics.confusion import ClassScore, ConfusionMatrix, by_chance, kappa_of
from spade_deploy.metrics.distances import kernel_of_draws
from spade_deploy.metrics.seeds import Spread, noise_of_means


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_students_t(freedom: int, table: float) -> None:
    assert student_t(freedom) == pytest.approx(table, rel=3e-3)


@pytest.mark.parametrize("count", [6, 400])
def test_the_interval_of_a_mean_is_students(count: int) -> None:
    values = np.random.default_rng(0).normal(5, 2, count)
    found = half_width(draws(count, seed=1, times=4000) @ values / count, count)
    expected = student_t(count - 1) * values.std(ddof=1) / count**0.5
    assert found == pytest.approx(expected, rel=0.05)  # measured 0.01; the deviation of 6 uncorrected is 9 % too small


def test_images_are_compared_sample_by_sample_whatever_their_order() -> None:
    scores = Scores(np.array([3, 1, 2]), sums=np.array([3, 1, 2]), absolute=np.array([30.0, 10.0, 20.0]))
    found = scores.of(np.array([1, 2, 3]))
    assert (found.indices.tolist(), found.absolute.tolist()) == ([1, 2, 3], [10, 20, 30])  # type: ignore[union-attr]
    assert found.sums.tolist() == [1, 2, 3]  # type: ignore[union-attr]


def test_the_psnr_of_a_model_is_of_its_mean_error() -> None:
    found = pixel_errors(Scores(np.arange(2), absolute=np.array([1.0, 5.0]), squared=np.array([1.0, 100.0])))
    assert found["l1"] == pytest.approx(3 / 255)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 50.5))


@pytest.mark.parametrize(
    ("seeds", "rates", "expected"),
    [
        ((1, 2, 3), (0.1, 0.1, 0.1), [(1, 2, 3)]),
        ((1, 2, 3), (0.1, 0.1, 0.2), [(1, 2)]),
        ((1, 1, 2), (0.1, 0.1, 0.1), []),
        ((1, 2, 3), (0.1, 0.2, 0.3), []),
    ],
)
def test_models_that_differ_in_their_seed_alone_are_a_group(
    seeds: tuple[int, ...], rates: tuple[float, ...], expected: list[tuple[int, ...]]
) -> None:
    """Of two with the same seed it is not known what differs: one may have been resumed otherwise."""
    settings = [{"train.seed": seed, "train.lr_generator": rate} for seed, rate in zip(seeds, rates, strict=True)]
    models: list[Any] = [SimpleNamespace(kind="run", settings=one, facts={"step": 5}) for one in settings]
    rows = [Row(str(seed), "run", None, 9, l1=seed / 10) for seed in seeds]
    found = group_by_seed(models, rows)
    assert [group.seeds for group in found] == expected
    assert [group.figures["l1"].mean for group in found] == [pytest.approx(np.mean(one) / 10) for one in expected]


def test_the_noise_of_two_means_is_welchs() -> None:
    few, many = Spread(0.0, std=2.0, seeds=3), Spread(0.0, std=1.0, seeds=5)
    expected = 4.3027 * (4 / 3 + 1 / 5) ** 0.5  # 2.6 degrees of freedom, rounded down
    assert noise_of_means(few, many) == noise_of_means(many, few) == pytest.approx(expected, rel=1e-4)
    assert noise_of_means(Spread(1.0, 0.0, 2), Spread(2.0, 0.0, 2)) == 0


def test_draws_have_as_many_samples_and_follow_the_seed() -> None:
    drawn = draws(7, seed=3)
    assert drawn.shape == (200, 7)
    assert (drawn.sum(1) == 7).all()
    np.testing.assert_array_equal(drawn, draws(7, seed=3))
    assert (drawn != draws(7, seed=4)).any()


def test_a_draw_of_every_row_once_is_the_kernel_distance_itself() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (8, 5)), random.normal(0.5, 1, (8, 5))
    whole = kernel_distance(a, b, subset_size=8, subsets=1).value
    once = np.ones((1, 8), np.int64)
    assert kernel_of_draws(a, b, once)[0] == pytest.approx(whole, rel=1e-12)
    rows = np.array([0, 0, 1, 2, 3, 4, 5, 6])
    twice = np.bincount(rows, minlength=8)[None]
    repeated = kernel_distance(a[rows], b[rows], subset_size=8, subsets=1).value
    assert kernel_of_draws(a, b, twice)[0] == pytest.approx(repeated, rel=1e-12)


def test_kappa_knows_guessing_from_seeing() -> None:
    """Cohen's example by hand: 20 and 15 of 50 agree, 5 and 10 do not: kappa is (0.7 - 0.5) / (1 - 0.5)."""
    matrix = ConfusionMatrix(2)
    truth, found = np.repeat([0, 0, 1, 1], [20, 5, 10, 15]), np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    matrix.add(truth, found)
    assert by_chance(matrix.sums) == pytest.approx(0.5)
    assert kappa_of(matrix.sums) == pytest.approx(0.4)
    constant = ConfusionMatrix(2)
    constant.add(np.repeat([0, 1], [90, 10]), np.zeros(100, int))
    assert (constant.accuracy, kappa_of(constant.sums)) == (0.9, 0.0)


def test_equal_models_are_seldom_called_the_best_and_better_ones_usually() -> None:
    """Of models that are equally good, 5 % are expected to lead by more than a 95 % interval."""
    random, lucky, seen = np.random.default_rng(0), 0, 0
    for trial in range(300):
        hard = random.normal(50, 20, 30)  # what makes a sample hard for every model
        errors = [np.abs(hard + random.normal(shift, 3, 30)) for shift in (0, 0, 4)]
        scores = [Scores(np.arange(30), absolute=error) for error in errors]

        def best(first: int, second: int, trial: int = trial, scores: list[Scores] = scores) -> str | None:
            pair = [scores[first], scores[second]]
            rows = [Row(str(n), "images", None, 30, l1=float(s.absolute.mean() / 255)) for n, s in enumerate(pair)]  # type: ignore[union-attr]
            return verdicts(rows, draw_again(pair, Scores(np.arange(30)), trial), {})["l1"].best

        lucky += best(0, 1) is not None
        seen += best(0, 2) == "0"
    assert lucky <= 0.08 * 300
    assert seen >= 0.9 * 300


@pytest.mark.parametrize(("spread_of", "best"), [((1e-3, 1e-3), "a"), ((1e-3, 1.0), None), ((1.0, 1e-3), None)])
def test_the_best_leads_all_others_by_more_than_the_noise(spread_of: tuple[float, float], best: str | None) -> None:
    """Also the third, whose own images may differ so much that nothing is known of it."""
    random = np.random.default_rng(0)
    rows = [Row(name, "images", None, 30, l1=l1) for name, l1 in (("b", 0.2), ("a", 0.1), ("c", 0.3))]
    second, third = ({"l1": random.normal(0, scale, 200)} for scale in spread_of)
    drawn = Drawn(30, (second, {"l1": np.zeros(200)}, third), (None, None, None), {})
    assert verdicts(rows, drawn, {})["l1"].best == best


@pytest.mark.parametrize(("noise", "best"), [(0, {0: "a", 1: "b"}), (20, {1: "b"})])
def test_a_class_is_found_best_only_by_more_than_the_noise(noise: float, best: dict[int, str]) -> None:
    right = np.array([[[60, 20]], [[50, 80]]]).repeat(200, axis=1)  # of 100 pixels of each class, model x draw x class
    right[1, :, 0] += np.random.default_rng(0).normal(0, noise, 200).astype(int)
    truth = np.full_like(right, 100)
    sums = np.stack([right, truth, right], axis=2)
    rows = [
        Row(name, "images", None, 30, classes=tuple(ClassScore(n, 0.5, iou) for n, iou in enumerate(ious)))
        for name, ious in (("a", (0.6, 0.2)), ("b", (0.5, 0.8)))
    ]
    assert best_by_class(rows, Drawn(30, ({}, {}), tuple(sums), {}), {}) == best
