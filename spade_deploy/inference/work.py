"""The part of a run that makes images, which may go on in several processes at once, here or on other machines.

    work = Work(...)                       # the process that plans makes it; it can be pickled
    with JobRunner(work) as runner:        # each process that makes images opens one, which loads the model once
        runner.maker                       # what made the images; the process that plans compares it (`Desk.admit`)
        runner.run(jobs, tell)             # tell(outcome) for each job, as soon as it is done

`infer` plans, skips what is there, and owns the record and the report, wherever the images are made. Who makes them is
a `Crew`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import ClosedByWith
from spade_deploy.errors import ArtifactError
from spade_deploy.images.image_file import Size
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.maker import Maker, artifact_digest, ran_by
from spade_deploy.inference.pipeline import Pipeline, Reader
from spade_deploy.inference.places.target import Target
from spade_deploy.progress import SILENT, Progress
from spade_deploy.tuning.open import open_runtime


@dataclass(frozen=True)
class Work:
    """All that a process must know to make images. It can be pickled."""

    artifact: Path
    """The artifact's folder. A process on another machine may name its own copy: `replace(work, artifact=...)`."""

    maker: Maker
    """What makes the images, as far as it is known before a model is loaded."""

    target: Target
    """Where the images go."""

    size: Size | None
    """Height and width that maps are resized to; None keeps each file's own."""

    style: NDArray[np.float32] | None
    """The style vector of a model with styles, 1 x z_dim."""

    batch_size: int
    """Images per run of the graph."""

    images: int | None
    """How many images will be made; it decides whether `auto` measures. 0 never measures."""

    engine: dict[str, Any]
    """What `open_runtime` is asked for: precision, backend, threads, graph, min_psnr_db."""

    reads_remote: bool = False
    """Whether the label maps come from an object store."""

    features: NDArray[np.float32] | None = None
    """The features of each pixel of a photo, C x H x W, of a model with instance features."""


class JobRunner(ClosedByWith):
    """A loaded model that does jobs. It is a context manager. One thread at a time may use it."""

    name: str
    """The engine that runs, for people."""

    maker: Maker
    """What makes the images, with the precision and the engine that run."""

    def __init__(self, work: Work, progress: Progress = SILENT, artifact: Artifact | None = None) -> None:
        """Load the model. artifact: that of `work`, if it is open already.

        Raises ArtifactError where `work.artifact` is another artifact than the one that was planned with, and as
        `open_runtime` does.
        """
        opened = Artifact.open(work.artifact) if artifact is None else artifact
        _require_planned(opened, work.maker)
        self._work = work
        self._reader = Reader(opened.manifest.generator, work.size, work.style, work.features)
        self._runtime = open_runtime(opened, **work.engine, images=work.images, progress=progress)
        self.name = self._runtime.name
        self.maker = ran_by(work.maker, self._runtime)

    def run(self, jobs: Iterable[Job], tell: Callable[[Outcome], None]) -> None:
        """Do the jobs, and call `tell` with each one's outcome, in this thread.

        jobs: they are taken as they are needed, a few ahead. An iterator that has a method `is_ready` is asked for the
        next one only if that returns true, or if there is nothing else to do.
        Raises SpadeError where no job could be done any more: the disk is full, the place cannot be reached, or the
        runtime fails on every map alike. What was told until then is done.
        """
        work = self._work
        pipeline = Pipeline(
            self._reader, self._runtime, work.batch_size, work.target, tell, reads_remote=work.reads_remote
        )
        pipeline.run(jobs)

    def close(self) -> None:
        self._runtime.close()


class Desk(Protocol):
    """What a crew tells the process that plans, always in the thread that called `Crew.make`."""

    progress: Progress
    """The listener of the run."""

    def admit(self, maker: Maker, name: str) -> None:
        """A process has loaded the model. Called for each, before it is given a job.

        name: its `JobRunner.name`. The folder's record is checked and written at the first. Raises ConfigError where
        the images of this maker may not stand beside those of the others.
        """
        ...

    def done(self, outcome: Outcome) -> None:
        """A job is done. A second outcome of the same job, as after a lost worker, is not counted again."""
        ...

    def lost(self, what: str, jobs: int) -> None:
        """A process ended before its work did. what: a sentence. jobs: how many are given to another now."""
        ...


class Crew(Protocol):
    """Who makes the images: this process, several of them, or a cluster."""

    def make(self, work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        """Do all jobs, or raise what stops the run. On Ctrl-C and errors, no process is left behind."""
        ...


class OneProcess(Crew):
    """This process makes the images."""

    def __init__(self, artifact: Artifact | None = None) -> None:
        self._artifact = artifact

    def make(self, work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        """See `Crew.make`."""
        with JobRunner(work, desk.progress, self._artifact) as runner:
            desk.admit(runner.maker, runner.name)
            runner.run(jobs, desk.done)


def _require_planned(artifact: Artifact, maker: Maker) -> None:
    found = artifact_digest(artifact)
    if found != maker.artifact_sha256:
        raise ArtifactError(
            f"{artifact.path} is another artifact, {found[:12]}, than the one that this run began with,"
            f" {maker.artifact_sha256[:12]}",
            hint="one run has one artifact: see that every process and machine has the same",
        )
