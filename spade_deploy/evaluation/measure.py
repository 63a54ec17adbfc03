"""Measure one set of images, batch by batch; only features and counts are kept in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import DatasetError, LabelMapError
from spade_deploy.evaluation.data import Sample, SampleSet, evenly
from spade_deploy.evaluation.judges import Judges
from spade_deploy.evaluation.models import Images, Model, Pixels
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.scores import Scores
from spade_deploy.evaluation.tally import Tally, distances, pixel_errors, segmentation
from spade_deploy.metrics import diversity
from spade_deploy.progress import Progress

STYLED_SAMPLES = 32
"""How many evenly spaced label maps diversity over styles is measured on."""


@dataclass(frozen=True)
class Reality:
    """The held-out samples that can be used, and the judges' figures of their photos."""

    samples: SampleSet
    """The split that the samples are from."""
    chosen: tuple[int, ...]
    """The indices of the samples that can be used."""
    skipped: tuple[str, ...]
    """A sentence for each sample that cannot be used."""
    scores: Scores
    """The photos' own parts: their features, and what the segmenter finds in them."""
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
    tally, chosen, skipped = Tally(judges), list[int](), list[str]()
    started, done = time.perf_counter(), 0
    for batch in _batches(samples, indices, judges.batch_size, skipped):
        tally.add(batch, np.stack([sample.photo for sample in batch]), is_real=True)
        chosen += [sample.index for sample in batch]
        done += len(batch)
        progress.count("real photos", done, len(indices))
    if not chosen:
        raise DatasetError(
            f"none of the {len(indices)} samples of the {samples.name} can be used; the first one: {skipped[0]}",
            hint=samples.check_hint,
        )
    scores = tally.scores()
    row = Row(f"real photos ({samples.name})", "reference", None, len(chosen), **segmentation(scores))
    return Reality(samples, tuple(chosen), tuple(skipped), scores, _timed(row, started))


def measure_floor(judges: Judges, reality: Reality, others: SampleSet, progress: Progress) -> Row:
    """Measure as many real photos of another split: the distance that a perfect model could reach."""
    tally, skipped, done, started = Tally(judges), list[str](), 0, time.perf_counter()
    indices = evenly(len(others), len(reality.chosen))
    for batch in _batches(others, indices, judges.batch_size, skipped):
        tally.add_features(batch, np.stack([sample.photo for sample in batch]))
        done += len(batch)
        progress.count(f"real photos ({others.name})", done, len(indices))
    row = Row(
        f"real photos ({others.name})",
        "reference",
        None,
        done,
        skipped=tuple(skipped),
        **distances(tally.scores(), reality.scores, judges.seed),
    )
    return _timed(row, started)


def measure_model(
    judges: Judges, reality: Reality, model: Model, images: Images, styles: int, kept: Kept, progress: Progress
) -> tuple[Row, Scores]:
    """One model's figures, and its images' parts. styles: images of one label map that diversity compares, or 0."""
    tally, skipped = Tally(judges), list[str]()
    can_compare = judges.extractor is not None or judges.perceptual is not None
    styled = set(_styled(reality, styles if model.z_dim is not None and can_compare else 0))
    diversities: list[float] = []
    started, done = time.perf_counter(), 0
    for batch in _batches(reality.samples, reality.chosen, judges.batch_size, skipped):
        made = images.make(batch, _styles(judges.seed, batch, 0, model.z_dim))
        for sample, image in zip(batch, made, strict=True):
            if isinstance(image, str):
                skipped.append(image)
                continue
            if sample.index in kept.wanted:
                kept.images[sample.index] = image
        there = [(sample, image) for sample, image in zip(batch, made, strict=True) if not isinstance(image, str)]
        if there:
            tally.add([sample for sample, _ in there], np.stack([image for _, image in there]))
        for sample in batch:
            if sample.index in styled:
                variants = _variants(judges.seed, images, sample, styles, model.z_dim)
                diversities.append(_diversity(judges, variants))
                kept.styles = kept.styles or tuple(variants)
        done += len(batch)
        progress.count(model.name, done, len(reality.chosen))
    scores = tally.scores()
    row = Row(
        model.name,
        str(model.kind),
        model.path,
        tally.images,
        facts={**model.facts, "runtime": images.runtime, "settings": model.settings},
        skipped=tuple(skipped),
        diversity=float(np.mean(diversities)) if diversities else None,
        **pixel_errors(scores),
        **segmentation(scores),
        **distances(scores, reality.scores, judges.seed),
    )
    return _timed(row, started), scores


def _diversity(judges: Judges, variants: NDArray[np.uint8]) -> float:
    """How much the images of one label map differ: by the extractor's features, or without one by LPIPS."""
    if judges.extractor is not None:
        return diversity(judges.extractor.maps(variants))
    assert judges.perceptual is not None  # without either no label map is made in several styles
    pairs = [(i, j) for i in range(len(variants)) for j in range(i)]
    first, second = (variants[[pair[side] for pair in pairs]] for side in (0, 1))
    return float(judges.perceptual.distances(first, second).mean())


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
