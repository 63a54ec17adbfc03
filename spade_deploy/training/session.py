"""What `spade train` does: a request becomes a run folder, and training in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from spade_deploy.data.earth import write_example_labels
from spade_deploy.errors import SpadeError
from spade_deploy.runs import new_run, newest_run_to_resume, resolve_checkpoint
from spade_deploy.training import config as settings
from spade_deploy.training.config import Setup
from spade_deploy.training.estimate import Estimate, estimate
from spade_deploy.training.loop import FolderSource, Progress, TrainResult, choose_device, train
from spade_deploy.training.request import TrainRequest

NEWEST = "newest"
EXAMPLE_LABELS = Path("labels")


@dataclass(frozen=True)
class Session:
    """A run that is ready to train. example_labels: the folder that was written for `spade infer`, if it was."""

    setup: Setup
    run: Path
    resume: Path | None
    source: FolderSource
    notes: tuple[str, ...]
    example_labels: Path | None = None

    @property
    def described(self) -> str:
        """The run in one line."""
        begin = f"resumed from {self.resume.name}, " if self.resume is not None else ""
        return begin + _described(self.setup)

    def train(self, on_progress: Callable[[Progress], None]) -> TrainResult:
        """Train; a run that could not even begin leaves no folder."""
        try:
            return train(self.setup, run=self.run, source=self.source, resume=self.resume, on_progress=on_progress)
        except SpadeError:
            with suppress(OSError):  # not empty: there is something to keep
                self.run.rmdir()
            raise


def _described(setup: Setup) -> str:
    config, generator, data = setup.train, setup.generator, setup.data
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs} epochs"
    where = "embedded" if data.root is None and data.labels_dir is None else data.root or data.labels_dir
    precision = "" if config.amp is settings.Amp.OFF else f", {config.amp}"
    return (
        f"{data.preset} data ({where}), {generator.architecture} {generator.height} x {generator.width},"
        f" base {generator.base_channels}, batch {config.batch_size}, {length}, {config.device}{precision}"
    )


def start(asked: TrainRequest, *, runs_dir: Path, name: str | None = None, resume: str | None = None) -> Session:
    """Make the run's folder, or find the one to resume (a path, or 'newest').

    On the embedded data the held-out label maps are written to `labels/` in the current folder, unless there is one:
    something to infer. Raises ConfigError, NotFoundError, CheckpointError.
    """
    if resume is not None:
        checkpoint = _to_resume(resume, runs_dir)
        setup = asked.resumed(checkpoint)
        source = FolderSource(setup)
        return Session(setup, checkpoint.parent.parent, checkpoint, source, _notes(setup, source))
    setup = asked.setup(runs_dir)
    choose_device(setup.train.device)
    source = FolderSource(setup)
    run = new_run(runs_dir, name, setup.data.preset)
    example = None
    if setup.data.preset == "earth" and setup.data.root is None and not EXAMPLE_LABELS.exists():
        write_example_labels(EXAMPLE_LABELS)
        example = EXAMPLE_LABELS
    return Session(setup, run, None, source, _notes(setup, source), example)


def foretell(asked: TrainRequest, *, runs_dir: Path, resume: str | None = None) -> tuple[str, Estimate]:
    """The run that was asked for in one line, and what it will need; nothing is written.

    Weights of the perceptual loss are not downloaded for it. Raises what `start` raises, and TrainingError.
    """
    setup = asked.setup(runs_dir, downloads=False) if resume is None else asked.resumed(_to_resume(resume, runs_dir))
    source = FolderSource(setup)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = source.steps_per_epoch(setup.train.batch_size)
    found = estimate(setup, choose_device(setup.train.device), steps_per_epoch=steps, processes=processes)
    return _described(setup), replace(found, notes=(*found.notes, *_notes(setup, source)))


def _to_resume(resume: str, runs_dir: Path) -> Path:
    place = newest_run_to_resume(runs_dir) if resume == NEWEST else Path(resume)
    return resolve_checkpoint(place, runs_dir)


def _notes(setup: Setup, source: FolderSource) -> tuple[str, ...]:
    # The preset for the embedded data is meant to train without VGG weights: nothing to tell.
    about_losses = () if setup.data.preset == "earth" else settings.notes(setup.train)
    return (*about_losses, *source.notes)
