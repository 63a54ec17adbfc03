"""Scores of predictions and of pixels, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.metrics import ConfusionMatrix, PixelError
from spade_deploy.metrics.pixels import MAX_PSNR_DB


def test_against_loops() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 6, (3, 9, 7))  # 5 is dontcare
    truth[truth == 3] = 2  # class 3 does not occur in the truth
    predicted = random.integers(-1, 7, truth.shape)  # -1, 5 and 6 are no classes
    matrix = ConfusionMatrix(5)
    for t, p in zip(truth, predicted, strict=True):
        matrix.add(t, p)
    pairs = [(t, p) for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True) if t < 5]
    assert matrix.accuracy == pytest.approx(sum(t == p for t, p in pairs) / len(pairs), rel=1e-12)
    expected = {}
    for label in (0, 1, 2, 4):
        both = sum(t == label and p == label for t, p in pairs)
        either = sum(t == label or p == label for t, p in pairs)
        expected[label] = both / either
    assert {score.label_id: score.iou for score in matrix.classes} == pytest.approx(expected, rel=1e-12)
    assert sum(score.share for score in matrix.classes) == pytest.approx(1)
    assert matrix.miou == pytest.approx(np.mean(list(expected.values())), rel=1e-12)
    with_absent = np.mean([*expected.values(), 0.0])
    assert matrix.miou != pytest.approx(with_absent)  # a class that is only predicted is none of the mean


def test_right_and_wrong() -> None:
    matrix = ConfusionMatrix(3)
    truth = np.array([[0, 1], [2, 3]])
    matrix.add(truth, truth)
    assert (matrix.miou, matrix.accuracy) == (1.0, 1.0)
    matrix.add(truth, np.full_like(truth, -1))
    assert (matrix.miou, matrix.accuracy) == (0.5, 0.5)
    single = ConfusionMatrix(3)
    single.add(np.array([[1]]), np.array([[1]]))
    assert single.accuracy == 1.0
    assert [(score.label_id, score.share, score.iou) for score in single.classes] == [(1, 1.0, 1.0)]
    empty = ConfusionMatrix(3)
    empty.add(np.full((2, 2), 3), np.zeros((2, 2), int))
    assert (empty.miou, empty.accuracy, empty.classes) == (0.0, 0.0, ())
    with pytest.raises(ConfigError, match=r"\(2, 2\).*\(1, 2\)"):
        matrix.add(truth, truth[:1])


def test_pixels_by_hand() -> None:
    errors = PixelError()
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    errors.add(black, black)
    assert (errors.l1, errors.psnr) == (0.0, MAX_PSNR_DB)
    errors.add(white, black)  # as unsigned bytes, 0 - 255 would be 1
    errors.add(black, white)
    assert errors.l1 == pytest.approx(2 / 3)
    assert errors.psnr == pytest.approx(10 * np.log10(3 / 2))
    grey = PixelError()
    grey.add(np.array([[[200, 10, 60]]], np.uint8), np.array([[[100, 20, 60]]], np.uint8))
    assert grey.l1 == pytest.approx((100 + 10 + 0) / 3 / 255)
    assert grey.psnr == pytest.approx(10 * np.log10(255**2 * 3 / (100**2 + 10**2)))
    one = PixelError()
    one.add(np.array([51], np.uint8), np.array([0], np.uint8))
    assert one.l1 == pytest.approx(0.2)
    assert one.psnr == pytest.approx(10 * np.log10(25))
    assert PixelError().l1 == 0
    assert MAX_PSNR_DB == 100
    with pytest.raises(ConfigError, match="cannot be compared"):
        errors.add(black, white[:1])
