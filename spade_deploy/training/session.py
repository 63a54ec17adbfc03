"""The work of `spade train`: make or find the run folder of a request, and train in it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.files.locks import LOCK
from spade_deploy.labels.earth import write_example_labels
from spade_deploy.machine.cores import usable_cores
from spade_deploy.progress import SILENT, Progress
from spade_deploy.runs import (
    check_name,
    is_resumable,
    new_run,
    newest_run_to_resume,
    resolve_checkpoint,
    run_checkpoints,
    say_damaged,
)
from spade_deploy.training import presets
from spade_deploy.training.config import Amp, Setup
from spade_deploy.training.device import choose_device
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.resolve import complete_student, keep_search, resumed_student, student_setup
from spade_deploy.training.estimate import Estimate, estimate
from spade_deploy.training.fit import Machine, fitted, machine_of, refuse_if_too_large
from spade_deploy.training.loop import TrainResult, train
from spade_deploy.training.places import found_again, with_absolute_paths
from spade_deploy.training.processes.world import ALONE, World
from spade_deploy.training.request import TrainRequest
from spade_deploy.training.resolve import complete, new_setup, resumed_setup
from spade_deploy.training.run_lock import RunLock
from spade_deploy.training.source import FolderSource

Asked = TrainRequest | DistillRequest  # what a run is started with
NEWEST = "newest"
EXAMPLE_LABELS = Path("labels")


@dataclass(frozen=True)
class Session:
    """A run that is ready to train."""

    setup: Setup
    """The settings of the networks, the training and the data."""
    run: Path
    """The run's folder."""
    resume: Path | None
    """The checkpoint that it goes on from; None for a new run."""
    source: FolderSource
    """The source of the samples."""
    notes: tuple[str, ...]
    """Sentences for the user that are printed before training begins."""
    example_labels: Path | None = None
    """The folder of label maps that was written for `spade infer`; None if none was written."""
    world: World = ALONE
    """The processes that train together."""
    lock: RunLock = field(default_factory=RunLock, repr=False, compare=False)
    """The lock on the run's folder, which is held until `train` ends or `close` is called."""

    def close(self) -> None:
        """Release the lock on the run's folder."""
        self.lock.close()

    @property
    def described(self) -> str:
        """The run in one line."""
        begin = f"resumed from {self.resume.name}, " if self.resume is not None else ""
        return begin + _described(self.setup) + (f", {self.world.size} processes" if self.world.size > 1 else "")

    def train(self, progress: Progress = SILENT) -> TrainResult:
        """Train. If training cannot even begin, the new run's folder is removed."""
        try:
            return train(
                self.setup,
                run=self.run,
                source=self.source,
                resume=self.resume,
                progress=progress,
                world=self.world,
            )
        except SpadeError:
            if self.world.is_main and {path.name for path in _content(self.run)} <= {LOCK}:
                with suppress(OSError):
                    (self.run / LOCK).unlink(missing_ok=True)
                    self.run.rmdir()
            raise
        finally:
            self.close()


def _described(setup: Setup) -> str:
    config, generator, data = setup.train, setup.generator, setup.data
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs} epochs"
    where = "embedded" if data.root is None and data.labels_dir is None else data.root or data.labels_dir
    precision = "" if config.amp is Amp.OFF else f", {config.amp}"
    teacher = "" if config.distill is None else f", teacher {config.distill.teacher.place}"
    return (
        f"{data.preset} data ({where}), {generator.architecture} {generator.height} x {generator.width},"
        f" base {generator.base_channels}, batch {config.batch_size}, {length}, {config.device}{precision}{teacher}"
    )


def start(
    asked: Asked,
    *,
    runs_dir: Path,
    name: str | None = None,
    resume: str | None = None,
    world: World = ALONE,
) -> Session:
    """Make the run's folder, or find the one to resume (a path, or 'newest').

    With a name, resume 'newest' means the run of that name, which is begun if it has no checkpoint yet; so one command
    serves every start of a job. On the embedded data the held-out label maps are written to `labels/` in the current
    folder, unless that exists, as inputs for `spade infer`. If several processes train, process 0 does all of this.
    Raises ConfigError, NotFoundError, CheckpointError.
    """
    lock = RunLock()
    try:
        return _started(asked, runs_dir, name, resume, world, lock)
    except BaseException:
        lock.close()
        raise


def _started(
    asked: Asked, runs_dir: Path, name: str | None, resume: str | None, world: World, lock: RunLock
) -> Session:
    checkpoint: Path | None = None
    with world.together():
        if world.is_main:
            checkpoint = _resume_point(runs_dir, name, resume, lock)
    checkpoint = world.from_main(checkpoint)
    notes: tuple[str, ...] = ()
    with world.together():  # the data comes before downloads: a wrong folder should be found first
        if checkpoint is None:
            setup, notes = _new(asked, runs_dir, downloads=False)
        else:
            setup, notes = found_again(_resumed(asked, checkpoint, runs_dir), checkpoint.parent.parent)
        choose_device(setup.train.device, world)
        source = FolderSource(setup)
    if checkpoint is None:  # process 0 downloads, its peers find the files
        setup = world.main_first(lambda: _new(asked, runs_dir)[0])
    suited: tuple[Setup, tuple[str, ...]] = setup, ()
    with world.together():
        if world.is_main:
            machine = machine_of(setup, world)
            suited = (setup, ()) if checkpoint is not None else _fitted(asked, setup, machine)
            refuse_if_too_large(suited[0], machine, is_resumed=checkpoint is not None)
    setup, chosen_notes = world.from_main(suited)
    notes = (*notes, *chosen_notes, *_notes(setup, source, asked.train.get("workers")))
    if checkpoint is not None:
        return Session(setup, checkpoint.parent.parent, checkpoint, source, notes, world=world, lock=lock)
    made: tuple[Path, Path | None, tuple[str, ...]] | None = None
    with world.together():
        if world.is_main:
            made = _begun(setup, runs_dir, name, lock, may_exist=resume is not None)
            keep_search(asked, made[0])
    run, example, more = world.from_main(made)
    return Session(setup, run, None, source, (*notes, *more), example, world, lock)


def _begun(
    setup: Setup, runs_dir: Path, name: str | None, lock: RunLock, *, may_exist: bool
) -> tuple[Path, Path | None, tuple[str, ...]]:
    """The new run's folder, the folder of example label maps or None, and sentences for the user."""
    if name is not None and may_exist and (runs_dir / name).is_dir():  # the run was stopped before its first checkpoint
        run = runs_dir / name
    else:
        run = new_run(runs_dir, name, setup.data.preset)
    lock.hold(run)
    if run_checkpoints(run):
        raise ConfigError(
            f"`name`: another process has just started {run}", hint="give the same command again to continue"
        )
    if setup.data.preset != "earth" or setup.data.root is not None or EXAMPLE_LABELS.exists():
        return run, None, ()
    try:
        write_example_labels(EXAMPLE_LABELS)
    except (OSError, SpadeError) as error:  # training does not need the label maps
        return run, None, (f"no label maps to try were written into {Path.cwd()} ({error})",)
    return run, EXAMPLE_LABELS, ()


def _content(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def estimate_run(asked: Asked, *, runs_dir: Path, resume: str | None = None) -> tuple[str, Estimate]:
    """The requested run in one line, and an estimate of its memory and time. Nothing is written.

    Weights of the perceptual loss are not downloaded for it. Raises what `start` raises, and TrainingError.
    """
    setup, chosen_notes = _setup_alone(asked, runs_dir, resume)
    source = FolderSource(setup)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = source.steps_per_epoch(setup.train.batch_size)
    found = estimate(setup, choose_device(setup.train.device), steps_per_epoch=steps, processes=processes)
    return _described(setup), replace(
        found, notes=(*found.notes, *chosen_notes, *_notes(setup, source, asked.train.get("workers")))
    )


def complete_request(asked: Asked, *, runs_dir: Path, resume: str | None = None) -> Asked:
    """The request with every setting of the run that was asked for; nothing is written or downloaded.

    Of data of one's own, names and headers are read, as they decide on settings. Raises what `start` raises of them.
    """
    setup, _ = _setup_alone(asked, runs_dir, resume)
    return complete_student(asked, setup) if isinstance(asked, DistillRequest) else complete(asked, setup)


def _setup_alone(asked: Asked, runs_dir: Path, resume: str | None) -> tuple[Setup, tuple[str, ...]]:
    """The setup of a run without starting it, and sentences on what was chosen."""
    checkpoint = _resume_point(runs_dir, None, resume, None)
    if checkpoint is None:
        setup, notes = _new(asked, runs_dir, downloads=False)
        setup, chosen_notes = _fitted(asked, setup, machine_of(setup, ALONE))
        return setup, (*notes, *chosen_notes)
    return found_again(_resumed(asked, checkpoint, runs_dir), checkpoint.parent.parent)[0], ()


def _new(asked: Asked, runs_dir: Path, *, downloads: bool = True) -> tuple[Setup, tuple[str, ...]]:
    """The setup of a new run, and sentences on what its data decided."""
    if isinstance(asked, DistillRequest):
        setup, notes = student_setup(asked, runs_dir, downloads=downloads)
        return with_absolute_paths(setup), notes
    return with_absolute_paths(new_setup(asked, runs_dir, downloads=downloads)), ()


def _resumed(asked: Asked, checkpoint: Path, runs_dir: Path) -> Setup:
    if isinstance(asked, DistillRequest):
        return resumed_student(asked, checkpoint, runs_dir)
    return resumed_setup(asked, checkpoint)


def _fitted(asked: Asked, setup: Setup, machine: Machine) -> tuple[Setup, tuple[str, ...]]:
    """The setup as it suits the machine, and sentences on it. A student's size and widths are decided already."""
    if isinstance(asked, DistillRequest):
        asked = asked.decided(setup.data.crop_size, setup.generator.base_channels)
    return fitted(asked, setup, machine)


def _resume_point(runs_dir: Path, name: str | None, resume: str | None, lock: RunLock | None) -> Path | None:
    """The checkpoint to go on from; None for a new run.

    lock: it is taken before the checkpoint is chosen, since its former holder may just have written a newer one.
    """
    if resume is None:
        return None
    if name is None:
        place = newest_run_to_resume(runs_dir) if resume == NEWEST else Path(resume)
        found = resolve_checkpoint(place, runs_dir)
        if lock is not None:
            lock.hold(found.parent.parent)
            found = resolve_checkpoint(place, runs_dir)
        return found
    check_resumes_newest(name, resume)
    if lock is not None and (runs_dir / name).is_dir():
        lock.hold(runs_dir / name)
    last = next((folder for folder in reversed(run_checkpoints(runs_dir / name)) if is_resumable(folder)), None)
    if last is not None:
        say_damaged(last)
    return last


def goes_on(runs_dir: Path, name: str | None, resume: str | None) -> bool:
    """Whether `start` would go on with a checkpoint. Raises what it raises of the name."""
    return _resume_point(runs_dir, name, resume, None) is not None


def check_resumes_newest(name: str, resume: str) -> None:
    """Raise ConfigError for a name that no run can have, and for one beside another run that is resumed."""
    if resume != NEWEST:
        raise ConfigError(
            f"`name` {name} contradicts `resume` {resume}, which has its name",
            hint=f"`name` {name} `resume`, without a value, continues that run, or starts it",
        )
    check_name(name)


def _notes(setup: Setup, source: FolderSource, workers: int | None) -> tuple[str, ...]:
    """Sentences for the user before a run begins.

    workers: the number that the user asked for; None if it is the preset's.
    """
    # The preset for the embedded data is meant to train without VGG weights, so nothing is missing.
    about_losses = () if setup.data.preset == "earth" else presets.notes(setup.train)
    cores = usable_cores()
    about_workers: tuple[str, ...] = ()
    if workers is not None and workers > cores:
        about_workers = (f"`workers` {workers}: only {cores} cores may be used here, so {cores} processes load",)
    return (*about_losses, *about_workers, *source.notes)
