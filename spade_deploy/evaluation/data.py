"""The held-out samples that an evaluation judges images on, read without PyTorch.

Samples are seen as training evaluates them: resized to the model's size (label maps nearest, photos bicubic), neither
cropped nor mirrored. The embedded tiles are cut at that size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import DatasetError
from spade_deploy.images.image_file import Size
from spade_deploy.labels import earth
from spade_deploy.labels.check_request import check_command
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.labels.same_photos import photos_of, same_photos
from spade_deploy.labels.samples import EarthSamples, FileSamples, SampleArrays, Samples, is_embedded
from spade_deploy.runs.learned import learned_before
from spade_deploy.spec import LabelSpec


@dataclass(frozen=True)
class Sample(SampleArrays):
    """One sample of a set."""

    index: int
    """Its place in the set."""
    stem: str
    """Its name."""


def instance_maps(samples: Sequence[Sample]) -> NDArray[np.int32]:
    """The instance maps of samples, N x H x W, of those that have one."""
    return np.stack([sample.instance for sample in samples if sample.instance is not None])


def held_out_split(config: DataConfig) -> str:
    """The split that figures are taken on: test if it has photos and labels, else val, else the one that exists.

    Cityscapes' test labels are not public. Raises DatasetError where no split has samples.
    """
    if is_embedded(config):
        return "test"
    candidates = ["val"] if config.preset == "cityscapes" else ["test", "val"]
    for split in (*candidates, "train"):
        try:
            if split in config.splits and any(sample.photo for sample in find_samples(config, split).samples):
                return split
        except DatasetError:
            continue
    find_samples(config, config.evaluation_split)  # its error says what is missing
    raise DatasetError(
        f"{config.root or config.labels_dir}: evaluation needs photos, and there are none",
        hint="name their folder with `images_dir`",
    )


def has_one_set(config: DataConfig) -> bool:
    """Whether the data set has no splits: folders of one's own, of which nothing is held out."""
    return config.labels_dir is not None and not config.has_kept_samples


def learned_from(trained_on: DataConfig, config: DataConfig, split: str, init: str = "") -> int | None:
    """How many samples of a split are among those that a model was trained on; None if that cannot be told.

    trained_on: the data set that the model's run recorded; its files are compared, links followed, and of one's own
    data the photos' contents, too. init: the weights that the run began from; `runs.learned` says what they were
    trained on.
    """
    if is_embedded(config):
        is_same = is_embedded(trained_on) and split == "train"
        known = len(earth.earth_tiles("train", config.crop_size[0], max(1, config.crop_size[0] // 2))) if is_same else 0
        return known if known or learned_before(init).is_complete else None
    try:
        judged = find_samples(config, split).samples
        learned = () if is_embedded(trained_on) else find_samples(trained_on, "train").samples
    except DatasetError:
        return None
    paths = {os.path.realpath(sample.label) for sample in learned}
    others = tuple(sample for sample in judged if os.path.realpath(sample.label) not in paths)
    if trained_on.preset == "custom" and not trained_on.labels_only:
        copies = same_photos(photos_of(others), photos_of(learned))
        others = tuple(sample for sample in others if sample.photo not in copies)
    before = learned_before(init).count_samples(others)
    if before is None and len(others) == len(judged):
        return None
    return len(judged) - len(others) + (before or 0)


def open_set(config: DataConfig, split: str, labels: LabelSpec, size: Size) -> SampleSet:
    """Open a split. Raises ConfigError if it is unknown, DatasetError if it lacks samples or what `labels` needs."""
    if is_embedded(config):
        return SampleSet(f"{split} split", EarthSamples(split, labels, size))
    found = find_samples(config, split)
    with_photos = replace(found, samples=tuple(sample for sample in found.samples if sample.photo is not None))
    if not with_photos.samples:
        raise DatasetError(f"{config.root or config.labels_dir}: the {split} split has no photos")
    name = "given files" if has_one_set(config) else f"{split} split"
    hint = f"`{check_command(config, labels, split)}` shows what is wrong"
    return SampleSet(name, FileSamples(with_photos, labels, size), hint)


def evenly(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` indices, evenly spaced; all of them without `wanted`."""
    wanted = count if wanted is None else min(wanted, count)
    return [index * count // wanted for index in range(wanted)]


class SampleSet:
    """A split of a data set at one size."""

    def __init__(self, name: str, samples: Samples, check_hint: str | None = None) -> None:
        self.name = name
        """Its name for people: 'test split'."""
        self.check_hint = check_hint
        """The command that finds what is wrong with its files, in a sentence; None for the embedded data set."""
        self.problems = samples.problems
        """A sentence for each file that is in no sample."""
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def stem(self, index: int) -> str:
        return self._samples.stem(index)

    def load(self, index: int) -> Sample:
        """Load a sample. Raises LabelMapError if it cannot be used."""
        found = self._samples.load(index)
        return Sample(found.label, found.instance, found.photo, index, self.stem(index))
