"""How far a candidate's images are from the reference's: the figures, and the tolerances they are held to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError
from spade_deploy.spec import Precision, RoundingError

IMAGE_RANGE = 2.0
"""Images lie in [-1, 1]: the peak that PSNR and SSIM refer to."""


@dataclass(frozen=True)
class Tolerance:
    """What a candidate may differ by. Errors are of the float image in [-1, 1].

    max_flip: the largest change of one uint8 colour value. flip_share: share of pixels with any changed value.
    None: not held.
    """

    max_abs: float | None = None
    mean_abs: float | None = None
    min_psnr_db: float | None = None
    min_ssim: float | None = None
    max_flip: int | None = None
    flip_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


FP32_FACTOR = 6.0
"""Measured worst 2.3 (tests/test_validation.py has the models): other kernels, the same number of roundings."""
FP32_FLOOR = 2e-7
"""A few units in the last place of a value near 1."""
FP16_FACTOR = 2.0**13
"""Half precision rounds at 11 bits, float32 at 24: errors grow by 2^13 at most. Measured worst mean 4751."""
FP16_FLOOR = 2e-4
"""A fortieth of a grey level: for images that saturate, whose float32 rounding error is zero."""
FP16_LOGIT_FACTOR = 2.0**15
"""Of the mean rounding error of the logits: 2^13, and that a largest error is about four times a mean one."""
UNDECIDED = 0.05
"""A value of the image that rounding may move by more than this, six grey levels, tells nothing about the graph."""
MOST_UNDECIDED = 0.5


def is_undecided(logits: NDArray[Any], margin: float) -> NDArray[np.bool_]:
    """Where moving a logit by `margin` moves its tanh by more than UNDECIDED.

    A trained model has no such values. One whose logits are huge (random weights with unconverged spectral norm) is
    at +1 or -1 everywhere, and where a logit is closer to zero than its rounding error its sign is a matter of luck.
    """
    size = np.abs(logits.astype(np.float64))
    moved: NDArray[np.bool_] = np.tanh(size) - np.tanh(size - margin) > UNDECIDED
    return moved


ImagePair = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""An image N x 3 x H x W and its pixels N x H x W x 3."""


def decided_only(
    logits: NDArray[Any], margin: float, reference: ImagePair, candidate: ImagePair
) -> tuple[ImagePair, float]:
    """The candidate with the reference's values where rounding alone decides, and the share of those values.

    logits: the reference's, N x 3 x H x W. margin: see `is_undecided`. What is not finite stays: that is no rounding.
    """
    undecided = is_undecided(logits, margin)
    image = np.where(undecided & np.isfinite(candidate[0]), reference[0], candidate[0])
    pixels = np.where(undecided.transpose(0, 2, 3, 1), reference[1], candidate[1])
    return (image, pixels), float(undecided.mean())


def too_undecided(share: float) -> list[str]:
    """A failure, in words, where so many values are left out that the rest proves nothing."""
    if share <= MOST_UNDECIDED:
        return []
    return [f"rounding alone decides {share:.0%} of the values: nothing is left to compare"]


def logit_margin(precision: Precision, rounding: RoundingError) -> float:
    """How far rounding alone may move a logit in a graph of this precision."""
    if precision is not Precision.FP16:  # int8 is held to a quality, which has room for more than rounding
        return FP32_FACTOR * rounding.logit_max
    return FP16_LOGIT_FACTOR * rounding.logit_mean


def tolerance_for(precision: Precision, rounding: RoundingError, min_psnr_db: float | None = None) -> Tolerance:
    """The stated tolerance of a graph: what rounding alone can do to this very model.

    rounding: the float32 error that eager PyTorch itself has. A right graph differs from eager PyTorch by rounding
    alone, so fp32 is held to a small multiple of it, and fp16 to what its shorter mantissa makes of it. fp16 is also
    held to an image quality, since a model that amplifies rounding may be within that and still look wrong.
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
    return Tolerance(mean_abs=FP16_FACTOR * rounding.mean_abs + FP16_FLOOR, min_psnr_db=45.0, min_ssim=0.99)


@dataclass(frozen=True)
class ClassDiff:
    """The figures of one class: over the pixels whose label it is."""

    label_id: int
    name: str
    share: float
    mean_abs: float
    max_abs: float
    flip_share: float


@dataclass(frozen=True)
class OutputDiff:
    """The figures of one candidate over a number of images.

    psnr_db is None where the images are identical. flips: how many pixels changed by 1, 2, 3-4, 5-16, 17 and more
    of 255 (the largest of the three colours counts). Not finite values in the candidate count as an infinite error.
    """

    images: int
    max_abs: float
    mean_abs: float
    psnr_db: float | None
    ssim: float
    flip_share: float
    max_flip: int
    flips: dict[str, int]
    finite: bool
    classes: tuple[ClassDiff, ...]

    def failures(self, tolerance: Tolerance) -> list[str]:
        """One sentence for each limit that is passed; empty when the candidate is within all of them."""
        if not self.finite:
            return ["the image holds NaN or infinity"]
        found = []
        for what, value, limit in (
            ("max absolute error", self.max_abs, tolerance.max_abs),
            ("mean absolute error", self.mean_abs, tolerance.mean_abs),
            ("share of flipped pixels", self.flip_share, tolerance.flip_share),
            ("largest change of a uint8 value", self.max_flip, tolerance.max_flip),
        ):
            if limit is not None and not value <= limit:
                found.append(f"{what} {value:.3g} is over {limit:.3g}")
        psnr_db = math.inf if self.psnr_db is None else self.psnr_db
        if tolerance.min_psnr_db is not None and not psnr_db >= tolerance.min_psnr_db:
            found.append(f"PSNR {psnr_db:.1f} dB is under {tolerance.min_psnr_db:.1f} dB")
        if tolerance.min_ssim is not None and not self.ssim >= tolerance.min_ssim:
            found.append(f"SSIM {self.ssim:.4f} is under {tolerance.min_ssim:.4f}")
        return found

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        if not self.finite:
            value["max_abs"] = value["mean_abs"] = None
            for entry in value["classes"]:
                entry["max_abs"] = entry["mean_abs"] = None
        return value


FLIP_BINS = (("1", 1, 1), ("2", 2, 2), ("3-4", 3, 4), ("5-16", 5, 16), ("17+", 17, 255))


@dataclass
class DiffAccumulator:
    """Adds up the figures image by image, so that a folder of any length fits in memory.

    label_names: one name an id; their number is the number of ids that are told apart.
    """

    label_names: tuple[str, ...]
    images: int = 0
    finite: bool = True
    _square_error: float = 0.0
    _values: int = 0
    _ssim: float = 0.0
    _pixels: NDArray[np.int64] = field(init=False)
    _abs_sum: NDArray[np.float64] = field(init=False)
    _abs_max: NDArray[np.float64] = field(init=False)
    _flipped: NDArray[np.int64] = field(init=False)
    _flip_counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        ids = len(self.label_names)
        self._pixels, self._flipped = np.zeros(ids, np.int64), np.zeros(ids, np.int64)
        self._abs_sum, self._abs_max = np.zeros(ids), np.zeros(ids)
        self._flip_counts = np.zeros(256, np.int64)

    def add(
        self,
        label: NDArray[Any],
        reference: ImagePair,
        candidate: ImagePair,
    ) -> None:
        """label: N x H x W ids."""
        for ids, *one in zip(label, *reference, *candidate, strict=True):
            self._add_one(ids.astype(np.int64).ravel(), *one)

    def _add_one(
        self,
        ids: NDArray[np.int64],
        reference: NDArray[np.float32],
        reference_pixels: NDArray[np.uint8],
        candidate: NDArray[np.float32],
        candidate_pixels: NDArray[np.uint8],
    ) -> None:
        self.images += 1
        self.finite &= bool(np.isfinite(candidate).all())
        wide_candidate = np.nan_to_num(candidate.astype(np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        with np.errstate(invalid="ignore"):
            error = np.abs(wide_candidate - reference.astype(np.float64))
            self._ssim += ssim(reference, candidate) if self.finite else 0.0
        self._square_error += float(np.square(error).sum())
        self._values += error.size
        changed = np.abs(reference_pixels.astype(np.int16) - candidate_pixels.astype(np.int16)).max(axis=-1).ravel()
        count = len(self.label_names)
        self._pixels += np.bincount(ids, minlength=count)
        self._abs_sum += np.bincount(ids, weights=error.mean(axis=0).ravel(), minlength=count)
        np.maximum.at(self._abs_max, ids, error.max(axis=0).ravel())
        self._flipped += np.bincount(ids[changed > 0], minlength=count)
        self._flip_counts += np.bincount(changed, minlength=256)

    def result(self) -> OutputDiff:
        """The figures over everything added so far; at least one image."""
        pixels = int(self._pixels.sum())
        mean_square = self._square_error / self._values
        changed = np.flatnonzero(self._flip_counts[1:]) + 1
        return OutputDiff(
            images=self.images,
            max_abs=float(self._abs_max.max()),
            mean_abs=float(self._abs_sum.sum() / pixels),
            psnr_db=psnr_db(mean_square) if self.finite else 0.0,
            ssim=self._ssim / self.images,
            flip_share=float(self._flip_counts[1:].sum() / pixels),
            max_flip=int(changed.max()) if changed.size else 0,
            flips={name: int(self._flip_counts[low : high + 1].sum()) for name, low, high in FLIP_BINS},
            finite=self.finite,
            classes=tuple(self._class(int(label_id), pixels) for label_id in np.flatnonzero(self._pixels)),
        )

    def _class(self, label_id: int, pixels: int) -> ClassDiff:
        own = int(self._pixels[label_id])
        return ClassDiff(
            label_id=label_id,
            name=self.label_names[label_id],
            share=own / pixels,
            mean_abs=float(self._abs_sum[label_id] / own),
            max_abs=float(self._abs_max[label_id]),
            flip_share=float(self._flipped[label_id] / own),
        )


class Judge:
    """Holds a candidate's images to a tolerance, leaving out the values that rounding alone decides.

    label_names: as of `DiffAccumulator`. margin: `logit_margin` of the candidate's precision.
    """

    def __init__(self, label_names: tuple[str, ...], margin: float) -> None:
        self._margin = margin
        self._decided = DiffAccumulator(label_names)
        self._shares: list[float] = []

    def add(self, label: NDArray[Any], logits: NDArray[Any], reference: ImagePair, candidate: ImagePair) -> None:
        """label: N x H x W ids. logits: the reference's, N x 3 x H x W."""
        decided, share = decided_only(logits, self._margin, reference, candidate)
        self._shares.append(share)
        self._decided.add(label, reference, decided)

    @property
    def undecided_share(self) -> float:
        """Of the values, the mean over what was added; at least one image."""
        return sum(self._shares) / len(self._shares)

    def result(self) -> OutputDiff:
        """The figures without the values that rounding alone decides; at least one image."""
        return self._decided.result()

    def failures(self, tolerance: Tolerance) -> list[str]:
        """One sentence for each limit that is passed, that on undecided values included."""
        return self.result().failures(tolerance) + too_undecided(self.undecided_share)


def psnr_db(mean_square: float) -> float | None:
    """Peak signal-to-noise ratio of images in [-1, 1] with this mean square error; None where there is no error."""
    return 10 * math.log10(IMAGE_RANGE**2 / mean_square) if mean_square > 0 else None


def ssim(first: NDArray[Any], second: NDArray[Any], data_range: float = IMAGE_RANGE) -> float:
    """Structural similarity (Wang et al., 2004): Gaussian window of 11, sigma 1.5; mean over channels and places.

    first, second: C x H x W. Images smaller than the window are compared in one window of their own size.
    """
    window = _gaussian(min(11, first.shape[1] | 1, first.shape[2] | 1))
    a, b = first.astype(np.float64), second.astype(np.float64)
    if min(a.shape[1:]) < window.size:
        pad = [(0, 0), (0, window.size - a.shape[1]), (0, window.size - a.shape[2])]
        a, b = (np.pad(part, [(low, max(0, high)) for low, high in pad], mode="edge") for part in (a, b))
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    variance_a = _blur(a * a, window) - mean_a**2
    variance_b = _blur(b * b, window) - mean_b**2
    covariance = _blur(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity.mean())


def _gaussian(size: int, sigma: float = 1.5) -> NDArray[np.float64]:
    offsets = np.arange(size) - size // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    normalized: NDArray[np.float64] = weights / weights.sum()
    return normalized


def _blur(image: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    size = window.size
    rows = sum(weight * image[:, i : image.shape[1] - size + 1 + i] for i, weight in enumerate(window))
    assert isinstance(rows, np.ndarray)
    columns = sum(weight * rows[:, :, i : rows.shape[2] - size + 1 + i] for i, weight in enumerate(window))
    assert isinstance(columns, np.ndarray)
    return columns
