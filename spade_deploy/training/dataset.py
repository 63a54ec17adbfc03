"""From a data set to training batches: the same ones whatever the number of workers, and after any interruption.

All randomness comes from (seed, epoch, position), so step k of a resumed run sees the batch that an unbroken run sees.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, SpadeError
from spade_deploy.images.image_file import Size, read_photo, size_beside
from spade_deploy.labels import earth
from spade_deploy.labels.files import label_dtype, read_instance_map, read_label_map
from spade_deploy.labels.layouts import DataConfig, Problem, Sample, find_samples
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import LabelSpec
from spade_deploy.training.records.data_record import DataRecord

_ORDER, _AUGMENT = 0, 1
"""Domains of the random numbers. They lead the seed: NumPy takes (seed, epoch) and (seed, epoch, 0) for the same."""

Key = tuple[int, int, int]
"""(epoch, position in the epoch, index of the sample)."""


@dataclass(frozen=True)
class Arrays:
    """One sample, cropped. label H x W ids, instance H x W int32 or None, photo H x W x 3 uint8."""

    label: NDArray[Any]
    instance: NDArray[np.int32] | None
    photo: NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Samples as the networks take them.

    label: N x H x W, uint8 or int32. instance: N x H x W int32, None without an edge channel.
    photo: N x 3 x H x W float32 in [-1, 1]. stems: the samples' names.
    skipped: (index, message) of samples that could not be used and were replaced while this batch was made.
    """

    label: Tensor
    instance: Tensor | None
    photo: Tensor
    stems: tuple[str, ...]
    skipped: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Shard:
    """Which samples of every step's batch are one process's: of each of the step's `parts` an equal share, in order.

    So all processes together compute a part of what one process alone would, and batch norm sees the same samples.
    """

    rank: int = 0
    size: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.parts < 1 or not 0 <= self.rank < self.size:
            raise ConfigError(f"process {self.rank} of {self.size}, {self.parts} parts: there is no such share")

    def positions(self, batch_size: int) -> list[int]:
        """Places in a batch of `batch_size`, ascending. Raises ConfigError where that cannot be shared out equally."""
        share, rest = divmod(batch_size, self.size * self.parts)
        if rest or not share:
            unit = self.size * self.parts
            found = f"{self.size} processes" + (f" times --accumulate {self.parts}" if self.parts > 1 else "")
            below = batch_size // unit * unit
            allowed = f"{below} or {below + unit}" if below else str(unit)
            raise ConfigError(
                f"--batch-size: {batch_size} samples a step cannot be shared out equally to {found}",
                hint=f"take a multiple of {unit}, such as --batch-size {allowed}, or another number of processes",
            )
        firsts = [(part * self.size + self.rank) * share for part in range(self.parts)]
        return [first + offset for first in firsts for offset in range(share)]


WHOLE = Shard()


class SampleSource(Protocol):
    """A split of a data set. Crosses to the worker processes, so it holds names and no pixels."""

    def __len__(self) -> int: ...

    def stem(self, index: int) -> str: ...

    def record(self) -> DataRecord:
        """Which samples these are, for a run that is resumed."""
        ...

    def load(self, index: int, rng: np.random.Generator | None) -> Arrays:
        """A sample, cropped and flipped at random with `rng`; without, as evaluation sees it.

        Raises LabelMapError where the sample cannot be used.
        """
        ...


def open_source(config: DataConfig, split: str, labels: LabelSpec) -> SampleSource:
    """The samples of a split. Raises ConfigError; DatasetError where there are none, or not what `labels` needs."""
    if config.preset == "earth" and config.root is None:
        return EarthSource(config, split, labels)
    pairing = find_samples(config, split)
    samples = pairing.samples
    if any(sample.photo is None for sample in samples):
        raise DatasetError(f"{samples[0].label}: training needs photos", hint="name their folder with --images DIR")
    if labels.has_edges and any(sample.instance is None for sample in samples):
        raise DatasetError(
            f"{samples[0].label}: a model with an edge channel needs instance maps",
            hint="name their folder with --instances DIR, or train without edges",
        )
    return FileSource(config, samples, labels, _sentences(pairing.problems))


def _sentences(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(f"{problem.path}: {problem.message}" for problem in problems)


class FileSource:
    """Samples that are files. problems: a sentence for each file that is in no sample."""

    def __init__(
        self, config: DataConfig, samples: Sequence[Sample], labels: LabelSpec, problems: tuple[str, ...] = ()
    ) -> None:
        self.problems = problems
        self.config = config
        self.samples = tuple(samples)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.samples)

    def stem(self, index: int) -> str:
        return self.samples[index].stem

    def record(self) -> DataRecord:
        files = ((sample.stem, (sample.label, sample.photo, sample.instance)) for sample in self.samples)
        return DataRecord.of_files([(stem, tuple(path for path in paths if path is not None)) for stem, paths in files])

    def load(self, index: int, rng: np.random.Generator | None) -> Arrays:
        sample = self.samples[index]
        instance_path = sample.instance if self.labels.has_edges else None
        if sample.photo is None:
            raise LabelMapError(f"{sample.label}: has no photo")
        for path, is_photo in ((sample.photo, True), (instance_path, False)):
            if path is not None and (problem := size_beside(sample.label, path, is_photo=is_photo)):
                raise LabelMapError(f"{sample.label}: {problem}")
        size = self.config.crop_size if rng is None else self.config.load_size
        arrays = Arrays(
            read_label_map(sample.label, self.labels, size),
            None if instance_path is None else read_instance_map(instance_path, size),
            read_photo(sample.photo, size),
        )
        return arrays if rng is None else augmented(arrays, self.config.crop_size, self.config.flip, rng)


class EarthSource:
    """Tiles of the embedded data set, cut at the size that is needed, so nothing is ever resized.

    A tile is as large as the load size (evaluation: the crop size), which therefore is square; tiles overlap by half.
    """

    def __init__(self, config: DataConfig, split: str, labels: LabelSpec) -> None:
        if labels.num_ids != earth.earth_labels().num_ids or labels.has_edges:
            raise ConfigError(
                f"--preset earth: has {earth.earth_labels().num_ids} labels without dontcare and edges,"
                f" the model {labels.num_channels} channels"
            )
        for size in (config.load_size, config.crop_size):
            if size[0] != size[1]:
                raise ConfigError(f"--size: earth tiles are square, not {size[0]} x {size[1]}")
        self.config = config
        self.labels = labels
        self.tiles = _tiles(split, config.load_size[0])
        self.evaluation_tiles = _tiles(split, config.crop_size[0])

    def __len__(self) -> int:
        return len(self.tiles)

    def stem(self, index: int) -> str:
        return f"{self.tiles[index].split}-{self.tiles[index].stem}"

    def record(self) -> DataRecord:
        return DataRecord.of_files([(self.stem(index), ()) for index in range(len(self))])

    def load(self, index: int, rng: np.random.Generator | None) -> Arrays:
        # The two cuts may differ in number; evaluation spreads over its own.
        place = index * len(self.evaluation_tiles) // len(self.tiles)
        tile = self.tiles[index] if rng is not None else self.evaluation_tiles[place]
        label, photo = earth.cut(tile)
        arrays = Arrays(label.astype(label_dtype(self.labels)), None, photo)
        return arrays if rng is None else augmented(arrays, self.config.crop_size, self.config.flip, rng)


def _tiles(split: str, size: int) -> tuple[earth.Tile, ...]:
    tiles = earth.earth_tiles(split, size, max(1, size // 2))
    if not tiles:
        raise DatasetError(f"the {split} split of earth has no tiles of {size} pixels", hint="take a smaller --size")
    return tiles


def augmented(arrays: Arrays, crop_size: Size, flip: bool, rng: np.random.Generator) -> Arrays:
    """A random crop, mirrored half of the time; the same for label, instance and photo."""
    height, width = crop_size
    top = int(rng.integers(arrays.label.shape[0] - height + 1))
    left = int(rng.integers(arrays.label.shape[1] - width + 1))
    step = -1 if flip and rng.random() < 0.5 else 1

    def part(values: NDArray[Any]) -> NDArray[Any]:
        return values[top : top + height, left : left + width][:, ::step]

    instance = None if arrays.instance is None else part(arrays.instance)
    return Arrays(part(arrays.label), instance, part(arrays.photo))


def open_held_out(config: DataConfig, labels: LabelSpec) -> tuple[SampleSource, str]:
    """The evaluation split and its name; where the data set has none on disk, the training split.

    Raises DatasetError where that is missing too.
    """
    try:
        return open_source(config, config.evaluation_split, labels), config.evaluation_split
    except DatasetError:
        return open_source(config, "train", labels), "train"


def steps_per_epoch(source: SampleSource, batch_size: int) -> int:
    """Full batches in an epoch; the incomplete one is dropped. Raises DatasetError where there is none."""
    if batch_size < 1:
        raise ConfigError(f"--batch-size: {batch_size} is not a positive number")
    steps = len(source) // batch_size
    if not steps:
        raise DatasetError(
            f"{len(source)} samples are fewer than one batch of {batch_size}", hint="take a smaller --batch-size"
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

    workers: processes that load ahead, at most one a core; 0 loads in this one. The batches are the same.
    shard: the samples of each batch that are made, for one of several processes; each is what it is in the whole batch.
    Close it to end the workers.
    on_skip: told once about each sample that cannot be used, which is replaced by the next one that can.
    Raises DatasetError where there are fewer samples than a batch, or none can be used.
    """
    steps = steps_per_epoch(source, batch_size)
    if workers < 0 or seed < 0 or start_step < 0:
        raise ConfigError(f"--workers {workers}, --seed {seed}, step {start_step}: none may be negative")
    positions = shard.positions(batch_size)
    keys = _batch_keys(len(source), batch_size, steps, seed, start_step)
    own = keys if shard == WHOLE else ([batch[position] for position in positions] for batch in keys)
    return _reported(_loaded(source, own, seed, workers), on_skip)


def validation_labels(source: SampleSource, count: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Labels, instances (or None) and photos of evenly spaced samples, as in `Batch`; always the same ones.

    Fewer than `count` where the split has fewer; samples that cannot be used are replaced by the next.
    Raises DatasetError where none can be used.
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
    """Makes a batch of a list of keys, in whatever process; DataLoader calls `__getitems__`."""

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

    def _load(self, key: Key) -> tuple[int, Arrays]:
        epoch, position, index = key
        # A fresh generator for each attempt: a replacement must not depend on how far a broken file was read.
        return _first_usable(
            self.source, index, lambda: np.random.default_rng((_AUGMENT, self.seed, epoch, position)), self.bad
        )


def _first_usable(
    source: SampleSource, index: int, make_rng: Callable[[], np.random.Generator | None], bad: dict[int, str]
) -> tuple[int, Arrays]:
    """The sample, or the next one that can be used; `bad` remembers the others."""
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


def _collated(samples: Sequence[Arrays], stems: tuple[str, ...], skipped: tuple[tuple[int, str], ...] = ()) -> Batch:
    photo = np.stack([sample.photo for sample in samples]).transpose(0, 3, 1, 2)
    instances = [sample.instance for sample in samples if sample.instance is not None]
    return Batch(
        torch.from_numpy(np.stack([sample.label for sample in samples])),
        torch.from_numpy(np.stack(instances)) if instances else None,
        torch.from_numpy(np.ascontiguousarray(photo, dtype=np.float32)).div_(127.5).sub_(1),
        stems,
        skipped,
    )


def _loaded(source: SampleSource, keys: Iterator[list[Key]], seed: int, workers: int) -> Iterator[Batch | SpadeError]:
    fetcher = _Fetcher(source, seed)
    workers = min(workers, usable_cores())  # more only wait for each other
    if workers == 0:
        return map(fetcher.__getitems__, keys)
    loader: DataLoader[Any] = DataLoader(
        fetcher,
        batch_sampler=_Keys(keys),
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=_worker_context(),
        worker_init_fn=_begin_worker,
        # Its own generator: the default would draw from the global one, and a resumed run would then differ.
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(loader)


@dataclass(frozen=True)
class _Keys:
    keys: Iterator[list[Key]]

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys


def _reported(
    batches: Iterator[Batch | SpadeError], on_skip: Callable[[str], None] | None
) -> Generator[Batch, None, None]:
    told: set[int] = set()
    batch: Batch | SpadeError | None = None
    try:
        for batch in batches:
            if isinstance(batch, SpadeError):
                raise batch
            for index, message in batch.skipped:  # each worker finds it for itself
                if on_skip and index not in told:
                    on_skip(message)
                told.add(index)
            yield batch
    finally:
        # Ends the workers now. Left to an error's traceback, which holds this frame, and that frame the error, they
        # would wait for the garbage collector, and it for them: five seconds a worker.
        del batch, batches


def _worker_context() -> BaseContext:
    """How workers start: from a fork server where there is one, else spawned.

    Never forked from the training process: it has threads (torch's, CUDA's, a progress bar's), whose locks a fork
    would copy in whatever state they are; Python 3.12 warns of it, and 3.14 made the fork server its default.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The server and the workers that it forks inherit
    # what is blocked here, so they never see them, not even while they still import; see _begin_worker.
    with _safe_path():
        resource_tracker.ensure_running()  # first: it unblocks signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


@contextmanager
def _safe_path() -> Iterator[None]:
    """Python processes that are started in the block do not import from the current folder (as with -P)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _begin_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group, and so does the end that torchrun or a scheduler asks for with SIGTERM;
    # the training process alone decides to save and stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """Where the training process is killed its workers would wait for the fork server, and that for its workers."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _as_it_is(batch: Any) -> Any:
    return batch
