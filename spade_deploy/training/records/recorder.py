"""Write the files of a run while it trains: logs, sample grids, plots, checkpoints. NaN and infinity are never saved.

If a checkpoint cannot be written, the run ends with an error that names the last good one, as further training would be
lost. All other files are only to be looked at, and training goes on without them: the failure becomes a message, and
writing is tried again when it is next due. Rows of a log are kept until they can be written.

A checkpoint comes first and the rest of its step after it, so a process that is killed between the two leaves a step
whose pictures and metrics are missing. A resumed run makes them (`catch_up`) before its first step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from spade_deploy.errors import TrainingError
from spade_deploy.files.atomic import write_json, write_text
from spade_deploy.labels.files import save_pixels
from spade_deploy.networks.spade import to_pixels
from spade_deploy.runs import Best, checkpoint_folder
from spade_deploy.runs.checkpoint import TrainingState, save_checkpoint
from spade_deploy.runs.csv_log import CsvLog
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.runs.leftovers import sweep_run
from spade_deploy.runs.settings import flat
from spade_deploy.runs.tensors import is_finite
from spade_deploy.training.dataset import Batch
from spade_deploy.training.records.animation import save_gif
from spade_deploy.training.records.class_counts import CLASSES_JSON, ClassCounts
from spade_deploy.training.records.measurements import (
    BestCheckpoint,
    Measures,
    MetricLog,
    measured_with,
    trusted_metric,
)
from spade_deploy.training.records.messages import RunMessages
from spade_deploy.training.records.plots import RATES, plot_losses
from spade_deploy.training.records.run_folder import prune, set_aside_later
from spade_deploy.training.records.sample_grid import sample_grid, sample_path
from spade_deploy.training.records.tensorboard import Board, require_tensorboard
from spade_deploy.training.records.timeline import save_timeline
from spade_deploy.training.steps import Learner

_BOARD = "TensorBoard"


class Recorder:
    """Writes one run's folder.

    samples: the fixed label maps of the sample grids. facts: the facts that a resumed run must find unchanged.
    resume, start: the checkpoint that this run goes on from, and its step.
    evaluator: measures the generator every `eval_every` steps and at the end; None measures nothing.
    counts: the class counts in the checkpoint.
    Attributes: `metrics` has the last measured metrics, `skipped` the samples that could not be read.
    Raises TrainingError where the folder cannot be written, MissingDependencyError, ConfigError for `best_by`.
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
        config = learner.setup.train
        labels = learner.setup.generator.labels
        self._evaluator = evaluator if config.eval_every else None
        self._messages = RunMessages(start)
        self._best_by = "" if evaluator is None else trusted_metric(evaluator, config.best_by, self._messages)
        if config.tensorboard:
            require_tensorboard()
        self._counts = ClassCounts(labels, start) if resume is None else ClassCounts.resumed(run, labels, start, counts)
        self._goes_on_here = resume is not None and resume.parent.parent.resolve() == run.resolve()
        if self._goes_on_here:
            with self._writing():
                self._messages.say("later steps", set_aside_later(run, start))
        self._best = BestCheckpoint(run, self._best_by, measured_with(config, facts), self._messages)
        if resume is not None:
            self._best.remember()
        self._metric_log = MetricLog(run, start, self._messages)
        self._board: Board | None = None
        with self._writing():
            write_json(run / "config.json", learner.setup.to_json())
            self._log = CsvLog(run / "losses.csv", ("step", *learner.loss_names, *RATES, "seconds"), start)
        sweep_run(run)
        if config.tensorboard:
            with self._messages.optional(_BOARD):
                board = Board(run, start)
                measured = () if self._evaluator is None else self._evaluator.names
                curves = [*(f"loss/{name}" for name in learner.loss_names), *(f"metric/{name}" for name in measured)]
                board.settings(flat(learner.setup.to_json()), curves)
                self._board = board

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._messages.optional("losses.csv"):
            self._log.close()
        self._metric_log.close()
        if self._board is not None:
            with self._messages.optional(_BOARD):
                self._board.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        return self._messages.all()

    def new_notes(self) -> tuple[str, ...]:
        """The notes that are new since the last call, a sentence each."""
        return self._messages.new()

    def say(self, note: str) -> None:
        """Add a sentence to the notes."""
        self._messages.say(note, note)

    def write_data(self, record: DataRecord) -> None:
        """Write the record of the training samples. Raises TrainingError."""
        with self._writing():
            record.write(self.run)

    def count(self, label: Tensor) -> None:
        """Count the classes of a step's label maps, N x H x W ids; call it before `record`."""
        self._counts.add(label)

    def record(
        self, step: int, losses: dict[str, float], rates: tuple[float, float], seconds: float, *, is_last: bool
    ) -> None:
        """Check a step's losses, then write the files that are due after it."""
        config = self._learner.setup.train
        self._check_losses(step, losses)
        self._messages.step, self.losses = step, losses
        if is_last or step % config.log_every == 0:
            self._log_step(step, losses, rates, seconds)
        if is_last or step == self._facts.get("steps_per_epoch"):
            self._messages.say("classes", self._counts.sentence())
        if is_last or step % config.save_every == 0:
            self.save(step)
        if is_last or step % config.sample_every == 0:
            self._sample(step)
        if self._evaluator is not None and (is_last or step % config.eval_every == 0):
            self._evaluate(step, self._evaluator)
        if is_last:
            self._finish()

    def catch_up(self, *, is_last: bool) -> None:
        """Write the files that were due after the restored step and are missing, since the process was killed before.

        is_last: whether the run ends with that step.
        """
        step, config = self._start, self._learner.setup.train
        if not self._goes_on_here:
            return
        if is_last:
            self._messages.say("classes", self._counts.sentence())
        self._after_saving()
        if (is_last or step % config.sample_every == 0) and not sample_path(self.run, step).is_file():
            self._sample(step)
        if self._evaluator is not None and (is_last or step % config.eval_every == 0):
            if step not in self._metric_log.steps():
                self._evaluate(step, self._evaluator)
            self._metric_log.plot(self._best.best)
        if is_last:
            self._finish()

    def save(self, step: int) -> None:
        """Write the checkpoint of a step and the loss plot; checkpoints beyond `keep_checkpoints` are removed."""
        folder = checkpoint_folder(self.run, step)
        if folder == self.last_good:
            return
        self._check_networks(step)
        state = self._learner.state()
        rest = {**state.rest, "facts": self._facts, "classes": self._counts.state()}
        with self._writing():
            save_checkpoint(
                folder,
                self._learner.deployed(),
                encoder=self._learner.encoder,
                step=step,
                origin="train",
                setup=self._learner.setup,
                state=TrainingState(state.discriminator, rest),
            )
        self.last_good = folder
        self._after_saving()

    def _after_saving(self) -> None:
        self._prune()
        if self._counts.samples:
            with self._messages.optional(CLASSES_JSON):
                self._counts.write(self.run)
        with self._messages.optional("losses.png"):
            plot_losses(self.run / "losses.csv", self.run / "losses.png")

    def skip(self, message: str) -> None:
        """Note a sample that cannot be read, once."""
        if message not in self.skipped:
            self.skipped[message] = None
            with self._messages.optional("skipped.txt"):
                write_text(self.run / "skipped.txt", "".join(line.replace("\n", " ") + "\n" for line in self.skipped))

    def _last_good_sentence(self) -> str:
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
            f"{self.run}: in step {step} {what}; nothing of this state was saved. {self._last_good_sentence()}",
            # The losses of the first step are computed before any weight is moved, so the rates had no part in them.
            hint="no rate has moved a weight yet: the cause is what the run began with (`init`, `perceptual_file`, a"
            " checkpoint) or `amp` fp16"
            if step == self._start + 1
            else "start again with lower `lr_generator` and `lr_discriminator`, or another `seed`",
        )

    def _log_step(self, step: int, losses: dict[str, float], rates: tuple[float, float], seconds: float) -> None:
        named = dict(zip(RATES, rates, strict=True))
        with self._messages.optional("losses.csv"):
            self._log.write({"step": step, **losses, **named, "seconds": seconds})
        speed = {"samples_per_second": self._learner.setup.train.batch_size / seconds} if seconds > 0 else {}
        for group, values in (("loss", losses), ("rate", named), ("speed", speed)):
            self._to_board(partial(Board.scalars, step=step, group=group, values=values))

    def _sample(self, step: int) -> None:
        self._check_networks(step)
        with self._messages.optional("the sample grid"):
            batch = self._samples
            grid = sample_grid(
                self._learner.setup.generator.labels,
                batch.label.numpy(),
                self._learner.generate(batch).numpy(),
                to_pixels(batch.photo).numpy(),
            )
            save_pixels(sample_path(self.run, step), grid)
            self._to_board(lambda board: board.image(step, "samples", grid))

    def _evaluate(self, step: int, evaluator: Measures) -> None:
        """Measure, log, and keep the checkpoint if it is the best so far. A measurement that fails is a message."""
        self._check_networks(step)
        began = time.perf_counter()
        found: dict[str, float] = {}
        with self._messages.optional("the measurement"):
            found = {name: float(value) for name, value in evaluator.evaluate(self._learner.generate).items()}
        if not found:
            return
        self.metrics = found
        seconds = time.perf_counter() - began
        self._to_board(partial(Board.scalars, step=step, group="metric", values=found))
        name = self._best_by
        if math.isfinite(found.get(name, math.nan)):
            self._keep_if_best(Best(step, name, found[name], evaluator.direction(name), self._best.measured_with))
        self._metric_log.write(step, found, seconds)
        self._metric_log.plot(self._best.best)

    def _keep_if_best(self, found: Best) -> None:
        """Save the checkpoint, then mark it, then remove the old best: a marked checkpoint is always there."""
        if self._best.is_beaten_by(found):
            self.save(found.step)
            self._best.mark(found)
            self._prune()

    def _to_board(self, write: Callable[[Board], None]) -> None:
        """Write to TensorBoard, unless that has failed before: its writer cannot be used again."""
        if self._board is not None:
            board, self._board = self._board, None
            with self._messages.optional(_BOARD):
                write(board)
                self._board = board

    def _finish(self) -> None:
        with self._messages.optional("timeline.png"):
            save_timeline(self.run)
        with self._messages.optional("samples.gif"):
            save_gif(self.run)

    def _prune(self) -> None:
        marked = self._best.marked_step
        best = checkpoint_folder(self.run, marked) if marked is not None else None
        kept = {folder for folder in (best, self.last_good) if folder is not None}
        with self._messages.optional("removing old checkpoints"):
            prune(self.run, self._learner.setup.train.keep_checkpoints, kept)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.run}: cannot be written ({error}). {self._last_good_sentence()}",
                hint="free some space, or choose another `runs_dir` folder, then resume",
            ) from error
