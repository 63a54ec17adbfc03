"""What `spade train` does: a request becomes a run folder, and training in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from spade_deploy.data.earth import write_example_labels
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.runs import (
    check_name,
    is_resumable,
    new_run,
    newest_run_to_resume,
    resolve_checkpoint,
    run_checkpoints,
)
from spade_deploy.training import config as settings
from spade_deploy.training.config import Setup
from spade_deploy.training.distributed import ALONE, World
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
    world: World = ALONE

    @property
    def described(self) -> str:
        """The run in one line."""
        begin = f"resumed from {self.resume.name}, " if self.resume is not None else ""
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        return begin + _described(self.setup) + processes

    def train(self, on_progress: Callable[[Progress], None]) -> TrainResult:
        """Train; a run that could not even begin leaves no folder."""
        try:
            return train(
                self.setup,
                run=self.run,
                source=self.source,
                resume=self.resume,
                on_progress=on_progress,
                world=self.world,
            )
        except SpadeError:
            if self.world.is_main:
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


def start(
    asked: TrainRequest,
    *,
    runs_dir: Path,
    name: str | None = None,
    resume: str | None = None,
    world: World = ALONE,
) -> Session:
    """Make the run's folder, or find the one to resume (a path, or 'newest').

    resume 'newest' with a name is the run of that name, which begins where it has no checkpoint yet: a command that
    serves every start of a job. On the embedded data the held-out label maps are written to `labels/` in the current
    folder, unless there is one: something to infer. Of several processes the first does all of this.
    Raises ConfigError, NotFoundError, CheckpointError.
    """
    checkpoint: Path | None = None
    with world.together():
        if world.is_main:
            checkpoint = _resume_point(runs_dir, name, resume)
    checkpoint = world.from_main(checkpoint)
    with world.together():  # the data first: a wrong folder should not cost a download
        setup = asked.setup(runs_dir, downloads=False) if checkpoint is None else asked.resumed(checkpoint)
        choose_device(setup.train.device, world)
        source = FolderSource(setup)
    if checkpoint is None:  # one process downloads what the others then find
        setup = world.main_first(lambda: asked.setup(runs_dir))
    notes = _notes(setup, source)
    if checkpoint is not None:
        return Session(setup, checkpoint.parent.parent, checkpoint, source, notes, world=world)
    made: tuple[Path, Path | None] | None = None
    with world.together():
        if world.is_main:
            made = _begun(setup, runs_dir, name, may_exist=resume is not None)
    run, example = world.from_main(made)
    return Session(setup, run, None, source, notes, example, world)


def _begun(setup: Setup, runs_dir: Path, name: str | None, *, may_exist: bool) -> tuple[Path, Path | None]:
    """The new run's folder, and that of the example label maps, if they were written."""
    if name is not None and may_exist and (runs_dir / name).is_dir():  # stopped before its first checkpoint
        run = runs_dir / name
    else:
        run = new_run(runs_dir, name, setup.data.preset)
    if setup.data.preset != "earth" or setup.data.root is not None or EXAMPLE_LABELS.exists():
        return run, None
    write_example_labels(EXAMPLE_LABELS)
    return run, EXAMPLE_LABELS


def foretell(asked: TrainRequest, *, runs_dir: Path, resume: str | None = None) -> tuple[str, Estimate]:
    """The run that was asked for in one line, and what it will need; nothing is written.

    Weights of the perceptual loss are not downloaded for it. Raises what `start` raises, and TrainingError.
    """
    checkpoint = _resume_point(runs_dir, None, resume)
    setup = asked.setup(runs_dir, downloads=False) if checkpoint is None else asked.resumed(checkpoint)
    source = FolderSource(setup)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = source.steps_per_epoch(setup.train.batch_size)
    found = estimate(setup, choose_device(setup.train.device), steps_per_epoch=steps, processes=processes)
    return _described(setup), replace(found, notes=(*found.notes, *_notes(setup, source)))


def _resume_point(runs_dir: Path, name: str | None, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    if resume is None:
        return None
    if name is None:
        place = newest_run_to_resume(runs_dir) if resume == NEWEST else Path(resume)
        return resolve_checkpoint(place, runs_dir)
    if resume != NEWEST:
        raise ConfigError(
            f"--name {name} contradicts --resume {resume}, which has its name",
            hint=f"--name {name} --resume, without a value, goes on with that run or begins it",
        )
    check_name("--name", name)
    return next((folder for folder in reversed(run_checkpoints(runs_dir / name)) if is_resumable(folder)), None)


def _notes(setup: Setup, source: FolderSource) -> tuple[str, ...]:
    # The preset for the embedded data is meant to train without VGG weights: nothing to tell.
    about_losses = () if setup.data.preset == "earth" else settings.notes(setup.train)
    return (*about_losses, *source.notes)
