"""Tolerances: how far a candidate may be from the reference, and which values are decided by rounding alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError
from spade_deploy.spec import Precision, RoundingError

IMAGE_RANGE = 2.0
"""Images lie in [-1, 1]: this is the peak that PSNR and SSIM refer to."""
FP32_FACTOR = 6.0
"""The worst that was measured is 2.3 (tests/validation/test_validate.py has the models). A right graph rounds about as
often as eager PyTorch does."""
FP32_FLOOR = 2e-7
"""A few units in the last place of a value near 1."""
FP16_FACTOR = 2.0**13
"""Half precision rounds at 11 bits, float32 at 24: errors grow by 2^13 at most. Measured worst mean 4751."""
FP16_FLOOR = 2e-4
"""A fortieth of a grey level. It is for saturated images, whose float32 rounding error is zero."""
FP16_LOGIT_FACTOR = 2.0**15
"""The factor for the mean rounding error of the logits: 2^13 as for the image, times four, since the largest error is
about four times the mean."""
BF16_FACTOR = 40_000.0
"""bfloat16 rounds at 8 bits, float32 at 24: errors grow by 2^16 at most, and less where sums are float32. The worst
measured mean is 32763 (SPADE with instance norm, lookup), without instance norm 24979. Of networks that are a little
wrong 71 of 112 are seen: a small error of scale can hide under bf16's rounding (benchmarks/bf16_tolerance.py)."""
BF16_FLOOR = 2e-4
"""A fortieth of a grey level, as for fp16."""
BF16_MIN_PSNR_DB = 30.0
"""Models that amplify rounding, with instance norm or large random weights, have 31.8 dB and more; the shipped Earth
model has 57 and more. A user who wants more asks for it."""
BF16_MIN_SSIM = 0.95
"""The lowest that was measured is 0.958, of SPADE with instance norm."""
FP16_MIN_PSNR_DB = 45.0
FP16_MIN_SSIM = 0.99
STRESS_MIN_PSNR_DB = 40.0
"""The PSNR that half precision has to reach on each stress map. It is five less than on ordinary maps: noise has larger
activations and so larger rounding errors. The worst that was measured is 54.6 dB: pix2pixHD, a map of one class."""
UNDECIDED = 0.05
"""A value of the image that rounding may move by more than this, six grey levels, tells nothing about the graph."""
MOST_UNDECIDED = 0.5
"""The share of undecided values up to which the other values prove something."""


@dataclass(frozen=True)
class Tolerance:
    """The limits of a candidate's error; a limit that is None is not checked."""

    max_abs: float | None = None
    """The largest error of a value of the float image in [-1, 1]."""
    mean_abs: float | None = None
    """The mean error of the float image in [-1, 1]."""
    min_psnr_db: float | None = None
    """The least PSNR in dB."""
    min_ssim: float | None = None
    """The least structural similarity."""
    max_flip: int | None = None
    """The largest change of one uint8 colour value."""
    flip_share: float | None = None
    """The share of pixels with any changed colour value."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def of_two_runtimes(self) -> tuple[str, float]:
        """How far two runtimes may be from each other if each is within this tolerance.

        Returns the statistic that is limited, 'max' or 'mean' of the absolute difference, and the limit of it. Raises
        ConfigError for a tolerance that limits neither a maximum, a mean nor a PSNR.
        """
        if self.max_abs is not None:
            return "max", 2 * self.max_abs
        held = [] if self.mean_abs is None else [self.mean_abs]
        if self.min_psnr_db is not None:  # the mean error is no larger than its root mean square
            held.append(IMAGE_RANGE * 10 ** (-self.min_psnr_db / 20))
        if not held:
            raise ConfigError("a tolerance without a maximum, a mean or a PSNR limits no difference of two runtimes")
        return "mean", 2 * min(held)


STRESS_TOLERANCE = Tolerance(min_psnr_db=STRESS_MIN_PSNR_DB)


def tolerance_for(precision: Precision, rounding: RoundingError, min_psnr_db: float | None = None) -> Tolerance:
    """The tolerance of a graph: the error that rounding alone can cause in this very model.

    rounding: the float32 error that eager PyTorch itself has. A right graph differs from eager PyTorch by rounding
    alone, so fp32 is held to a small multiple of it, and fp16 to what its shorter mantissa makes of it. fp16 is also
    held to an image quality, since a model that amplifies rounding may be within that and still look wrong.
    bf16 is held to the same three as fp16, with limits of its own.
    int8 is lossy by design: it is held to the quality that it was made to reach, `min_psnr_db`, and to nothing else.
    """
    if precision is Precision.INT8:
        if min_psnr_db is None:
            raise ConfigError("an int8 graph without min_psnr_db has no tolerance")
        return Tolerance(min_psnr_db=min_psnr_db)
    if precision is Precision.FP32:
        return Tolerance(
            max_abs=FP32_FACTOR * rounding.max_abs + FP32_FLOOR,
            mean_abs=FP32_FACTOR * rounding.mean_abs + FP32_FLOOR / 10,
            max_flip=1,
        )
    if precision is Precision.BF16:
        return Tolerance(
            mean_abs=BF16_FACTOR * rounding.mean_abs + BF16_FLOOR, min_psnr_db=BF16_MIN_PSNR_DB, min_ssim=BF16_MIN_SSIM
        )
    return Tolerance(
        mean_abs=FP16_FACTOR * rounding.mean_abs + FP16_FLOOR, min_psnr_db=FP16_MIN_PSNR_DB, min_ssim=FP16_MIN_SSIM
    )


def logit_margin(precision: Precision, rounding: RoundingError) -> float:
    """How far rounding alone may move a logit in a graph of this precision."""
    if precision is Precision.FP16:
        return FP16_LOGIT_FACTOR * rounding.logit_mean
    # bf16 and int8 are held to a quality of all values. What bf16's rounding may move is most of an image.
    return FP32_FACTOR * rounding.logit_max


def is_undecided(logits: NDArray[Any], margin: float) -> NDArray[np.bool_]:
    """Where moving a logit by `margin` moves its tanh by more than UNDECIDED.

    A trained model has no such values. One whose logits are huge (random weights with unconverged spectral norm) is
    at +1 or -1 everywhere, and where a logit is closer to zero than its rounding error its sign is a matter of luck.
    """
    size = np.abs(logits.astype(np.float64))
    moved: NDArray[np.bool_] = np.tanh(size) - np.tanh(size - margin) > UNDECIDED
    return moved
