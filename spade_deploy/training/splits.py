"""Open the splits of a data set for training: which samples there are, and how each is cropped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import DatasetError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.check_request import check_command
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.labels.samples import EarthSamples, FileSamples, SampleArrays, Samples, is_embedded
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.spec import LabelSpec
from spade_deploy.training.dataset import SampleSource


def open_source(config: DataConfig, split: str, labels: LabelSpec, *, leave_out: Collection[Path] = ()) -> SampleSource:
    """The samples of a split. Raises ConfigError, and DatasetError if there are none or `labels` needs more files.

    leave_out: photos whose samples are not wanted.
    """
    sizes = (config.load_size, config.crop_size)
    if is_embedded(config):
        whole, crop = (EarthSamples(split, labels, size) for size in sizes)
        return SplitSource(config, whole, crop, f"tiles of {split}", stem_prefix=f"{split}-")
    pairing = find_samples(config, split)
    if leave_out:
        wanted = tuple(sample for sample in pairing.samples if sample.photo not in leave_out)
        if not wanted:
            raise DatasetError(f"{config.described}: no sample of {split} is left")
        pairing = replace(pairing, samples=wanted)
    first = pairing.samples[0].label
    if not config.labels_only and any(sample.photo is None for sample in pairing.samples):
        raise DatasetError(f"{first}: training needs photos", hint="name their folder with `images_dir`")
    hint = "name their folder with `instances_dir`, or train without edges"
    training, evaluation = (FileSamples(pairing, labels, size, hint, labels_only=config.labels_only) for size in sizes)
    what = "training samples" if split == "train" else f"samples of {split}"
    if split == "val" and config.holdout is not None:
        what = "held-out samples"
    command = check_command(config, labels, split)
    return SplitSource(config, training, evaluation, what, f"`{command}` shows what is wrong")


class SplitSource:
    """Samples that are read at the load size for training, and at the crop size for evaluation."""

    def __init__(
        self,
        config: DataConfig,
        training: Samples,
        evaluation: Samples,
        what: str,
        check_hint: str = "the embedded data set is damaged: install the package again",
        *,
        stem_prefix: str = "",
    ) -> None:
        self.problems, self.notes, self.what, self.check_hint = training.problems, training.notes, what, check_hint
        self._config, self._training, self._evaluation, self._prefix = config, training, evaluation, stem_prefix

    def __len__(self) -> int:
        return len(self._training)

    def stem(self, index: int) -> str:
        return self._prefix + self._training.stem(index)

    def record(self) -> DataRecord:
        return DataRecord.of_files([(self.stem(index), self._training.files(index)) for index in range(len(self))])

    def load(self, index: int, rng: np.random.Generator | None) -> SampleArrays:
        if rng is not None:
            return augmented(self._training.load(index), self._config.crop_size, self._config.flip, rng)
        # There may be fewer or more tiles of the evaluation size: the index is mapped to their number.
        return self._evaluation.load(index * len(self._evaluation) // len(self._training))

    def whole(self, index: int) -> SampleArrays:
        return self._training.load(index)

    def overlapping(self, index: int) -> tuple[int, ...]:
        return self._training.overlapping(index)


def augmented(arrays: SampleArrays, crop_size: Size, flip: bool, rng: np.random.Generator) -> SampleArrays:
    """A random crop, mirrored half of the time; the same for label, instance and photo."""
    height, width = crop_size
    top = int(rng.integers(arrays.label.shape[0] - height + 1))
    left = int(rng.integers(arrays.label.shape[1] - width + 1))
    step = -1 if flip and rng.random() < 0.5 else 1

    def part(values: NDArray[Any]) -> NDArray[Any]:
        return values[top : top + height, left : left + width][:, ::step]

    instance = None if arrays.instance is None else part(arrays.instance)
    return SampleArrays(part(arrays.label), instance, part(arrays.photo))


def open_held_out(config: DataConfig, labels: LabelSpec) -> tuple[SampleSource, str]:
    """The evaluation split and its name; the training split and 'train' if the data set has none.

    Raises DatasetError where both are missing.
    """
    try:
        return open_source(config, config.evaluation_split, labels), config.evaluation_split
    except DatasetError:
        return open_source(config, "train", labels), "train"
