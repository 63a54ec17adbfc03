"""The source of a run's batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from spade_deploy.labels.holdout import FEWEST
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.same_photos import copies_trained_on
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.runs.learned import learned_before
from spade_deploy.training import dataset
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import WHOLE, Batch, Memory, Shard
from spade_deploy.training.memory import build_bank
from spade_deploy.training.records.measurements import Measures
from spade_deploy.training.splits import open_held_out, open_source


class BatchSource(Protocol):
    """A source of batches. Their order depends only on `seed`; the first `start_step` batches are left out."""

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def batches(
        self, *, batch_size: int, seed: int, start_step: int, workers: int, on_skip: Callable[[str], None]
    ) -> Generator[Batch, None, None]: ...

    def samples(self, count: int) -> Batch: ...

    def record(self) -> DataRecord:
        """The training samples, which a resumed run must find again."""
        ...

    def held_out_sha256(self) -> str:
        """The digest of the held-out samples, as figures of other samples are not comparable; empty if not known."""
        ...

    def evaluator(self, setup: Setup) -> Measures: ...

    def memory_bank(self, setup: Setup) -> MemoryBank:
        """A memory bank of the training photos. It is called only for a network that has one."""
        ...

    def remembering(self, bank: MemoryBank) -> BatchSource:
        """The same batches with canvases of a bank. It is called only for a network that has one."""
        ...

    def sharded(self, shard: Shard) -> BatchSource:
        """The same batches with only the samples of one process. It is called only if several processes train."""
        ...


class FolderSource:
    """The samples of a setup's data set. `notes` has sentences about it for the user."""

    def __init__(self, setup: Setup) -> None:
        data, labels = setup.data, setup.generator.labels
        self._shard = WHOLE
        self._memory: Memory | None = None
        self._unknown_id = labels.unknown_id
        self._training = open_source(data, "train", labels)
        self._data = data
        self._held_out, self._split = open_held_out(data, labels)
        self._copies = sorted(copies_trained_on(data, self._split))
        self.notes = (*_unpaired(getattr(self._training, "problems", ())), *getattr(self._training, "notes", ()))
        self._begins_with = "the weights that `init` names" if setup.train.distill is None else "the teacher"
        self._learned = learned_before(setup.train.begins_with).count(self._held_out.record())
        self.notes += (*self._about_measuring(), *_about_copies(self._copies, len(self._held_out)))

    def steps_per_epoch(self, batch_size: int) -> int:
        return dataset.steps_per_epoch(self._training, batch_size)

    def batches(
        self, *, batch_size: int, seed: int, start_step: int, workers: int, on_skip: Callable[[str], None]
    ) -> Generator[Batch, None, None]:
        yield from dataset.training_batches(
            self._training,
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            workers=workers,
            on_skip=on_skip,
            shard=self._shard,
            memory=self._memory,
        )

    def memory_bank(self, setup: Setup) -> MemoryBank:
        """A memory bank of the training photos. Raises DatasetError if they have no segment."""
        return build_bank(self._training, setup)

    def remembering(self, bank: MemoryBank) -> FolderSource:
        """The same source, whose batches have canvases of a bank that it made."""
        other = copy(self)
        other._memory = Memory(bank, self._unknown_id)
        return other

    def sharded(self, shard: Shard) -> FolderSource:
        """The same source, whose batches have the samples of one process alone."""
        other = copy(self)
        other._shard = shard
        return other

    def samples(self, count: int) -> Batch:
        label, instance, photo = dataset.validation_labels(self._held_out, count)
        return Batch(label, instance, photo, stems=())

    def record(self) -> DataRecord:
        """The training samples, in the order that batches are drawn from."""
        held_out, names = self._data.holdout, [self._held_out.stem(index) for index in range(len(self._held_out))]
        measured_on: dict[str, Any] = {"split": self._split, "held_out": self._is_held_out, "samples": names}
        measured_on |= {"learned_before": self._learned, "also_trained_on": len(self._copies)}
        if held_out is not None:
            measured_on |= {"share": held_out.share, "seed": held_out.seed}
        return replace(self._training.record(), measured_on=measured_on)

    @property
    def _is_held_out(self) -> bool | None:
        """Whether neither this run nor those before it learn from what is measured on; None if that is not known."""
        if self._split == "train" or self._learned or self._copies:
            return False
        return True if self._learned == 0 else None

    def _about_measuring(self) -> tuple[str, ...]:
        if self._split == "train" or self._learned == 0:
            return _about_measuring(self._data, self._split, len(self._held_out), len(self._training))
        weights, measured = self._begins_with, "samples that metrics and sample grids are of"
        if self._learned is None:
            return (
                f"it is not known what {weights} learned from, so it is not known whether the {measured} are held out",
            )
        told = f"{weights} learned from {self._learned} of the {len(self._held_out)} {measured}"
        return (f"{told}: they are not held out, and the figures are too good",)

    def held_out_sha256(self) -> str:
        """The digest of the held-out samples' names and their files' sizes."""
        return self._held_out.record().contents_sha256

    def evaluator(self, setup: Setup) -> Measures:
        """The evaluator on the held-out samples.

        Raises ConfigError, MissingDependencyError for an extractor or a segmenter that cannot be used.
        """
        from spade_deploy.training.evaluator import Evaluator

        return Evaluator(setup, self._held_out)


def first_batches(source: BatchSource, setup: Setup) -> list[Batch]:
    """The label maps of the first batches, without their photos; they are the same for a resumed run."""
    config = setup.train
    batches = source.batches(
        batch_size=config.batch_size // config.accumulate,
        seed=config.seed,
        start_step=0,
        workers=0,
        on_skip=lambda _: None,
    )
    with closing(batches):
        return [replace(batch, photo=batch.photo[:0]) for batch in islice(batches, config.ema_batches)]


def _about_measuring(data: DataConfig, split: str, measured: int, trained: int) -> tuple[str, ...]:
    """A sentence on the samples that metrics and sample grids are of, where that is not plain from the data set."""
    if data.holdout is not None and split != "train":
        share, seed = measured / (measured + trained), data.holdout.seed
        what = "samples is" if measured == 1 else "samples are"
        text = f"{measured} of {measured + trained} {what} held out ({share:.0%}, chosen by name with seed {seed})"
        text += f": metrics and sample grids use these, training uses the other {trained}"
        return (f"{text}; `holdout` sets the share",)
    if split == data.evaluation_split and split != "train":
        return ()
    instead = "metrics and sample grids show training samples"
    if data.labels_dir is None:
        return (f"{data.root} has no {data.evaluation_split} split: {instead}",)
    why = f"{trained} samples are too few to hold any out" if trained < FEWEST else "no samples are held out"
    return (f"{why}: {instead}, and also show what was memorised; `val_labels` and `val_images` name others",)


def _about_copies(copies: Sequence[Path], measured: int) -> tuple[str, ...]:
    """A sentence on photos that are both measured and trained on."""
    if not copies:
        return ()
    text = f"{len(copies)} of the {measured} photos that metrics and sample grids are of are trained on, too, as"
    return (f"{text} {copies[0]} is: they are not held out, and the figures are too good; remove the copies",)


def _unpaired(problems: tuple[str, ...], shown: int = 5) -> tuple[str, ...]:
    if not problems:
        return ()
    rest = f"; and {len(problems) - shown} more, which `spade check-labels` lists" if len(problems) > shown else ""
    what = "1 file has no partner and is" if len(problems) == 1 else f"{len(problems)} files have no partner and are"
    return (f"{what} left out: {'; '.join(problems[:shown])}{rest}",)
