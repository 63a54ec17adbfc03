from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from spade_deploy.errors import ConfigError
from spade_deploy.metrics.differences import DiffAccumulator, ssim
from spade_deploy.metrics.judge import Judge, decided_only, too_undecided
from spade_deploy.metrics.tolerances import STRESS_TOLERANCE, Tolerance, is_undecided, logit_margin, tolerance_for
from spade_deploy.spec import LabelSpec, Precision, RoundingError


def to_pixels(image: np.ndarray) -> np.ndarray:
    return np.clip((image + 1) / 2 * 255, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def images(seed: int, count: int = 3, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(-1, 1, (count, 3, *size))
    return values.astype(np.float32)


def diff_of(reference: np.ndarray, candidate: np.ndarray, label: np.ndarray, ids: int = 3):
    total = DiffAccumulator(tuple(f"class {index}" for index in range(ids)))
    for index in range(len(reference)):  # one by one: adding up must not depend on the batches
        part = slice(index, index + 1)
        a, b = reference[part], candidate[part]
        total.add(label[part], (a, to_pixels(a)), (b, to_pixels(b)))
    return total.result()


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_figures_equal_those_of_scikit_image(noise: float) -> None:
    reference = images(1)
    candidate = np.clip(reference + np.random.default_rng(2).normal(0, noise, reference.shape), -1, 1)
    candidate = candidate.astype(np.float32)
    diff = diff_of(reference, candidate, np.zeros(reference.shape[::2][:1] + reference.shape[2:], np.uint8))
    error = np.abs(reference.astype(np.float64) - candidate)
    assert diff.max_abs == pytest.approx(error.max(), rel=1e-12)
    assert diff.mean_abs == pytest.approx(error.mean(), rel=1e-12)
    assert diff.psnr_db == pytest.approx(peak_signal_noise_ratio(reference, candidate, data_range=2.0), abs=1e-4)
    expected = np.mean(
        [
            structural_similarity(
                a.astype(np.float64),
                b.astype(np.float64),
                data_range=2.0,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for a, b in zip(reference, candidate, strict=True)
        ]
    )
    assert diff.ssim == pytest.approx(expected, abs=1e-9)


def test_flips_and_classes() -> None:
    reference = np.full((1, 3, 4, 4), -1.0, np.float32)
    candidate = reference.copy()
    candidate[0, 1, 0, 0] += 2 * 1.5 / 255  # one value of one pixel up by one
    candidate[0, :, 3, 3] += 2 * 20.5 / 255  # three values of another by twenty
    label = np.zeros((1, 4, 4), np.uint8)
    label[0, 3] = 2
    diff = diff_of(reference, candidate, label)
    assert diff.flips == {"1": 1, "2": 0, "3-4": 0, "5-16": 0, "17+": 1}
    assert (diff.max_flip, diff.flip_share) == (20, 2 / 16)
    assert [(entry.label_id, entry.share, entry.flip_share) for entry in diff.classes] == [
        (0, 12 / 16, 1 / 12),
        (2, 4 / 16, 1 / 4),
    ]
    assert diff.classes[1].max_abs == pytest.approx(41 / 255, rel=1e-5)


def test_identical_images() -> None:
    reference = images(3)
    diff = diff_of(reference, reference, np.zeros((3, 24, 40), np.uint8))
    assert (diff.max_abs, diff.psnr_db, diff.flip_share) == (0, None, 0)
    assert diff.ssim == pytest.approx(1)
    assert diff.failures(Tolerance(max_abs=0, min_psnr_db=200, min_ssim=0.999999)) == []
    json.dumps(diff.to_json(), allow_nan=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail_every_tolerance(value: float) -> None:
    reference = images(3)
    candidate = reference.copy()
    candidate[1, 0, 2, 2] = value
    with np.errstate(invalid="ignore"):
        total = DiffAccumulator(("only",))
        label = np.zeros((3, 24, 40), np.uint8)
        total.add(label, (reference, to_pixels(reference)), (candidate, to_pixels(reference)))
    diff = total.result()
    assert diff.failures(Tolerance()) == ["the image holds NaN or infinity"]
    json.dumps(diff.to_json(), allow_nan=False)


def test_each_limit_is_held() -> None:
    reference = images(4)
    candidate = np.clip(reference + 0.02, -1, 1)
    diff = diff_of(reference, candidate, np.zeros((3, 24, 40), np.uint8))
    assert diff.failures(Tolerance(max_abs=0.021, mean_abs=0.021, min_psnr_db=30, min_ssim=0.8, max_flip=4)) == []
    for tolerance, word in [
        (Tolerance(max_abs=0.01), "max absolute"),
        (Tolerance(mean_abs=0.01), "mean absolute"),
        (Tolerance(min_psnr_db=60), "PSNR"),
        (Tolerance(min_ssim=0.9999999), "SSIM"),
        (Tolerance(max_flip=1), "largest change"),
        (Tolerance(flip_share=0.5), "flipped"),
    ]:
        (sentence,) = diff.failures(tolerance)
        assert word in sentence


def test_fp32_is_held_to_the_references_own_rounding() -> None:
    tight = tolerance_for(Precision.FP32, RoundingError(1e-6, 1e-7, 1e-6, 1e-7))
    loose = tolerance_for(Precision.FP32, RoundingError(1e-4, 1e-5, 1e-4, 1e-5))
    assert tight.max_abs is not None
    assert loose.max_abs is not None
    assert tight.max_abs == pytest.approx(6.2e-6)
    assert loose.max_abs == pytest.approx(6e-4, rel=0.01)
    # Measured factors are in tests/validation/test_validate.py; here stands what they make.
    expected = {"max_abs": 6.2e-6, "mean_abs": 6.2e-7, "max_flip": 1}
    empty = {"min_psnr_db": None, "min_ssim": None, "flip_share": None}
    assert tight.to_json() == pytest.approx({**expected, **empty})


def test_int8_is_held_to_its_target_alone() -> None:
    rounding = RoundingError(1e-6, 1e-7, 1e-6, 1e-7)
    assert tolerance_for(Precision.INT8, rounding, 37.5) == Tolerance(min_psnr_db=37.5)
    with pytest.raises(ConfigError, match="without min_psnr_db"):
        tolerance_for(Precision.INT8, rounding)


def test_a_limit_is_met_by_a_figure_that_equals_it() -> None:
    reference = images(4, 3, (24, 40))
    diff = diff_of(reference, np.clip(reference + 0.02, -1, 1), np.zeros((3, 24, 40), np.uint8))
    assert diff.psnr_db is not None
    exactly = Tolerance(diff.max_abs, diff.mean_abs, diff.psnr_db, diff.ssim, diff.max_flip, diff.flip_share)
    assert diff.failures(exactly) == []
    down = Tolerance(*(value * (1 - 1e-9) for value in (diff.max_abs, diff.mean_abs)), diff.psnr_db * (1 + 1e-9))
    assert len(diff.failures(down)) == 3


@pytest.mark.parametrize("size", [(5, 30), (11, 11), (32, 3)])
def test_ssim_of_small_images(size: tuple[int, int]) -> None:
    first, second = images(5, 1, size)[0], images(6, 1, size)[0]
    assert ssim(first, first) == pytest.approx(1)
    assert -1 <= ssim(first, second) < 0.5


TYPICAL = RoundingError(max_abs=3e-6, mean_abs=2e-7, logit_max=5e-6, logit_mean=4e-7)
"""What float32 costs a small trained model."""


def test_the_tolerances_are_the_stated_ones() -> None:
    # Written out: a constant that is changed is to be changed here, too, with the measurement that allows it.
    fp32 = tolerance_for(Precision.FP32, TYPICAL)
    assert fp32.max_abs == pytest.approx(6 * 3e-6 + 2e-7, rel=1e-9)
    assert fp32.mean_abs == pytest.approx(6 * 2e-7 + 2e-8, rel=1e-9)
    assert (fp32.max_flip, fp32.flip_share, fp32.min_psnr_db, fp32.min_ssim) == (1, None, None, None)
    fp16 = tolerance_for(Precision.FP16, TYPICAL)
    assert fp16.mean_abs == pytest.approx(8192 * 2e-7 + 2e-4, rel=1e-9)
    assert (fp16.min_psnr_db, fp16.min_ssim) == (45.0, 0.99)
    assert (fp16.max_abs, fp16.max_flip, fp16.flip_share) == (None, None, None)
    bf16 = tolerance_for(Precision.BF16, TYPICAL)
    assert bf16.mean_abs == pytest.approx(40_000 * 2e-7 + 2e-4, rel=1e-9)
    assert (bf16.min_psnr_db, bf16.min_ssim) == (30.0, 0.95)
    assert (bf16.max_abs, bf16.max_flip, bf16.flip_share) == (None, None, None)
    assert tolerance_for(Precision.INT8, TYPICAL, 35.0) == Tolerance(min_psnr_db=35.0)
    with pytest.raises(ConfigError, match="no tolerance"):
        tolerance_for(Precision.INT8, TYPICAL)


def test_how_far_rounding_may_move_a_logit() -> None:
    assert logit_margin(Precision.FP32, TYPICAL) == pytest.approx(6 * 5e-6, rel=1e-9)
    for held_to_a_quality in (Precision.INT8, Precision.BF16):
        assert logit_margin(held_to_a_quality, TYPICAL) == logit_margin(Precision.FP32, TYPICAL)
    assert logit_margin(Precision.FP16, TYPICAL) == pytest.approx(32768 * 4e-7, rel=1e-9)


def test_a_value_is_undecided_where_tanh_may_move_by_a_twentieth() -> None:
    # tanh(m) passes 0.05 at m = 0.05004.
    assert is_undecided(np.array([0.0]), 0.0501).tolist() == [True]
    assert is_undecided(np.array([0.0]), 0.0500).tolist() == [False]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_of_a_typical_model_everything_is_decided(precision: Precision) -> None:
    """A margin a thousand times as wide leaves out values that are wrong."""
    logits = np.linspace(-3, 3, 3 * 24 * 40, dtype=np.float32).reshape(1, 3, 24, 40)
    reference = np.tanh(logits)
    wrong = reference.copy()
    wrong[:, :, ::2] *= -1
    trusted, candidate = (reference, to_pixels(reference)), (wrong, to_pixels(wrong))
    (judged, pixels), share = decided_only(logits, logit_margin(precision, TYPICAL), trusted, candidate)
    assert share == 0
    assert np.array_equal(judged, wrong)
    assert np.array_equal(pixels, to_pixels(wrong))
    # An export of the tiny models has ten times that rounding; even there it is less than one value in two hundred.
    loose = replace(TYPICAL, logit_max=5e-5, logit_mean=1e-6)
    assert decided_only(logits, logit_margin(precision, loose), trusted, candidate)[1] < 0.005


def test_a_verdict_needs_half_of_the_values() -> None:
    assert too_undecided(0.0) == too_undecided(0.5) == []
    (sentence,) = too_undecided(0.501)
    assert "rounding alone decides 50%" in sentence
    assert "nothing is left to compare" in too_undecided(1.0)[0]


def answers(logits: np.ndarray) -> dict[str, np.ndarray]:
    image = np.tanh(logits)
    return {"image": image, "pixels": to_pixels(image), "logits": logits}


LOGITS = np.linspace(-3, 3, 2 * 3 * 24 * 40, dtype=np.float32).reshape(2, 3, 24, 40)
LABEL = np.zeros((2, 24, 40), np.uint8)
LABELS = LabelSpec(3, names=("sea", "sand", "sky"))


def test_outputs_are_judged_one_after_the_other() -> None:
    expected = answers(LOGITS)
    off = {**expected, "image": expected["image"] + np.float32(0.01)}
    at_once, one_by_one = (Judge(LABELS, Precision.FP32, TYPICAL) for _ in range(2))
    assert at_once.add(LABEL, expected, off) == pytest.approx(0.01, rel=1e-4)
    for k in range(2):
        part = slice(k, k + 1)
        one_by_one.add(LABEL[part], {n: a[part] for n, a in expected.items()}, {n: a[part] for n, a in off.items()})
    assert at_once.verdict() == one_by_one.verdict()
    verdict = at_once.verdict()
    assert (at_once.images, verdict.passed, verdict.undecided_share) == (2, False, 0.0)
    assert "max absolute error 0.01 is over" in verdict.failures[0]
    assert verdict.tolerance == tolerance_for(Precision.FP32, TYPICAL)
    assert [entry.name for entry in verdict.diff.classes] == ["sea"]
    right = Judge(LABELS, Precision.FP32, TYPICAL)
    assert right.add(LABEL, expected, expected) == 0
    assert right.verdict().passed


def test_undecided_values_are_in_the_figures_and_not_in_the_verdict() -> None:
    logits = LOGITS.copy()
    logits[0, 0, 0, 0] = 1e-3
    expected = answers(logits)
    found = {name: array.copy() for name, array in expected.items()}
    found["image"][0, 0, 0, 0] = -1
    judge = Judge(LABELS, Precision.FP32, replace(TYPICAL, logit_max=0.0086))
    assert judge.add(LABEL, expected, found) > 1
    verdict = judge.verdict()
    assert verdict.passed
    assert verdict.diff.max_abs > 1
    assert verdict.decided.max_abs == 0
    assert verdict.undecided_share > 0
    for value in (np.nan, np.inf):  # that is no rounding
        found["image"][0, 0, 0, 0] = value
        judge = Judge(LABELS, Precision.FP32, replace(TYPICAL, logit_max=0.0086))
        judge.add(LABEL, expected, found)
        assert judge.verdict().failures == ("the image holds NaN or infinity",)


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("pixels", None, "pixels is missing"),
        ("image", lambda a: a[:, :, :-1], r"image has shape (2, 3, 23, 40), not (2, 3, 24, 40)"),
        ("pixels", lambda a: a[..., :2], r"pixels has shape (2, 24, 40, 2), not (2, 24, 40, 3)"),
        ("image", lambda a: a.astype(np.float16), "image has type float16, not float32"),
        ("pixels", lambda a: a.astype(np.float32), "pixels has type float32, not uint8"),
    ],
)
def test_outputs_of_other_names_shapes_and_types_fail(name: str, changed: object, sentence: str) -> None:
    expected = answers(LOGITS)
    found = dict(expected)
    if callable(changed):
        found[name] = changed(found[name])
    else:
        del found[name]
    judge = Judge(LABELS, Precision.FP32, TYPICAL)
    judge.add(LABEL, expected, expected)
    assert judge.add(LABEL, expected, found) == np.inf
    verdict = judge.verdict()
    assert verdict.failures == (sentence,)
    assert not verdict.diff.finite
    json.dumps(verdict.diff.to_json(), allow_nan=False)


def test_a_stress_map_is_held_to_a_quality_alone() -> None:
    expected = answers(LOGITS * 0)  # rounding decides everything
    judge = Judge.of_stress_map(LABELS, replace(TYPICAL, logit_max=1.0, logit_mean=1.0))
    judge.add(LABEL, expected, {**expected, "image": expected["image"] + np.float32(1)})
    assert judge.verdict().passed
    assert judge.verdict().undecided_share == 1
    assert judge.verdict().tolerance == STRESS_TOLERANCE == Tolerance(min_psnr_db=40.0)
    strict = Judge(LABELS, Precision.FP16, replace(TYPICAL, logit_max=1.0, logit_mean=1.0))
    strict.add(LABEL, expected, expected)
    assert "nothing is left to compare" in strict.verdict().failures[0]


def test_two_runtimes_may_differ_by_twice_what_one_may() -> None:
    assert Tolerance(max_abs=1.0, mean_abs=0.1).of_two_runtimes() == ("max", 2.0)
    assert Tolerance(mean_abs=0.5).of_two_runtimes() == ("mean", 1.0)
    assert Tolerance(mean_abs=0.5, min_psnr_db=40.0).of_two_runtimes() == ("mean", pytest.approx(0.04))
    with pytest.raises(ConfigError, match="limits no difference"):
        Tolerance(min_ssim=0.9).of_two_runtimes()
