"""Read the samples of a data set, for training and for evaluation alike. Needs only NumPy and Pillow.

Samples come at one size: label and instance maps are resized with nearest neighbour, photos with bicubic. Tiles of the
embedded data set are cut at that size, so they are never resized.
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
from spade_deploy.labels.files import label_dtype
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import Pairing, Sample, read_maps
from spade_deploy.spec import LabelSpec


@dataclass(frozen=True)
class SampleArrays:
    """The arrays of one sample."""

    label: NDArray[Any]
    """The label map, H x W ids."""
    instance: NDArray[np.int32] | None
    """The instance map, H x W object ids; None without an edge channel."""
    photo: NDArray[np.uint8]
    """The photo, H x W x 3 RGB; black where a data set has label maps alone."""


class Samples(Protocol):
    """Samples of a split at one size. They hold names and no pixels, so they can cross to other processes."""

    problems: tuple[str, ...]
    """A sentence for each file that is in no sample."""
    notes: tuple[str, ...]
    """Sentences on folders that are not read."""

    def __len__(self) -> int: ...

    def stem(self, index: int) -> str: ...

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample; empty for an embedded one."""

    def load(self, index: int) -> SampleArrays:
        """Load a sample. Raises LabelMapError if it cannot be used."""

    def overlapping(self, index: int) -> tuple[int, ...]:
        """The samples that show some of the same pixels, ascending; the sample itself is among them."""


def is_embedded(config: DataConfig) -> bool:
    """Whether the data set is the one that comes with the package."""
    return config.preset == "earth" and config.root is None


class FileSamples:
    """Samples that are files. Raises DatasetError where `labels` need instance maps and a sample has none.

    labels_only: no photo is read.
    """

    def __init__(
        self,
        pairing: Pairing,
        labels: LabelSpec,
        size: Size,
        hint: str = "name their folder with `instances_dir`",
        *,
        labels_only: bool = False,
    ) -> None:
        self.problems = tuple(f"{problem.path}: {problem.message}" for problem in pairing.problems)
        self.notes = tuple(f"{problem.path}: {problem.message}" for problem in pairing.nested)
        self._samples: Sequence[Sample] = pairing.samples
        self._labels, self._size, self._labels_only = labels, size, labels_only
        if labels.has_edges and any(sample.instance is None for sample in pairing.samples):
            first = pairing.samples[0].label
            raise DatasetError(f"{first}: a model with an edge channel needs instance maps", hint=hint)

    def __len__(self) -> int:
        return len(self._samples)

    def stem(self, index: int) -> str:
        return self._samples[index].stem

    def files(self, index: int) -> tuple[Path, ...]:
        sample = self._samples[index]
        return tuple(path for path in (sample.label, sample.photo, sample.instance) if path is not None)

    def load(self, index: int) -> SampleArrays:
        sample = self._samples[index]
        if sample.photo is None and not self._labels_only:
            raise LabelMapError(f"{sample.label}: has no photo")
        if not self._labels.has_edges:
            sample = Sample(sample.stem, sample.label, sample.photo)
        for path, is_photo in ((sample.photo, True), (sample.instance, False)):
            if path is not None and (problem := size_beside(sample.label, path, is_photo=is_photo)):
                raise LabelMapError(f"{sample.label}: {problem}")
        label, instance = read_maps(sample, self._labels, self._size)
        if sample.photo is None:
            return SampleArrays(label, instance, np.zeros((*self._size, 3), np.uint8))
        return SampleArrays(label, instance, read_photo(sample.photo, self._size))

    def overlapping(self, index: int) -> tuple[int, ...]:
        return (index,)


class EarthSamples:
    """Tiles of the embedded data set; they overlap by half.

    Raises ConfigError where they do not fit `labels` or are not square, DatasetError where there are none.
    """

    def __init__(self, split: str, labels: LabelSpec, size: Size) -> None:
        own = earth.earth_labels()
        if labels.num_ids != own.num_ids or labels.has_edges:
            raise ConfigError(
                f"`preset` earth: has {own.num_ids} labels without dontcare and edges, the model"
                f" {labels.num_channels} channels"
            )
        if size[0] != size[1]:
            raise ConfigError(f"`size`: earth tiles are square, not {size[0]} x {size[1]}")
        self.problems: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._dtype = label_dtype(labels)
        self._tiles = earth.earth_tiles(split, size[0], max(1, size[0] // 2))
        if not self._tiles:
            raise DatasetError(
                f"the {split} split of earth has no tiles of {size[0]} pixels",
                hint="take a smaller `size`, such as 128",
            )

    def __len__(self) -> int:
        return len(self._tiles)

    def stem(self, index: int) -> str:
        return self._tiles[index].stem

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def load(self, index: int) -> SampleArrays:
        label, photo = earth.cut(self._tiles[index])
        return SampleArrays(label.astype(self._dtype), None, photo)

    def overlapping(self, index: int) -> tuple[int, ...]:
        own = self._tiles[index]
        return tuple(
            number
            for number, tile in enumerate(self._tiles)
            if abs(tile.top - own.top) < own.size and abs(tile.left - own.left) < own.size
        )
