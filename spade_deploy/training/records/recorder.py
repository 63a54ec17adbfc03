"""What a run writes while it goes: logs, sample grids, plots, checkpoints; nothing of a state that is not finite.

Two kinds of failing to write. A checkpoint that cannot be written ends the run, with an error that names the last good
one: going on would be for nothing. All the rest is there to be looked at, and training goes on without it: it becomes a
note, and is tried again when it is next due. Rows of a log are kept until the disk takes them.

A checkpoint comes first and the rest of its step after it, so a process that is killed between the two leaves a step
whose pictures and metrics are missing. Who resumes makes them up (`catch_up`) before the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from spade_deploy.errors import CheckpointError, TrainingError
from spade_deploy.files.atomic import write_json, write_text
from spade_deploy.labels.files import save_pixels
from spade_deploy.networks.spade import to_pixels
from spade_deploy.runs import BEST_JSON, Best, checkpoint_folder, read_best
from spade_deploy.runs.checkpoint import TrainingState, save_checkpoint
from spade_deploy.runs.tensors import is_finite
from spade_deploy.training.dataset import Batch
from spade_deploy.training.records.animation import save_gif, save_timeline
from spade_deploy.training.records.class_counts import CLASSES_JSON, ClassCounts
from spade_deploy.training.records.data_record import DataRecord
from spade_deploy.training.records.notes import Notes
from spade_deploy.training.records.plots import (
    RATES,
    LossLog,
    plot_losses,
    plot_metrics,
    read_losses,
    read_rows,
    sample_grid,
)
from spade_deploy.training.records.run_folder import prune, set_aside_later, sweep
from spade_deploy.training.records.tensorboard import Board, require_tensorboard
from spade_deploy.training.steps import Learner

_METRICS = "metrics.csv"
_BOARD = "TensorBoard"


class Measures(Protocol):
    """Metrics on held-out samples."""

    def evaluate(self, generate: Callable[[Batch], Tensor]) -> dict[str, float]: ...

    def direction(self, name: str) -> str:
        """'lower' or 'higher': which is better. Raises ConfigError for a metric that is not measured."""
        ...


class Recorder:
    """Writes one run's folder.

    samples: the fixed label maps of the sample grids. facts: what a resumed run must find unchanged.
    resume, start: the checkpoint that this run goes on from, and its step.
    evaluator: asked every `eval_every` steps and at the end, None for no metrics.
    counts: the classes counted so far, as the checkpoint has them.
    metrics: the last that were measured. skipped: samples that could not be read.
    Raises TrainingError where the folder cannot be written, MissingDependencyError, ConfigError for --best-by.
    """

    def __init__(
        self,
        run: Path,
        learner: Learner,
        samples: Batch,
        facts: dict[str, Any],
        resume: Path | None,
        start: int,
        evaluator: Measures | None = None,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.last_good = resume
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.skipped: dict[str, None] = {}
        self._learner = learner
        self._samples = samples
        self._facts = facts
        self._start = start
        self._evaluator = evaluator if learner.setup.train.eval_every else None
        self._notes = Notes(start)
        config = learner.setup.train
        labels = learner.setup.generator.labels
        if evaluator is not None and config.best_by:
            evaluator.direction(config.best_by)  # refuses now what is not measured
        if config.tensorboard:
            require_tensorboard()
        self._counts = ClassCounts(labels, start) if resume is None else ClassCounts.resumed(run, labels, start, counts)
        self._goes_on_here = resume is not None and resume.parent.parent.resolve() == run.resolve()
        if self._goes_on_here:
            with self._writing():
                self._notes.say("later steps", set_aside_later(run, start))
        self._marked_step: int | None = None  # of the checkpoint that best.json names: it is never removed
        self._best = self._remembered_best() if resume is not None else None
        self._metric_log: LossLog | None = None
        self._board: Board | None = None
        with self._writing():
            write_json(run / "config.json", learner.setup.to_json())
            self._log = LossLog(run / "losses.csv", ("step", *learner.loss_names, *RATES, "seconds"), start)
        sweep(run)
        if config.tensorboard:
            with self._notes.optional(_BOARD):
                self._board = Board(run, start)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, log in (("losses.csv", self._log), (_METRICS, self._metric_log), (_BOARD, self._board)):
            if log is not None:
                with self._notes.optional(name):
                    log.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        return self._notes.all()

    def new_notes(self) -> tuple[str, ...]:
        """The first note about each thing that came up since this was last asked."""
        return self._notes.new()

    def say(self, note: str) -> None:
        """Add a note."""
        self._notes.say(note, note)

    def write_data(self, record: DataRecord) -> None:
        """Keep which samples the run is trained on. Raises TrainingError."""
        with self._writing():
            record.write(self.run)

    def count(self, label: Tensor) -> None:
        """Count the classes of a step's label maps, N x H x W ids; before `record`."""
        self._counts.add(label)

    def record(
        self, step: int, losses: dict[str, float], rates: tuple[float, float], seconds: float, *, is_last: bool
    ) -> None:
        """Check a step's losses, then write what is due after it."""
        config = self._learner.setup.train
        self._check_losses(step, losses)
        self._notes.step, self.losses = step, losses
        if is_last or step % config.log_every == 0:
            self._log_step(step, losses, rates, seconds)
        if is_last or step == self._facts.get("steps_per_epoch"):
            self._notes.say("classes", self._counts.sentence())
        if is_last or step % config.save_every == 0:
            self.save(step)
        if is_last or step % config.sample_every == 0:
            self._sample(step)
        if self._evaluator is not None and (is_last or step % config.eval_every == 0):
            self._evaluate(step, self._evaluator)
        if is_last:
            self._finish()

    def catch_up(self, *, is_last: bool) -> None:
        """Make up what is due after the step that was restored and is not there: its process was killed before it.

        is_last: whether the run ends with that step.
        """
        step, config = self._start, self._learner.setup.train
        if not self._goes_on_here:
            return
        if is_last:
            self._notes.say("classes", self._counts.sentence())
        self._after_saving()
        if (is_last or step % config.sample_every == 0) and not self._sample_path(step).is_file():
            self._sample(step)
        if self._evaluator is not None and (is_last or step % config.eval_every == 0):
            if step not in self._measured_steps():
                self._evaluate(step, self._evaluator)
            self._plot_metrics()
        if is_last:
            self._finish()

    def save(self, step: int) -> None:
        """Write the checkpoint of a step and the loss plot; older checkpoints than are to be kept go."""
        folder = checkpoint_folder(self.run, step)
        if folder == self.last_good:
            return
        self._check_networks(step)
        state = self._learner.state()
        with self._writing():
            save_checkpoint(
                folder,
                self._learner.deployed(),
                encoder=self._learner.encoder,
                step=step,
                origin="train",
                setup=self._learner.setup,
                state=TrainingState(
                    state.discriminator, {**state.rest, "facts": self._facts, "classes": self._counts.state()}
                ),
            )
        self.last_good = folder
        self._after_saving()

    def _after_saving(self) -> None:
        self._prune()
        if self._counts.samples:
            with self._notes.optional(CLASSES_JSON):
                self._counts.write(self.run)
        with self._notes.optional("losses.png"):
            plot_losses(self.run / "losses.csv", self.run / "losses.png")

    def skip(self, message: str) -> None:
        """Note a sample that cannot be read, once."""
        if message not in self.skipped:
            self.skipped[message] = None
            with self._notes.optional("skipped.txt"):
                write_text(self.run / "skipped.txt", "".join(line.replace("\n", " ") + "\n" for line in self.skipped))

    def last_good_sentence(self) -> str:
        """Where the last good state is."""
        return f"The last good checkpoint is {self.last_good}" if self.last_good else "No checkpoint was saved yet"

    def _check_losses(self, step: int, losses: dict[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            self._diverged(step, f"the loss {', '.join(bad)}")

    def _check_networks(self, step: int) -> None:
        networks = dict(self._learner.networks)
        if self._learner.average is not None:
            networks["averaged generator"] = self._learner.deployed()
        for name, network in networks.items():
            if not is_finite(network):
                self._diverged(step, f"the {name} has weights that are not finite")

    def _diverged(self, step: int, what: str) -> None:
        raise TrainingError(
            f"{self.run}: in step {step} {what}; nothing of this state was saved. {self.last_good_sentence()}",
            # Losses come before the weights are moved: rates have had no say in those of the first step.
            hint="no rate has moved a weight yet: it comes of what the run began with (--init, --perceptual-file, a"
            " checkpoint) or of --amp fp16"
            if step == self._start + 1
            else "start again with lower --lr-generator and --lr-discriminator, or another --seed",
        )

    def _log_step(self, step: int, losses: dict[str, float], rates: tuple[float, float], seconds: float) -> None:
        named = dict(zip(RATES, rates, strict=True))
        with self._notes.optional("losses.csv"):
            self._log.write({"step": step, **losses, **named, "seconds": seconds})
        speed = {"samples_per_second": self._learner.setup.train.batch_size / seconds} if seconds > 0 else {}
        for group, values in (("loss", losses), ("rate", named), ("speed", speed)):
            self._to_board(partial(Board.scalars, step=step, group=group, values=values))

    def _sample(self, step: int) -> None:
        self._check_networks(step)
        with self._notes.optional("the sample grid"):
            self._save_samples(step)

    def _sample_path(self, step: int) -> Path:
        return self.run / "samples" / f"step_{step:08d}.png"

    def _save_samples(self, step: int) -> None:
        batch = self._samples
        grid = sample_grid(
            self._learner.setup.generator.labels,
            batch.label.numpy(),
            self._learner.generate(batch).numpy(),
            to_pixels(batch.photo).numpy(),
        )
        save_pixels(self._sample_path(step), grid)
        self._to_board(lambda board: board.image(step, "samples", grid))

    def _evaluate(self, step: int, evaluator: Measures) -> None:
        """Measure, log, and keep the checkpoint if it is the best so far. Measuring that fails is noted."""
        self._check_networks(step)
        began = time.perf_counter()
        found: dict[str, float] = {}
        with self._notes.optional("the measurement"):
            found = {name: float(value) for name, value in evaluator.evaluate(self._learner.generate).items()}
        if not found:
            return
        self.metrics = found
        seconds = time.perf_counter() - began
        self._to_board(partial(Board.scalars, step=step, group="metric", values=found))
        name = self._learner.setup.train.best_by
        if math.isfinite(found.get(name, math.nan)):
            self._keep_if_best(Best(step, name, found[name], evaluator.direction(name), self._measured_with()))
        with self._notes.optional(_METRICS):
            if self._metric_log is None:
                self._metric_log = self._open_metric_log(("step", *found, "seconds"))
            row = {name: found.get(name, math.nan) for name in self._metric_log.columns}
            self._metric_log.write({**row, "step": step, "seconds": seconds})
        self._plot_metrics()

    def _measured_steps(self) -> set[float]:
        """The steps that metrics.csv has a row of."""
        try:
            return set(read_losses(self.run / _METRICS).get("step", ()))
        except (OSError, ValueError):  # none yet, or a damaged one: it is measured again
            return set()

    def _plot_metrics(self) -> None:
        if not self._measured_steps():
            return
        with self._notes.optional("metrics.png"):
            best_point = (self._best.metric, self._best.step) if self._best is not None else None
            plot_metrics(self.run / _METRICS, self.run / "metrics.png", best_point)

    def _keep_if_best(self, found: Best) -> None:
        """The checkpoint first, then the mark, then the old best goes: a marked checkpoint is always there."""
        if self._best is not None and not found.is_better_than(self._best):
            return
        self.save(found.step)
        with self._notes.optional(BEST_JSON):
            write_json(self.run / BEST_JSON, found.to_json())
            self._best, self._marked_step = found, found.step
        self._prune()

    def _open_metric_log(self, columns: tuple[str, ...]) -> LossLog:
        """Rows of other metrics, which a resumed run may measure, stay in a file of their own."""
        path = self.run / _METRICS
        if self._start and path.is_file():
            try:
                header = next(iter(read_rows(path)), [])
            except ValueError:
                header = []
            if tuple(header) != columns:
                path.rename(path.with_name(f"metrics_until_{self._start:08d}.csv"))
        return LossLog(path, columns, self._start)

    def _remembered_best(self) -> Best | None:
        """The best so far of a resumed run, where it was found by the same measure and its checkpoint is there."""
        try:
            best = read_best(self.run)
        except CheckpointError as error:
            self._notes.say("best", f"the best checkpoint so far is forgotten: {error.message}")
            return None
        if best is None or not checkpoint_folder(self.run, best.step).is_dir():
            return None
        self._marked_step = best.step
        ours = self._measured_with()
        same = all(best.measured_with.get(name, value) == value for name, value in ours.items())  # older: fewer
        if not same or best.metric != self._learner.setup.train.best_by:
            self._notes.say("best", f"the best checkpoint so far, by {best.described}, was measured in another way")
            return None
        return best

    def _measured_with(self) -> dict[str, Any]:
        config = self._learner.setup.train
        files = {"extractor": config.extractor, "segmenter": config.segmenter}
        held_out = {"held_out": self._facts["held_out"]} if self._facts.get("held_out") else {}
        return {
            "samples": config.eval_samples,
            **held_out,
            **{name: path.name if path else "" for name, path in files.items()},
        }

    def _to_board(self, write: Callable[[Board], None]) -> None:
        """A board that failed once is left alone: its writer cannot be used again."""
        if self._board is not None:
            board, self._board = self._board, None
            with self._notes.optional(_BOARD):
                write(board)
                self._board = board

    def _finish(self) -> None:
        with self._notes.optional("timeline.png"):
            save_timeline(self.run)
        with self._notes.optional("samples.gif"):
            save_gif(self.run)

    def _prune(self) -> None:
        marked = checkpoint_folder(self.run, self._marked_step) if self._marked_step is not None else None
        kept = {folder for folder in (marked, self.last_good) if folder is not None}
        with self._notes.optional("removing old checkpoints"):
            prune(self.run, self._learner.setup.train.keep_checkpoints, kept)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.run}: cannot be written ({error}). {self.last_good_sentence()}",
                hint="make room or choose another --runs folder, then resume",
            ) from error
