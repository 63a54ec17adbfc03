"""What a run writes while it goes: the log, sample grids, checkpoints; nothing of a state that is not finite."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from spade_deploy.atomic import write_json, write_text
from spade_deploy.errors import TrainingError
from spade_deploy.runs import checkpoint_folder, run_checkpoints
from spade_deploy.training.checkpoint import TrainingState, is_finite, save_checkpoint
from spade_deploy.training.dataset import Batch
from spade_deploy.training.networks import to_pixels
from spade_deploy.training.plots import RATES, LossLog, plot_losses, save_sample_grid
from spade_deploy.training.steps import Learner


class Recorder:
    """Writes one run's folder. Every failure to write becomes a TrainingError that names the last good checkpoint.

    samples: the fixed label maps of the sample grids. facts: what a resumed run must find unchanged.
    resume, start: the checkpoint that this run goes on from, and its step.
    """

    def __init__(
        self, run: Path, learner: Learner, samples: Batch, facts: dict[str, Any], resume: Path | None, start: int
    ) -> None:
        self.run = run
        self.last_good = resume
        self.losses: dict[str, float] = {}
        self.skipped: dict[str, None] = {}
        self._learner = learner
        self._samples = samples
        self._facts = facts
        with self._writing():
            write_json(run / "config.json", learner.setup.to_json())
            self._log = LossLog(run / "losses.csv", ("step", *learner.loss_names, *RATES, "seconds"), start)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()

    def record(
        self, step: int, losses: dict[str, float], rates: tuple[float, float], seconds: float, *, is_last: bool
    ) -> None:
        """Check a step's losses, then write what is due after it."""
        config = self._learner.setup.train
        self._check_losses(step, losses)
        self.losses = losses
        if is_last or step % config.log_every == 0:
            with self._writing():
                self._log.write({"step": step, **losses, **dict(zip(RATES, rates, strict=True)), "seconds": seconds})
        if is_last or step % config.save_every == 0:
            self.save(step)
        if is_last or step % config.sample_every == 0:
            self._check_networks(step)
            with self._writing():
                self._save_samples(step)

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
                self._learner.generator,
                step=step,
                origin="train",
                setup=self._learner.setup,
                state=TrainingState(state.discriminator, {**state.rest, "facts": self._facts}),
            )
        self.last_good = folder
        self._prune()
        with self._writing():
            plot_losses(self.run / "losses.csv", self.run / "losses.png")

    def skip(self, message: str) -> None:
        """Note a sample that cannot be read, once."""
        if message not in self.skipped:
            self.skipped[message] = None
            with self._writing():
                write_text(self.run / "skipped.txt", "".join(line.replace("\n", " ") + "\n" for line in self.skipped))

    def last_good_sentence(self) -> str:
        """Where the last good state is."""
        return f"The last good checkpoint is {self.last_good}" if self.last_good else "No checkpoint was saved yet"

    def _check_losses(self, step: int, losses: dict[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            self._diverged(step, f"the loss {', '.join(bad)}")

    def _check_networks(self, step: int) -> None:
        for name, network in (("generator", self._learner.generator), ("discriminator", self._learner.discriminator)):
            if not is_finite(network):
                self._diverged(step, f"the {name} has weights that are not finite")

    def _diverged(self, step: int, what: str) -> None:
        raise TrainingError(
            f"{self.run}: in step {step} {what}; nothing of this state was saved. {self.last_good_sentence()}",
            hint="start again with lower --lr-generator and --lr-discriminator, or another --seed",
        )

    def _save_samples(self, step: int) -> None:
        batch = self._samples
        save_sample_grid(
            self.run / "samples" / f"step_{step:08d}.png",
            self._learner.setup.generator.labels,
            batch.label.numpy(),
            self._learner.generate(batch).numpy(),
            to_pixels(batch.photo).numpy(),
        )

    def _prune(self) -> None:
        for folder in run_checkpoints(self.run)[: -self._learner.setup.train.keep_checkpoints]:
            doomed = folder.with_name(f".{folder.name}.old.tmp")  # gone at once for every reader
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.run}: cannot be written ({error}). {self.last_good_sentence()}",
                hint="make room or choose another --runs folder, then resume",
            ) from error
