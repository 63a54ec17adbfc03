"""The training run: from a setup, or from a checkpoint, to checkpoints, a log and pictures in a run folder.

Everything that decides a result is in the setup and the checkpoint: the clock only dates what is written. On a CPU a
resumed run repeats an unbroken one bit for bit; on a GPU up to the order in which it adds.

Several processes (`World`) run this together, each on its share of every batch: what one of them decides, to stop or to
fail, they agree on first, and process 0 alone records.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from torch import nn

from spade_deploy.errors import CheckpointError, ConfigError, TrainingInterruptedError
from spade_deploy.machine import memory as process_memory
from spade_deploy.runs import checkpoint_folder, run_checkpoints
from spade_deploy.runs.checkpoint import load_generator, load_training_state
from spade_deploy.runs.shipped import SHIPPED, shipped_generator
from spade_deploy.training import dataset
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import WHOLE, Batch, Shard
from spade_deploy.training.processes.world import ALONE, News, World
from spade_deploy.training.records import plots
from spade_deploy.training.records.data_record import DataRecord, changed_samples, refuse_other_samples
from spade_deploy.training.records.recorder import Measures, Recorder
from spade_deploy.training.saved_setup import load_setup
from spade_deploy.training.shortage import named_shortage
from spade_deploy.training.steps import Learner

SAMPLE_ROWS = 4
MAY_CHANGE = frozenset(
    {"steps", "epochs", "workers", "save_every", "sample_every", "log_every", "keep_checkpoints", "device", "compile"}
    | {"init"}
    | {"eval_every", "eval_samples", "extractor", "segmenter", "best_by", "tensorboard"}
    # Data may have moved and so may the VGG weights: the length of an epoch and the file's digest are compared instead.
    | {"root", "labels_dir", "images_dir", "instances_dir", "perceptual_file"}
)
"""Settings that a resumed run may change: they do not change what a step computes."""

_SPEED_WINDOW = 20


class BatchSource(Protocol):
    """Where samples come from. The order depends on `seed` alone; `start_step` batches of it are passed over."""

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def batches(
        self, *, batch_size: int, seed: int, start_step: int, workers: int, on_skip: Callable[[str], None]
    ) -> Generator[Batch, None, None]: ...

    def samples(self, count: int) -> Batch: ...

    def record(self) -> DataRecord:
        """The training samples, which a resumed run must find again."""
        ...

    def held_out_sha256(self) -> str:
        """Of the held-out samples: figures of other ones do not compare. '' where there is nothing to tell."""
        ...

    def evaluator(self, setup: Setup) -> Measures: ...

    def sharded(self, shard: Shard) -> BatchSource:
        """The same batches, of each the samples of one process; only asked for where there are several."""
        ...


@dataclass(frozen=True)
class Progress:
    """Reported after every step. losses: before their weights. Speeds are means of the last steps.

    metrics: the last ones measured, empty before. memory_bytes: the most that was in use, of the GPU where one trains.
    notes: what came up since the step before, a sentence each.
    """

    step: int
    steps: int
    losses: dict[str, float]
    seconds_per_step: float
    samples_per_second: float
    metrics: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves. skipped: samples that could not be read. notes: a sentence each, for the user."""

    run: Path
    checkpoint: Path
    step: int
    losses: dict[str, float]
    seconds: float
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def train(
    setup: Setup,
    *,
    run: Path,
    source: BatchSource | None = None,
    resume: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    world: World = ALONE,
) -> TrainResult:
    """Train in the folder `run`, from the beginning or from the checkpoint `resume`.

    world: the processes that train together, each of which calls this with the same arguments, on the same files.
    Process 0 alone writes and reports; the checkpoints are those of one process with the whole batch.

    A resumed run may have other `steps` or `epochs`: the learning rates then follow the new length, so where they had
    begun to fall they rise again to where a run of that length would have them. TrainResult.notes says so.

    Raises TrainingInterruptedError after SIGINT or SIGTERM (the state is saved first; a second signal stops at once),
    TrainingError for a loss that is no number, memory or a disk that has no more room (the last good checkpoint is
    kept and named),
    CheckpointError where `resume` is damaged or belongs to other settings, ConfigError for an impossible device, or a
    batch that cannot be shared out. With several processes also TrainingError where one of them is gone.
    """
    recorder: Recorder | None = None

    def last_good() -> tuple[str, str]:
        saved = recorder.last_good if recorder is not None else _newest(run, resume)
        if saved is None:
            return "No checkpoint was saved yet", "start it again"
        return f"The last good checkpoint is {saved}", hint

    began = time.perf_counter()
    hint = _resume_hint(run, world)
    with world.noticing_losses(last_good), named_shortage(last_good), ExitStack() as stack:
        with world.together():
            work = _prepare(setup, run, source, resume, world)
        work.learner.connect(world)
        with world.together():
            if world.is_main:
                recorder = stack.enter_context(work.recorder(run, resume))
        try:
            step, stopped_by, losses = _loop(work, recorder, world, on_progress)
        except KeyboardInterrupt as error:  # the second signal
            message = f"stopped at once; what came after the last checkpoint is lost. {last_good()[0]}"
            raise TrainingInterruptedError(message, hint=hint) from error
    if step < work.total:
        raise TrainingInterruptedError(
            f"stopped by {stopped_by} after step {step} of {work.total};"
            f" the state is saved in {checkpoint_folder(run, step)}",
            hint=hint,
        )
    return TrainResult(
        run=run,
        checkpoint=checkpoint_folder(run, step),
        step=step,
        losses=losses,
        seconds=time.perf_counter() - began,
        skipped=tuple(recorder.skipped) if recorder is not None else (),
        notes=recorder.notes if recorder is not None else work.notes,
    )


@dataclass(frozen=True)
class _Work:
    """A run that can begin. start, total: the steps start+1..total are to do. facts, counts: see Recorder."""

    learner: Learner
    source: BatchSource
    record: DataRecord
    start: int
    total: int
    facts: dict[str, Any]
    notes: tuple[str, ...]
    counts: Any = None

    def recorder(self, run: Path, resume: Path | None) -> Recorder:
        setup = self.learner.setup
        evaluator = self.source.evaluator(setup) if setup.train.eval_every else None
        samples = self.source.samples(SAMPLE_ROWS)
        made = Recorder(run, self.learner, samples, self.facts, resume, self.start, evaluator, self.counts)
        for note in self.notes:
            made.say(note)
        made.write_data(self.record)
        return made


def _prepare(setup: Setup, run: Path, given: BatchSource | None, resume: Path | None, world: World) -> _Work:
    """All that can fail in one process alone, before they meet."""
    config = setup.train
    plots.require_matplotlib()
    world.shard(config.accumulate).positions(config.batch_size)  # refused before anything is made
    source = given or FolderSource(setup)
    steps_per_epoch = source.steps_per_epoch(config.batch_size)
    total = config.total_steps(steps_per_epoch)
    # Of an averaged generator, by the process that saves it: the same batches whatever the number of processes.
    statistics_batches = cache(partial(_first_batches, source, setup))
    learner = Learner(setup, choose_device(config.device, world), statistics_batches)
    record = source.record()
    facts = {"steps_per_epoch": steps_per_epoch, "steps": total, "perceptual": learner.perceptual_sha256}
    facts |= {"samples": record.identity, "held_out": source.held_out_sha256()}
    start, notes, counts = 0, tuple[str, ...](), None
    if resume is None and config.init:
        learner.begin_from(initial_generator(config.init))
    if resume is not None:
        start, notes, counts = _restore(learner, resume, facts, record)
        longer = f"`spade train --resume {shlex.quote(str(run))} --steps {2 * start}`"
        if start > total:
            raise ConfigError(
                f"--steps: {resume} is at step {start}, beyond a run of {total}", hint=f"go on with {longer}"
            )
        if start == total:
            notes = (f"nothing was left to do: {resume} is at step {start} of {total}; {longer} goes on", *notes)
    return _Work(learner, source, record, start, total, facts, notes, counts)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: the GPU's on CUDA, else the resident set; 0 where nothing tells."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_memory.peak_memory_bytes() or 0


def _first_batches(source: BatchSource, setup: Setup) -> list[Batch]:
    """The label maps of the first batches of the first epoch, without their photos; the same for a resumed run."""
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


def initial_generator(name: str) -> nn.Module:
    """The generator that `--init` names: a shipped one, or a checkpoint's. Raises CheckpointError."""
    return shipped_generator(name) if name in SHIPPED else load_generator(Path(name)).module


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """'auto' is CUDA where there is one; of several processes each has the GPU of its number on its host.

    Raises ConfigError where a device is asked for that is not here.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if world.size > 1:
        if device.index is not None:
            raise ConfigError(
                f"--device: {name} is one GPU for {world.size} processes; each needs its own",
                hint="leave --device out, and choose GPUs with CUDA_VISIBLE_DEVICES",
            )
        device = torch.device("cuda", world.local_rank)
    count = torch.cuda.device_count() if has_cuda else 0
    if (device.index or 0) >= count:
        seen = f"PyTorch {torch.__version__} sees {count} CUDA devices"
        if world.size > 1 and count:
            raise ConfigError(
                f"--device: process {world.rank} is number {world.local_rank} on its host and has no GPU there; {seen}",
                hint=f"torchrun --nproc-per-node {count}, or --device cpu",
            )
        raise ConfigError(
            f"--device: {device if world.size > 1 else name} is not here; {seen}",
            hint="use --device cpu, or install a PyTorch built for CUDA and its driver",
        )
    if world.size > 1:
        torch.cuda.set_device(device)
    return device


class FolderSource:
    """The samples of a setup's data set."""

    def __init__(self, setup: Setup) -> None:
        data, labels = setup.data, setup.generator.labels
        self._shard = WHOLE
        self._training = dataset.open_source(data, "train", labels)
        self._held_out, split = dataset.open_held_out(data, labels)
        self.notes = _unpaired(getattr(self._training, "problems", ()))
        if split != data.evaluation_split:
            where = data.root or data.labels_dir
            self.notes += (f"{where} has no {data.evaluation_split} split: sample grids show training samples",)

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
        )

    def sharded(self, shard: Shard) -> FolderSource:
        """The same, with batches that have the samples of one process alone."""
        other = copy(self)
        other._shard = shard
        return other

    def samples(self, count: int) -> Batch:
        label, instance, photo = dataset.validation_labels(self._held_out, count)
        return Batch(label, instance, photo, stems=())

    def record(self) -> DataRecord:
        """The training samples, in the order that batches are drawn from."""
        return self._training.record()

    def held_out_sha256(self) -> str:
        """Of the held-out samples' names and their files' sizes."""
        return self._held_out.record().contents_sha256

    def evaluator(self, setup: Setup) -> Measures:
        """Raises ConfigError, MissingDependencyError for an extractor or a segmenter that cannot be used."""
        from spade_deploy.training.evaluator import Evaluator

        return Evaluator(setup, self._held_out)


def _unpaired(problems: tuple[str, ...], shown: int = 5) -> tuple[str, ...]:
    if not problems:
        return ()
    rest = f"; and {len(problems) - shown} more, which `spade check-labels` lists" if len(problems) > shown else ""
    what = (
        "1 file pairs with nothing and is" if len(problems) == 1 else f"{len(problems)} files pair with nothing and are"
    )
    return (f"{what} left out: {'; '.join(problems[:shown])}{rest}",)


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request, the second into KeyboardInterrupt; handlers are put back.

    Outside the main thread Python allows no handlers: there nothing is changed.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def _loop(
    work: _Work, recorder: Recorder | None, world: World, on_progress: Callable[[Progress], None]
) -> tuple[int, str, dict[str, float]]:
    """Steps start+1..total, or fewer after a signal to any process. Returns the last step, the signal and the losses.

    recorder: of process 0. Between the steps the processes wait for it, and for each other's errors.
    """
    learner, config, total = work.learner, work.learner.setup.train, work.total
    step, stopped_by, losses = work.start, "", learner.last_losses if work.start == total else dict[str, float]()
    durations: deque[float] = deque(maxlen=_SPEED_WINDOW)
    skips: list[str] = []
    with StopSignal() as stop:
        source = work.source.sharded(world.shard(config.accumulate)) if world.size > 1 else work.source
        batches = source.batches(
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=work.start,
            workers=config.workers,
            on_skip=skips.append,
        )
        with closing(batches):
            with world.together():
                if recorder is not None:
                    recorder.catch_up(is_last=work.start == total)
            while step < total and not stopped_by:
                began = time.perf_counter()
                with world.together():
                    batch = next(batches)
                step += 1
                factor = config.rate_factor(step, total)
                losses = learner.step(batch, factor)
                durations.append(time.perf_counter() - began)
                seconds = sum(durations) / len(durations)
                label = world.gather(batch.label)
                with world.together():
                    if recorder is not None:
                        recorder.count(label)
                        recorder.record(step, losses, learner.rates(factor), durations[-1], is_last=step == total)
                news = world.exchange(News(world.stopped_by(stop.name), skipped=tuple(skips)))
                stopped_by = news.signal
                skips.clear()
                if recorder is not None:
                    for message in news.skipped:
                        recorder.skip(message)
                    rate, memory = config.batch_size / seconds, peak_memory_bytes(learner.device)
                    said = recorder.new_notes()
                    on_progress(Progress(step, total, losses, seconds, rate, recorder.metrics, memory, said))
            with world.together():
                if stopped_by and recorder is not None:
                    recorder.save(step)
    return step, stopped_by, losses


def _restore(
    learner: Learner, checkpoint: Path, facts: dict[str, Any], record: DataRecord
) -> tuple[int, tuple[str, ...], Any]:
    """Put a checkpoint's state into the learner. Returns its step, what the user should know, and its class counts."""
    saved = load_setup(checkpoint)
    _refuse_other_settings(checkpoint, saved.to_json(), learner.setup.to_json())
    loaded, state = load_generator(checkpoint), load_training_state(checkpoint)
    before = state.rest.get("facts", {})
    refuse_other_samples(checkpoint, before.get("samples"), record)
    for name, what in (
        ("steps_per_epoch", "the data set's steps an epoch"),
        ("perceptual", "--perceptual-file's SHA-256"),
    ):
        if before.get(name) != facts[name]:
            raise CheckpointError(
                f"{checkpoint}: {what} was {str(before.get(name) or 'none')[:80]} and is now {facts[name] or 'none'}",
                hint="resume with the same files, or start a new run",
            )
    learner.restore(loaded.module, state, loaded.info.step, loaded.encoder)
    counts = state.rest.get("classes")
    changed = changed_samples(checkpoint.parent.parent, record)
    notes = (changed,) if changed else ()
    if before.get("steps") == facts["steps"]:
        return loaded.info.step, notes, counts
    falls_from = int(facts["steps"] * learner.setup.train.decay_start)
    length = f"the run had {str(before.get('steps'))[:80]} steps and has {facts['steps']} now"
    return loaded.info.step, (*notes, f"{length}: its learning rates fall after step {falls_from}"), counts


def _refuse_other_settings(checkpoint: Path, saved: Any, now: Any, path: str = "") -> None:
    """Raises CheckpointError that names the first setting that differs, of those that a step depends on."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in now:
            if name not in MAY_CHANGE:
                _refuse_other_settings(checkpoint, saved.get(name), now[name], f"{path}.{name}" if path else name)
    elif saved != now:
        raise CheckpointError(
            f"{checkpoint}: {path} was {saved!r} and is now {now!r}",
            hint="resume with the settings it was trained with, or start a new run",
        )


def _resume_hint(run: Path, world: World) -> str:
    command = f"spade train --resume {shlex.quote(str(run))}"
    if world.size == 1:
        return f"go on with `{command}`"
    return f"go on with `torchrun ... -m {command.replace('spade', 'spade_deploy', 1)}`, on any number of processes"


def _newest(run: Path, resume: Path | None) -> Path | None:
    """The last good checkpoint, as a process can tell that did not write it."""
    return next(reversed(run_checkpoints(run)), resume)
