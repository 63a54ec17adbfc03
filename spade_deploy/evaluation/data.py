"""Which images are judged and against which photos: the held-out samples, read without PyTorch.

Samples are seen as training evaluates them: resized to the model's size (label maps nearest, photos bicubic), neither
cropped nor mirrored. The embedded tiles are cut at that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError
from spade_deploy.images.image_file import Size, read_photo, size_beside
from spade_deploy.labels import earth
from spade_deploy.labels.files import label_dtype, read_instance_map, read_label_map
from spade_deploy.labels.layouts import DataConfig, find_samples
from spade_deploy.labels.layouts import Sample as SampleFiles
from spade_deploy.spec import LabelSpec


@dataclass(frozen=True)
class Sample:
    """index: of its set. label H x W ids, instance H x W int32 or None, photo H x W x 3 uint8."""

    index: int
    stem: str
    label: NDArray[Any]
    instance: NDArray[np.int32] | None
    photo: NDArray[np.uint8]


class SampleSet(Protocol):
    """A split of a data set at one size. name: 'test split'. problems: a sentence for each file of no sample."""

    name: str
    problems: tuple[str, ...]

    def __len__(self) -> int: ...

    def stem(self, index: int) -> str: ...

    def load(self, index: int) -> Sample:
        """Raises LabelMapError where the sample cannot be used."""
        ...


def held_out_split(config: DataConfig) -> str:
    """The split that figures are taken on: test where it has photos and labels, else val, else what there is.

    Cityscapes' test labels are not public. Raises DatasetError where no split has samples.
    """
    if config.preset == "earth" and config.root is None:
        return "test"
    candidates = ["val"] if config.preset == "cityscapes" else ["test", "val"]
    for split in (*candidates, "train"):
        try:
            if split in config.splits and any(sample.photo for sample in find_samples(config, split).samples):
                return split
        except DatasetError:
            continue
    find_samples(config, config.evaluation_split)  # says what is missing
    raise DatasetError(
        f"{config.root or config.labels_dir}: evaluation needs photos, and there are none",
        hint="name their folder with --images DIR",
    )


def has_one_set(config: DataConfig) -> bool:
    """Whether the same files serve every split."""
    return config.labels_dir is not None


def open_set(config: DataConfig, split: str, labels: LabelSpec, size: Size) -> SampleSet:
    """Raises ConfigError for an unknown split, DatasetError where it has no samples, or not what `labels` needs."""
    if config.preset == "earth" and config.root is None:
        return _EarthSet(split, labels, size)
    pairing = find_samples(config, split)
    samples = tuple(sample for sample in pairing.samples if sample.photo is not None)
    if not samples:
        raise DatasetError(f"{config.root or config.labels_dir}: the {split} split has no photos")
    if labels.has_edges and any(sample.instance is None for sample in samples):
        raise DatasetError(
            f"{samples[0].label}: a model with an edge channel needs instance maps",
            hint="name their folder with --instances DIR",
        )
    problems = tuple(f"{problem.path}: {problem.message}" for problem in pairing.problems)
    return _FileSet("given files" if has_one_set(config) else f"{split} split", samples, problems, labels, size)


def evenly(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` indices, evenly spaced; all of them without `wanted`."""
    wanted = count if wanted is None else min(wanted, count)
    return [index * count // wanted for index in range(wanted)]


class _FileSet:
    def __init__(
        self, name: str, samples: Sequence[SampleFiles], problems: tuple[str, ...], labels: LabelSpec, size: Size
    ) -> None:
        self.name = name
        self.problems = problems
        self._samples, self._labels, self._size = samples, labels, size

    def __len__(self) -> int:
        return len(self._samples)

    def stem(self, index: int) -> str:
        return self._samples[index].stem

    def load(self, index: int) -> Sample:
        files, labels, size = self._samples[index], self._labels, self._size
        photo = files.photo
        if photo is None:
            raise LabelMapError(f"{files.label}: has no photo")
        for path, is_photo in ((photo, True), (files.instance if labels.has_edges else None, False)):
            if path is not None and (problem := size_beside(files.label, path, is_photo=is_photo)):
                raise LabelMapError(f"{files.label}: {problem}")
        instance = read_instance_map(files.instance, size) if labels.has_edges and files.instance else None
        return Sample(index, files.stem, read_label_map(files.label, labels, size), instance, read_photo(photo, size))


class _EarthSet:
    def __init__(self, split: str, labels: LabelSpec, size: Size) -> None:
        own = earth.earth_labels()
        if labels.num_ids != own.num_ids or labels.has_edges:
            raise ConfigError(
                f"--preset earth: has {own.num_ids} labels without dontcare and edges, the model"
                f" {labels.num_channels} channels"
            )
        if size[0] != size[1]:
            raise ConfigError(f"--size: earth tiles are square, not {size[0]} x {size[1]}")
        self.name = f"{split} split"
        self.problems: tuple[str, ...] = ()
        self._tiles = earth.earth_tiles(split, size[0], max(1, size[0] // 2))
        if not self._tiles:
            raise DatasetError(f"the {split} split of earth has no tiles of {size[0]} pixels", hint="--size 128")
        self._labels = labels

    def __len__(self) -> int:
        return len(self._tiles)

    def stem(self, index: int) -> str:
        return self._tiles[index].stem

    def load(self, index: int) -> Sample:
        label, photo = earth.cut(self._tiles[index])
        return Sample(index, self.stem(index), label.astype(label_dtype(self._labels)), None, photo)


def described(config: DataConfig) -> str:
    """'earth (embedded)', 'custom (/data/mine)'."""
    where: Path | None = config.root or config.labels_dir
    return f"{config.preset} ({where})" if where else f"{config.preset} (embedded)"
