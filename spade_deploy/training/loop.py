"""The training run: it begins with a setup or a checkpoint, and writes checkpoints, logs and pictures to a run folder.

Results depend only on the setup and the checkpoint; the clock is used only for dates in files. On a CPU a resumed run
repeats an unbroken one bit for bit; a GPU may add in another order.

Several processes (`World`) may run this together, each on its share of every batch. They stop or fail together, and
only process 0 writes files.
"""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, TrainingInterruptedError
from spade_deploy.progress import SILENT, Figures, Progress
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.training.config import Setup
from spade_deploy.training.device import choose_device, peak_memory_bytes
from spade_deploy.training.distillation.learner import make_learner
from spade_deploy.training.memory import described
from spade_deploy.training.processes.world import ALONE, News, World
from spade_deploy.training.records import plots
from spade_deploy.training.records.recorder import Recorder
from spade_deploy.training.resume import newest_checkpoint, restore, resume_hint
from spade_deploy.training.shortage import named_shortage
from spade_deploy.training.source import BatchSource, FolderSource, first_batches
from spade_deploy.training.steps import Learner
from spade_deploy.training.stop_signal import StopSignal

SAMPLE_ROWS = 4
"""How many label maps a sample grid shows."""

_SPEED_WINDOW = 20
"""The speed is the mean over so many steps."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run."""

    run: Path
    """The run's folder."""

    checkpoint: Path
    """The folder of the last checkpoint."""

    step: int
    """The last step."""

    losses: dict[str, float]
    """The losses of the last step, each before it is weighted."""

    seconds: float
    """How long this call took."""

    skipped: tuple[str, ...]
    """The samples that could not be read, a message each."""

    notes: tuple[str, ...]
    """What the user should know, a sentence each."""


def train(
    setup: Setup,
    *,
    run: Path,
    source: BatchSource | None = None,
    resume: Path | None = None,
    progress: Progress = SILENT,
    world: World = ALONE,
) -> TrainResult:
    """Train in the folder `run`, from the beginning or from the checkpoint `resume`.

    world: the processes that train together; each of them calls this with the same arguments, on the same files.
    Process 0 alone writes and reports, and the checkpoints are those of one process with the whole batch.

    A resumed run may have other `steps` or `epochs`. The learning rates then are those of a run of the new length: if
    they had begun to fall they may rise again, and TrainResult.notes says so.

    Raises TrainingInterruptedError after SIGINT or SIGTERM (the state is saved first; a second signal stops at once),
    TrainingError for a loss that is no number, and where memory or a disk is full (the last good checkpoint is kept and
    named), CheckpointError if `resume` is damaged or belongs to other settings, ConfigError for an impossible device,
    or a batch that cannot be shared equally. With several processes also TrainingError if a peer was lost.
    """
    recorder: Recorder | None = None

    def last_good() -> tuple[str, str]:
        saved = recorder.last_good if recorder is not None else newest_checkpoint(run, resume)
        if saved is None:
            return "No checkpoint was saved yet", "start it again"
        return f"The last good checkpoint is {saved}", hint

    began = time.perf_counter()
    hint = resume_hint(run, world)
    with world.noticing_lost_peers(last_good), named_shortage(last_good), ExitStack() as stack:
        with world.together():
            work = _prepare(setup, run, source, resume, world)
        work.learner.connect(world)
        with world.together():
            if world.is_main:
                recorder = stack.enter_context(work.recorder(run, resume))
        try:
            step, stopped_by, losses = _loop(work, recorder, world, progress)
        except KeyboardInterrupt as error:  # the second signal
            message = f"stopped at once; the steps after the last checkpoint are lost. {last_good()[0]}"
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
    """A run that is ready to begin."""

    learner: Learner
    """The networks and their optimisers."""
    source: BatchSource
    """The source of the batches."""
    record: DataRecord
    """The names and files of the training samples."""

    start: int
    """The last step that is done; 0 in a new run."""

    total: int
    """The number of the run's last step."""

    facts: dict[str, Any]
    """Facts that a resumed run must find unchanged."""

    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    counts: Mapping[str, Any] | None = None
    """The classes counted so far, as the checkpoint has them."""

    def recorder(self, run: Path, resume: Path | None) -> Recorder:
        """The recorder of this run, which starts with the notes so far."""
        setup = self.learner.setup
        evaluator = self.source.evaluator(setup) if setup.train.eval_every else None
        samples = self.learner.beside(self.source.samples(SAMPLE_ROWS))
        made = Recorder(run, self.learner, samples, self.facts, resume, self.start, evaluator, self.counts)
        for note in self.notes:
            made.say(note)
        made.write_data(self.record)
        return made


def _prepare(setup: Setup, run: Path, given: BatchSource | None, resume: Path | None, world: World) -> _Work:
    """Make everything that can fail in a single process, before the processes wait for each other."""
    config = setup.train
    plots.require_matplotlib()
    world.shard(config.accumulate).positions(config.batch_size)  # raises before anything is made
    source = given or FolderSource(setup)
    steps_per_epoch = source.steps_per_epoch(config.batch_size)
    total = config.total_steps(steps_per_epoch)
    # An averaged generator's statistics are estimated on these batches, whatever the number of processes is.
    statistics_batches = cache(partial(first_batches, source, setup))
    learner = make_learner(setup, choose_device(config.device, world), statistics_batches, run)
    record = source.record()
    facts = {"steps_per_epoch": steps_per_epoch, "steps": total, "perceptual": learner.perceptual_sha256}
    facts |= {"samples": record.identity, "held_out": source.held_out_sha256()}
    if resume is None:
        begun = learner.begin()
        source, notes = _with_memory(learner, source)
        return _Work(learner, source, record, 0, total, facts, (*begun, *notes))
    restored = restore(learner, resume, facts, record)
    start, notes = restored.step, restored.notes
    source, _ = _with_memory(learner, source)
    longer = f"`spade train --resume {shlex.quote(str(run))} --steps {2 * start}`"
    if start > total:
        raise ConfigError(
            f"`steps`: {resume} is at step {start}, after the end of a run of {total}", hint=f"continue with {longer}"
        )
    if start == total:
        notes = (f"nothing was left to do: {resume} is at step {start} of {total}; {longer} continues it", *notes)
    return _Work(learner, source, record, start, total, facts, notes, restored.counts)


def _with_memory(learner: Learner, source: BatchSource) -> tuple[BatchSource, tuple[str, ...]]:
    """The source with canvases, for a network that completes them, and a sentence on a bank that was made for it.

    A resumed run has the bank of its checkpoint.
    """
    if not learner.setup.generator.has_bank:
        return source, ()
    bank, notes = learner.bank, tuple[str, ...]()
    if bank is None:
        bank = source.memory_bank(learner.setup)
        learner.take_bank(bank)
        notes = (described(bank),)
    return source.remembering(bank), notes


def _loop(
    work: _Work, recorder: Recorder | None, world: World, progress: Progress
) -> tuple[int, str, dict[str, float]]:
    """Make steps start+1..total, or fewer after a signal to any process. Returns the last step, the signal, the losses.

    recorder: only process 0 has one. Between the steps the processes wait for it, and exchange their errors.
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
                    for note in recorder.new_notes():
                        progress.note(note)
                    figures = Figures(rate, seconds, memory, losses, recorder.metrics)
                    progress.count("training", step, total, figures)
            with world.together():
                if stopped_by and recorder is not None:
                    recorder.save(step)
    return step, stopped_by, losses
