"""Measure how far a candidate's images are from the reference's, over all values and class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.metrics.tolerances import IMAGE_RANGE, Tolerance

ImagePair = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""An image N x 3 x H x W and its pixels N x H x W x 3."""


@dataclass(frozen=True)
class ClassDiff:
    """The figures of one class, over the pixels that have its label."""

    label_id: int
    """The id of the class."""
    name: str
    """Its name."""
    share: float
    """The share of all pixels that have this label."""
    mean_abs: float
    """The mean error of the image in [-1, 1]."""
    max_abs: float
    """The largest error of the image in [-1, 1]."""
    flip_share: float
    """The share of the class's pixels with any changed colour value."""


@dataclass(frozen=True)
class OutputDiff:
    """The figures of one candidate over a number of images.

    Errors are of the float image in [-1, 1]. Values of the candidate that are not finite count as an infinite error.
    """

    images: int
    """How many images were compared."""
    max_abs: float
    """The largest error."""
    mean_abs: float
    """The mean error."""
    psnr_db: float | None
    """The peak signal-to-noise ratio in dB; None if the images are identical."""
    ssim: float
    """The mean structural similarity of the images."""
    flip_share: float
    """The share of pixels with any changed colour value."""
    max_flip: int
    """The largest change of one uint8 colour value."""
    flips: dict[str, int]
    """How many pixels changed by 1, 2, 3-4, 5-16, 17 and more of 255; the largest of the three colours counts."""
    finite: bool
    """Whether all values of the candidate are finite."""
    classes: tuple[ClassDiff, ...]
    """The classes that occur, by id."""

    def failures(self, tolerance: Tolerance) -> list[str]:
        """One sentence for each limit that is exceeded; empty if the candidate is within all of them."""
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


def not_comparable(images: int) -> OutputDiff:
    """The figures of outputs that could not be compared with those of the reference at all."""
    flips = {name: 0 for name, _, _ in FLIP_BINS}
    return OutputDiff(images, math.inf, math.inf, 0.0, 0.0, 1.0, 255, flips, finite=False, classes=())


@dataclass(frozen=True)
class ImageSums:
    """The sums of one image; arrays have an entry for each id."""

    finite: bool
    """Whether all values of the candidate are finite."""
    square_error: float
    """The sum of the squared errors."""
    values: int
    """How many values the image has."""
    ssim: float
    """The structural similarity."""
    pixels: NDArray[np.int64]
    """How many pixels have each id."""
    abs_sum: NDArray[np.float64]
    """The sum of the absolute errors of each id's pixels."""
    abs_max: NDArray[np.float64]
    """The largest absolute error of each id's pixels."""
    flipped: NDArray[np.int64]
    """How many pixels of each id have a changed colour value."""
    flip_counts: NDArray[np.int64]
    """How many pixels changed by 0, 1, .. 255."""

    @property
    def max_abs(self) -> float:
        return float(self.abs_max.max())


def measure(label: NDArray[Any], reference: ImagePair, candidate: ImagePair, ids: int) -> list[ImageSums]:
    """The sums of each of N images; label: N x H x W in 0..ids-1."""
    return [
        _measure_one(one_label.astype(np.int64).ravel(), (image, pixels), (other_image, other_pixels), ids)
        for one_label, image, pixels, other_image, other_pixels in zip(label, *reference, *candidate, strict=True)
    ]


def _measure_one(label: NDArray[np.int64], reference: ImagePair, candidate: ImagePair, ids: int) -> ImageSums:
    finite = bool(np.isfinite(candidate[0]).all())
    wide_candidate = np.nan_to_num(candidate[0].astype(np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    with np.errstate(invalid="ignore"):
        error = np.abs(wide_candidate - reference[0].astype(np.float64))
    changed = np.abs(reference[1].astype(np.int16) - candidate[1].astype(np.int16)).max(axis=-1).ravel()
    abs_max = np.zeros(ids)
    np.maximum.at(abs_max, label, error.max(axis=0).ravel())
    return ImageSums(
        finite=finite,
        square_error=float(np.square(error).sum()),
        values=error.size,
        ssim=ssim(reference[0], candidate[0]) if finite else 0.0,
        pixels=np.bincount(label, minlength=ids),
        abs_sum=np.bincount(label, weights=error.mean(axis=0).ravel(), minlength=ids).astype(np.float64),
        abs_max=abs_max,
        flipped=np.bincount(label[changed > 0], minlength=ids),
        flip_counts=np.bincount(changed, minlength=256),
    )


@dataclass
class DiffAccumulator:
    """Adds up the figures image by image, so that a folder of any length fits in memory."""

    label_names: tuple[str, ...]
    """One name for each id; their number is the number of ids that are told apart."""
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
        self._pixels, self._flipped = np.zeros(self.ids, np.int64), np.zeros(self.ids, np.int64)
        self._abs_sum, self._abs_max = np.zeros(self.ids), np.zeros(self.ids)
        self._flip_counts = np.zeros(256, np.int64)

    @property
    def ids(self) -> int:
        return len(self.label_names)

    def add(self, label: NDArray[Any], reference: ImagePair, candidate: ImagePair) -> None:
        """label: N x H x W ids."""
        self.count(measure(label, reference, candidate, self.ids))

    def count(self, measured: Sequence[ImageSums]) -> None:
        """Add the sums that were measured of some images."""
        for one in measured:
            self.images += 1
            self.finite &= one.finite
            self._square_error += one.square_error
            self._values += one.values
            self._ssim += one.ssim if self.finite else 0.0
            self._pixels += one.pixels
            self._abs_sum += one.abs_sum
            self._abs_max = np.maximum(self._abs_max, one.abs_max)
            self._flipped += one.flipped
            self._flip_counts += one.flip_counts

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
