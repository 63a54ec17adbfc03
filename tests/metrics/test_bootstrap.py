"""The noise of figures: intervals against known ones, and how often a model is called better by luck."""

from __future__ import annotations

import numpy as np
import pytest

from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.scores import Scores, draw_again
from spade_deploy.evaluation.verdict import verdicts
from spade_deploy.metrics import kernel_distance
from spade_deploy.metrics.bootstrap import draws, half_width, student_t
from spade_deploy.metrics.confusion import ConfusionMatrix, by_chance, kappa_of
from spade_deploy.metrics.distances import kernel_of_draws


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_students_t(freedom: int, table: float) -> None:
    assert student_t(freedom) == pytest.approx(table, rel=3e-3)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = half_width(draws(400, seed=1, times=2000) @ values / 400, 400)
    assert found == pytest.approx(student_t(399) * values.std(ddof=1) / 20, rel=0.05)  # measured 0.01


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
