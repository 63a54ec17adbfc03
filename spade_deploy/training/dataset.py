"""Make training batches of a data set. They are the same for any number of workers, and after any interruption.

All randomness comes from (seed, epoch, position), so step k of a resumed run sees the batch that an unbroken run sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, SpadeError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.labels.samples import EarthSamples, FileSamples, SampleArrays, Samples, is_embedded
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.settings import check_positive
from spade_deploy.spec import LabelSpec
from spade_deploy.training.loader import loaded

_ORDER, _AUGMENT = 0, 1
"""The purpose of random numbers, which comes first in their seed: for NumPy (seed, epoch) equals (seed, epoch, 0)."""

Key = tuple[int, int, int]
"""(epoch, position in the epoch, index of the sample)."""


@dataclass(frozen=True)
class Batch:
    """A batch of samples in the form that the networks take."""

    label: Tensor
    """N x H x W, uint8 or int32."""
    instance: Tensor | None
    """N x H x W int32; None without an edge channel."""
    photo: Tensor
    """N x 3 x H x W float32 in [-1, 1]; black where a data set has label maps alone."""
    stems: tuple[str, ...]
    """The samples' names."""
    skipped: tuple[tuple[int, str], ...] = ()
    """Index and message of each sample that could not be used and was replaced while this batch was made."""


@dataclass(frozen=True)
class Shard:
    """Which samples of every step's batch one process computes: an equal share of each of the step's parts, in order.

    So all processes together compute the same parts as one process alone would, and batch norm sees the same samples.
    """

    rank: int = 0
    """The number of this process, from 0 on."""
    size: int = 1
    """How many processes there are."""
    parts: int = 1
    """How many parts a step's batch is computed in, one after the other."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.parts < 1 or not 0 <= self.rank < self.size:
            raise ConfigError(f"process {self.rank} of {self.size}, {self.parts} parts: there is no such share")

    def positions(self, batch_size: int) -> list[int]:
        """The places of the share in a batch of `batch_size`, ascending. Raises ConfigError if shares would differ."""
        share, rest = divmod(batch_size, self.size * self.parts)
        if rest or not share:
            unit = self.size * self.parts
            found = f"{self.size} processes" + (f" times `accumulate` {self.parts}" if self.parts > 1 else "")
            below = batch_size // unit * unit
            allowed = f"{below} or {below + unit}" if below else str(unit)
            raise ConfigError(
                f"`batch_size`: {batch_size} samples per step cannot be divided equally among {found}",
                hint=f"take a multiple of {unit}, such as `batch_size` {allowed}, or another number of processes",
            )
        firsts = [(part * self.size + self.rank) * share for part in range(self.parts)]
        return [first + offset for first in firsts for offset in range(share)]


WHOLE = Shard()


class SampleSource(Protocol):
    """A split of a data set. It is sent to worker processes, so it holds names and no pixels."""

    def __len__(self) -> int: ...

    def stem(self, index: int) -> str: ...

    def record(self) -> DataRecord:
        """The names and files of the samples, by which a resumed run notices changes."""
        ...

    def load(self, index: int, rng: np.random.Generator | None) -> SampleArrays:
        """A sample, cropped and flipped at random with `rng`; without `rng` it is resized only, as in evaluation.

        Raises LabelMapError where the sample cannot be used.
        """
        ...


def open_source(config: DataConfig, split: str, labels: LabelSpec, *, leave_out: Collection[Path] = ()) -> SampleSource:
    """The samples of a split. Raises ConfigError, and DatasetError if there are none or `labels` needs more files.

    leave_out: photos whose samples are not wanted.
    """
    sizes = (config.load_size, config.crop_size)
    if is_embedded(config):
        whole, crop = (EarthSamples(split, labels, size) for size in sizes)
        return SplitSource(config, whole, crop, stem_prefix=f"{split}-")
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
    return SplitSource(config, training, evaluation)


class SplitSource:
    """Samples that are read at the load size for training, and at the crop size for evaluation."""

    def __init__(self, config: DataConfig, training: Samples, evaluation: Samples, stem_prefix: str = "") -> None:
        self.problems = training.problems
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


def steps_per_epoch(source: SampleSource, batch_size: int) -> int:
    """The number of full batches in an epoch; an incomplete one is dropped. Raises DatasetError if there is none."""
    check_positive("batch_size", batch_size)
    steps = len(source) // batch_size
    if not steps:
        raise DatasetError(
            f"{len(source)} samples are fewer than one batch of {batch_size}", hint="take a smaller `batch_size`"
        )
    return steps


def training_batches(
    source: SampleSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    on_skip: Callable[[str], None] | None = None,
    shard: Shard = WHOLE,
) -> Generator[Batch, None, None]:
    """Batches without end, from step `start_step` on; each epoch has every sample once, in an order of its own.

    workers: processes that load ahead, at most one a core; 0 loads in this process. The batches do not depend on it.
    shard: which samples of each batch are made, if several processes train; a sample does not depend on it.
    on_skip: called once for each sample that cannot be used; the next usable one replaces it.
    Close the generator to end the workers. Raises DatasetError if there are fewer samples than a batch, or none can be
    used.
    """
    steps = steps_per_epoch(source, batch_size)
    if workers < 0 or seed < 0 or start_step < 0:
        raise ConfigError(f"`workers` {workers}, `seed` {seed}, step {start_step}: none may be negative")
    positions = shard.positions(batch_size)
    keys = _batch_keys(len(source), batch_size, steps, seed, start_step)
    own = keys if shard == WHOLE else ([batch[position] for position in positions] for batch in keys)
    return _reported(loaded(_Fetcher(source, seed), own, seed=seed, workers=workers), on_skip)


def validation_labels(source: SampleSource, count: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Labels, instances (or None) and photos of evenly spaced samples, as in `Batch`; always the same ones.

    There are fewer than `count` if the split has fewer. Samples that cannot be used are replaced by the next ones.
    Raises DatasetError if none can be used.
    """
    count = min(count, len(source))
    if count < 1:
        raise DatasetError("there are no samples to choose from")
    bad: dict[int, str] = {}
    chosen = [_first_usable(source, n * len(source) // count, lambda: None, bad)[1] for n in range(count)]
    batch = _collated(chosen, ())
    return batch.label, batch.instance, batch.photo


def _batch_keys(samples: int, batch_size: int, steps: int, seed: int, start_step: int) -> Iterator[list[Key]]:
    epoch, step = divmod(start_step, steps)
    while True:
        order = np.random.default_rng((_ORDER, seed, epoch)).permutation(samples)
        for first in range(step * batch_size, steps * batch_size, batch_size):
            yield [(epoch, position, int(order[position])) for position in range(first, first + batch_size)]
        epoch, step = epoch + 1, 0


class _Fetcher(Dataset[Any]):
    """Makes a batch from a list of keys, in this process or in a worker. DataLoader calls `__getitems__`."""

    def __init__(self, source: SampleSource, seed: int) -> None:
        self.source = source
        self.seed = seed
        self.bad: dict[int, str] = {}

    def __getitems__(self, keys: list[Key]) -> Batch | SpadeError:
        # An error is returned, not raised: DataLoader would wrap its message into a traceback's text.
        try:
            known = set(self.bad)
            found = [self._load(key) for key in keys]
        except SpadeError as error:
            return error
        skipped = tuple((index, message) for index, message in self.bad.items() if index not in known)
        return _collated([arrays for _, arrays in found], tuple(self.source.stem(i) for i, _ in found), skipped)

    def _load(self, key: Key) -> tuple[int, SampleArrays]:
        epoch, position, index = key
        # A fresh generator for each attempt: a replacement must not depend on how far a broken file was read.
        return _first_usable(
            self.source, index, lambda: np.random.default_rng((_AUGMENT, self.seed, epoch, position)), self.bad
        )


def _first_usable(
    source: SampleSource, index: int, make_rng: Callable[[], np.random.Generator | None], bad: dict[int, str]
) -> tuple[int, SampleArrays]:
    """The sample, or the next one that can be used. Those that cannot be used are added to `bad`."""
    for candidate in range(index, index + len(source)):
        place = candidate % len(source)
        if place in bad:
            continue
        try:
            return place, source.load(place, make_rng())
        except LabelMapError as error:
            bad[place] = error.message
    raise DatasetError(
        f"none of the {len(source)} samples can be used; the first one: {bad[index]}",
        hint="spade check-labels DIR shows what is wrong",
    )


def _collated(
    samples: Sequence[SampleArrays], stems: tuple[str, ...], skipped: tuple[tuple[int, str], ...] = ()
) -> Batch:
    photo = np.stack([sample.photo for sample in samples]).transpose(0, 3, 1, 2)
    instances = [sample.instance for sample in samples if sample.instance is not None]
    return Batch(
        torch.from_numpy(np.stack([sample.label for sample in samples])),
        torch.from_numpy(np.stack(instances)) if instances else None,
        torch.from_numpy(np.ascontiguousarray(photo, dtype=np.float32)).div_(127.5).sub_(1),
        stems,
        skipped,
    )


def _reported(
    batches: Iterator[Batch | SpadeError], on_skip: Callable[[str], None] | None
) -> Generator[Batch, None, None]:
    told: set[int] = set()
    batch: Batch | SpadeError | None = None
    try:
        for batch in batches:
            if isinstance(batch, SpadeError):
                raise batch
            for index, message in batch.skipped:  # every worker finds the same bad samples
                if on_skip and index not in told:
                    on_skip(message)
                told.add(index)
            yield batch
    finally:
        # This ends the workers now. An error's traceback holds this frame, and the frame holds the error; left to the
        # garbage collector, the workers would end late, after five seconds each.
        del batch, batches
