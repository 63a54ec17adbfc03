"""Make training batches of a data set. They are the same for any number of workers, and after any interruption.

All randomness comes from (seed, epoch, position), so step k of a resumed run sees the batch that an unbroken run sees.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, SpadeError
from spade_deploy.labels.samples import SampleArrays
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.canvas import make_canvas
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.settings import check_positive
from spade_deploy.training.loader import loaded

_ORDER, _AUGMENT, _CANVAS = 0, 1, 2
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
    canvas: Tensor | None = None
    """N x 4 x H x W float32: what a memory bank gives for the label maps, of other photos; None without a bank."""


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


@dataclass(frozen=True)
class Memory:
    """What the canvases of a training are made of."""

    bank: MemoryBank
    """The memory bank. The photos in it are numbered as the samples of the source are."""
    unknown_id: int | None
    """The id of unknown pixels, which stay a hole."""


class SampleSource(Protocol):
    """A split of a data set. It is sent to worker processes, so it holds names and no pixels."""

    what: str
    """Its samples in words: 'training samples', 'held-out samples'."""
    check_hint: str
    """The command that finds what is wrong with its files, in a sentence."""

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

    def whole(self, index: int) -> SampleArrays:
        """A sample as it is before it is cropped for training. Raises LabelMapError where it cannot be used."""
        ...

    def overlapping(self, index: int) -> tuple[int, ...]:
        """The samples that show some of the same pixels, the sample itself among them."""
        ...


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
    memory: Memory | None = None,
) -> Generator[Batch, None, None]:
    """Batches without end, from step `start_step` on; each epoch has every sample once, in an order of its own.

    workers: processes that load ahead, at most one a core; 0 loads in this process. The batches do not depend on it.
    shard: which samples of each batch are made, if several processes train; a sample does not depend on it.
    on_skip: called once for each sample that cannot be used; the next usable one replaces it.
    memory: adds the canvas of each sample.
    Close the generator to end the workers. Raises DatasetError if there are fewer samples than a batch, or none can be
    used.
    """
    steps = steps_per_epoch(source, batch_size)
    if workers < 0 or seed < 0 or start_step < 0:
        raise ConfigError(f"`workers` {workers}, `seed` {seed}, step {start_step}: none may be negative")
    positions = shard.positions(batch_size)
    keys = _batch_keys(len(source), batch_size, steps, seed, start_step)
    own = keys if shard == WHOLE else ([batch[position] for position in positions] for batch in keys)
    return _reported(loaded(_Fetcher(source, seed, memory), own, seed=seed, workers=workers), on_skip)


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

    def __init__(self, source: SampleSource, seed: int, memory: Memory | None) -> None:
        self.source = source
        self.seed = seed
        self.memory = memory
        self.bad: dict[int, str] = {}

    def __getitems__(self, keys: list[Key]) -> Batch | SpadeError:
        # An error is returned, not raised: DataLoader would wrap its message into a traceback's text.
        try:
            known = set(self.bad)
            found = [self._load(key) for key in keys]
            canvas = self._canvases(keys, found)
        except SpadeError as error:
            return error
        skipped = tuple((index, message) for index, message in self.bad.items() if index not in known)
        batch = _collated([arrays for _, arrays in found], tuple(self.source.stem(i) for i, _ in found), skipped)
        return batch if canvas is None else replace(batch, canvas=canvas)

    def _canvases(self, keys: list[Key], found: list[tuple[int, SampleArrays]]) -> Tensor | None:
        """Canvases of patches of other photos than a sample's own, with segments left out at random."""
        if self.memory is None:
            return None
        bank, unknown_id = self.memory.bank, self.memory.unknown_id
        canvases = []
        for (epoch, position, _), (index, arrays) in zip(keys, found, strict=True):
            rng = np.random.default_rng((_CANVAS, self.seed, epoch, position))
            own = self.source.overlapping(index)
            canvases.append(make_canvas(bank, arrays.label, unknown_id, excluded=own, rng=rng))
        return torch.from_numpy(np.stack(canvases))

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
        f"none of the {len(source)} {source.what} can be used; the first one: {bad[index]}", hint=source.check_hint
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
