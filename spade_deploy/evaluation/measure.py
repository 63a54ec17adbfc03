"""Measure one set of images, batch by batch; only features and counts are kept in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import DatasetError, LabelMapError
from spade_deploy.evaluation.data import Sample, SampleSet, evenly
from spade_deploy.evaluation.models import Images, Model, Pixels
from spade_deploy.evaluation.result import Row
from spade_deploy.metrics import (
    ConfusionMatrix,
    OnnxExtractor,
    OnnxSegmenter,
    PixelError,
    diversity,
    frechet_distance,
    kernel_distance,
)
from spade_deploy.metrics.extractor import pooled
from spade_deploy.progress import Progress

STYLED_SAMPLES = 32
"""How many evenly spaced label maps diversity over styles is measured on."""


@dataclass(frozen=True)
class Judges:
    """The networks that judge the images, and their settings."""

    extractor: OnnxExtractor | None
    """The network for features, between which distances are measured. None measures no distances."""
    segmenter: OnnxSegmenter | None
    """The network that finds the class of each pixel. None measures no classes."""
    num_labels: int
    """How many classes there are."""
    seed: int = 0
    """The seed of the random styles and of the random subsets of the kernel distance."""
    batch_size: int = 4
    """How many images are made and judged at once."""


@dataclass(frozen=True)
class Reality:
    """The held-out samples that can be used, and the judges' figures of their photos."""

    samples: SampleSet
    """The split that the samples are from."""
    chosen: tuple[int, ...]
    """The indices of the samples that can be used."""
    skipped: tuple[str, ...]
    """A sentence for each sample that cannot be used."""
    features: NDArray[np.float64] | None
    """The features of the photos, a row each; None without an extractor."""
    row: Row
    """The figures of the photos themselves."""


@dataclass
class Kept:
    """The images of one model that the page shows."""

    wanted: frozenset[int]
    """The indices of the samples whose images are kept."""
    images: dict[int, Pixels] = field(default_factory=dict)
    """The images by the index of their sample."""
    styles: tuple[Pixels, ...] = ()
    """One label map in several styles."""


def measure_reality(judges: Judges, samples: SampleSet, indices: Sequence[int], progress: Progress) -> Reality:
    """Read every sample once, and measure its photo. Raises DatasetError if none can be used."""
    tally, chosen, skipped = _Tally(judges), list[int](), list[str]()
    started, done = time.perf_counter(), 0
    for batch in _batches(samples, indices, judges.batch_size, skipped):
        tally.add([sample.label for sample in batch], np.stack([sample.photo for sample in batch]))
        chosen += [sample.index for sample in batch]
        done += len(batch)
        progress.count("real photos", done, len(indices))
    if not chosen:
        raise DatasetError(
            f"none of the {len(indices)} samples of the {samples.name} can be used; the first one: {skipped[0]}",
            hint="`spade check-labels DIR` shows what is wrong",
        )
    row = Row(f"real photos ({samples.name})", "reference", None, len(chosen), **tally.segmentation())
    features = tally.features()
    return Reality(samples, tuple(chosen), tuple(skipped), features, _timed(row, started))


def measure_floor(judges: Judges, reality: Reality, others: SampleSet, progress: Progress) -> Row:
    """Measure as many real photos of another split: the distance that a perfect model could reach."""
    tally, skipped, done, started = _Tally(judges), list[str](), 0, time.perf_counter()
    indices = evenly(len(others), len(reality.chosen))
    for batch in _batches(others, indices, judges.batch_size, skipped):
        tally.add_features(np.stack([sample.photo for sample in batch]))
        done += len(batch)
        progress.count(f"real photos ({others.name})", done, len(indices))
    row = Row(
        f"real photos ({others.name})",
        "reference",
        None,
        done,
        skipped=tuple(skipped),
        **tally.distances(reality.features),
    )
    return _timed(row, started)


def measure_model(
    judges: Judges, reality: Reality, model: Model, images: Images, styles: int, kept: Kept, progress: Progress
) -> Row:
    """One model's figures. styles: images of one label map that diversity compares, 0 for none."""
    tally, errors, skipped = _Tally(judges), PixelError(), list[str]()
    styled = set(_styled(reality, styles if model.z_dim is not None and judges.extractor is not None else 0))
    diversities: list[float] = []
    started, done = time.perf_counter(), 0
    for batch in _batches(reality.samples, reality.chosen, judges.batch_size, skipped):
        made = images.make(batch, _styles(judges.seed, batch, 0, model.z_dim))
        for sample, image in zip(batch, made, strict=True):
            if isinstance(image, str):
                skipped.append(image)
                continue
            errors.add(image, sample.photo)
            if sample.index in kept.wanted:
                kept.images[sample.index] = image
        there = [(sample.label, image) for sample, image in zip(batch, made, strict=True) if not isinstance(image, str)]
        if there:
            tally.add([label for label, _ in there], np.stack([image for _, image in there]))
        for sample in batch:
            if sample.index in styled:
                variants = _variants(judges.seed, images, sample, styles, model.z_dim)
                assert judges.extractor is not None  # without an extractor `styled` is empty
                diversities.append(diversity(judges.extractor.maps(variants)))
                kept.styles = kept.styles or tuple(variants)
        done += len(batch)
        progress.count(model.name, done, len(reality.chosen))
    row = Row(
        model.name,
        str(model.kind),
        model.path,
        tally.images,
        facts={**model.facts, "runtime": images.runtime},
        skipped=tuple(skipped),
        diversity=float(np.mean(diversities)) if diversities else None,
        l1=errors.l1 if tally.images else None,
        psnr=errors.psnr if tally.images else None,
        **tally.segmentation(),
        **tally.distances(reality.features),
    )
    return _timed(row, started)


class _Tally:
    """Adds up the features and the confusion matrix of images, batch by batch."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges
        self._features: list[NDArray[np.float64]] = []
        self._matrix = ConfusionMatrix(judges.num_labels)
        self.images = 0

    def add(self, labels: Sequence[NDArray[Any]], pixels: NDArray[np.uint8]) -> None:
        """pixels: N x H x W x 3 of N label maps."""
        self.add_features(pixels)
        if self._judges.segmenter is not None:
            found = self._judges.segmenter.predict(pixels)
            self._matrix.add(np.stack(labels).astype(np.int64), found)

    def add_features(self, pixels: NDArray[np.uint8]) -> None:
        self.images += len(pixels)
        if self._judges.extractor is not None:
            self._features.append(pooled(self._judges.extractor.maps(pixels)))

    def features(self) -> NDArray[np.float64] | None:
        return np.concatenate(self._features) if self._features else None

    def distances(self, real: NDArray[np.float64] | None) -> dict[str, Any]:
        """The fields `frechet` and `kernel` of a Row; none if either side has fewer than two images."""
        made = self.features()
        if made is None or real is None or min(len(made), len(real)) < 2:
            return {}
        return {"frechet": frechet_distance(made, real), "kernel": kernel_distance(made, real, seed=self._judges.seed)}

    def segmentation(self) -> dict[str, Any]:
        """The fields `miou`, `accuracy` and `classes` of a Row."""
        if self._judges.segmenter is None or not self._matrix.counts.any():
            return {}
        return {"miou": self._matrix.miou, "accuracy": self._matrix.accuracy, "classes": self._matrix.classes}


def _batches(samples: SampleSet, indices: Sequence[int], batch_size: int, skipped: list[str]) -> Iterator[list[Sample]]:
    """Load samples in batches. A sentence on each one that cannot be used is added to `skipped`."""
    batch: list[Sample] = []
    for index in indices:
        try:
            batch.append(samples.load(index))
        except LabelMapError as error:
            skipped.append(error.message)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _styled(reality: Reality, styles: int) -> list[int]:
    if styles < 2:
        return []
    return [reality.chosen[place] for place in evenly(len(reality.chosen), STYLED_SAMPLES)]


def _variants(seed: int, images: Images, sample: Sample, styles: int, z_dim: int | None) -> NDArray[np.uint8]:
    """One label map in S styles, S x H x W x 3. All other figures are measured with the first of these styles."""
    found = []
    for style in range(styles):
        (image,) = images.make([sample], _styles(seed, [sample], style, z_dim))
        if not isinstance(image, str):
            found.append(image)
    return np.stack(found)


def _styles(seed: int, batch: Sequence[Sample], style: int, z_dim: int | None) -> NDArray[np.float32] | None:
    """Standard normal styles, N x z_dim, which depend only on the seed, the sample and the style's number."""
    if z_dim is None:
        return None
    draw = [np.random.default_rng((seed, sample.index, style)).standard_normal(z_dim, np.float32) for sample in batch]
    return np.stack(draw)


def _timed(row: Row, started: float) -> Row:
    return replace(row, seconds=time.perf_counter() - started)
