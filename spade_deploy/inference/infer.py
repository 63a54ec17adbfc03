"""Make images of a folder of label maps with an artifact: the work of `spade infer`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.images.image_file import Size
from spade_deploy.inference.jobs import Failure
from spade_deploy.inference.keeper import Keeper
from spade_deploy.inference.maker import Maker, naming_of, planned_maker, read_record
from spade_deploy.inference.pipeline import TargetError
from spade_deploy.inference.places.origins import Remote
from spade_deploy.inference.places.sources import find, not_searched
from spade_deploy.inference.places.target import Target
from spade_deploy.inference.places.urls import is_url
from spade_deploy.inference.plan import Plan, destination, make_plan, refuse_inputs
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.run import Run
from spade_deploy.inference.size import checked_size
from spade_deploy.inference.style import photo_features, style_vector
from spade_deploy.inference.work import Crew, OneProcess, Work
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GeneratorSpec, Naming, ResizePolicy


@dataclass(frozen=True)
class InferSummary:
    """The result for all label files: total = written + skipped + failures."""

    out: Path | str
    """The folder of the images, or the file of the only one; a text for a URL."""

    total: int
    """Label files that were found."""

    written: int
    """Images that were made now."""

    skipped: int
    """Images that were there already."""

    resized: int
    """Images whose label files had another size than the model ran at."""

    size: Size | None
    """Height and width that the model ran at; None where each file kept its own."""

    failures: tuple[Failure, ...]
    """The label files that have no image, by their path."""

    runtime: str
    """The engine that ran; empty if there was nothing left to make."""

    seconds: float
    """The time from the first file to the last, without loading the model."""

    left_out: tuple[str, ...] = ()
    """A sentence for each photo that lay beside its label map."""

    lost: tuple[str, ...] = ()
    """A sentence for each process that ended before its work did; others did its jobs."""

    @property
    def images_per_s(self) -> float:
        return self.written / self.seconds if self.seconds > 0 else 0.0


def infer(
    artifact: Artifact, request: InferRequest, progress: Progress = SILENT, crew: Crew | None = None
) -> InferSummary:
    """Make an image of every label map that the request names.

    Images are named by the label map's stem, or its path (`names`); those of Cityscapes' official files by city,
    sequence and frame. All
    images have the same style: that of a seed or a photo, else the mean style; of a model with instance features, each
    instance has the mean of a photo's features there, or zeros. Images that are there already are kept
    if the folder's record (`maker.RECORD`) says that the same model made them in the same way.
    crew: who makes the images; this process, or `workers` of them, if it is left out.
    Files that cannot be used, or whose result cannot be written, are in the summary's failures. Raises ConfigError,
    also for a folder that holds the images of another maker, NotFoundError, errors of the runtime, FolderBusyError
    where another process fills the folder, and SpadeError where a result cannot be written.
    """
    spec = artifact.manifest.generator
    _check_edges(spec, request)
    size = None if request.resize == ResizePolicy.NEVER else checked_size(spec, request.size)
    style = style_vector(artifact, request.seed, request.style_image)
    features = photo_features(artifact, request.style_image, size)
    to = destination(request)
    record = read_record(to.store) if to.has_record else None
    found = find(request, spec.labels, naming_of(to.store, record, Naming(request.names)))
    refuse_inputs(request, found, to)
    if (unsearched := not_searched(request, found)) is not None:
        progress.note(unsearched)
    maker = planned_maker(artifact, request, size)
    plan = make_plan(request, found, to, None if record is None else record.redo_before_ns)
    keeper = Keeper(to, artifact, request, maker)
    keeper.check(plan, record)
    run = Run(str(artifact.path), len(plan.jobs), list(plan.failures), progress, keeper)
    if plan.jobs:
        work = _work(artifact, request, maker, plan, target=to.store.target, style=style, size=size)
        work = replace(work, features=features)
        try:
            with keeper.open():
                (crew or _crew(artifact, request)).make(work, plan.jobs, run)
                keeper.end(is_whole=not run.failures)
        except TargetError as error:
            counted = f"{keeper.kept} of {len(plan.jobs)} images were"
            raise SpadeError(f"{error.message}; {counted}", hint=error.hint) from error
    elif keeper.has_gaps():
        with keeper.open():
            keeper.fill_gaps()
    return InferSummary(
        out=request.out,
        total=len(plan.jobs) + len(plan.kept) + len(plan.failures),
        written=run.written,
        skipped=len(plan.kept),
        resized=run.resized,
        size=size,
        failures=tuple(sorted(run.failures, key=lambda failure: Path(str(failure.path)))),
        runtime=run.runtime,
        seconds=run.seconds,
        left_out=plan.left_out,
        lost=tuple(run.losses),
    )


def _work(
    artifact: Artifact,
    request: InferRequest,
    maker: Maker,
    plan: Plan,
    *,
    target: Target,
    style: NDArray[np.float32] | None,
    size: Size | None,
) -> Work:
    engine = {
        "precision": request.precision,
        "backend": request.backend,
        "threads": request.threads,
        "graph": request.graph,
        "min_psnr_db": request.min_psnr_db,
    }
    return Work(
        artifact.path,
        maker,
        target,
        size,
        style,
        request.batch_size,
        images=len(plan.jobs),
        engine=engine,
        reads_remote=any(isinstance(job.label, Remote) for job in plan.jobs[:1]) or is_url(request.labels),
    )


def _crew(artifact: Artifact, request: InferRequest) -> Crew:
    if request.workers == 1:
        return OneProcess(artifact)
    from spade_deploy.inference.workers import LocalWorkers
    from spade_deploy.inference.workers.places import places_for

    return LocalWorkers(places_for(artifact, request, request.workers))


def _check_edges(spec: GeneratorSpec, request: InferRequest) -> None:
    name = "instances" if request.instances is not None else "no_instances"
    if not spec.labels.has_edges and (request.instances is not None or request.no_instances):
        raise ConfigError(
            f"`{name}`: this model has no edge channel, so it cannot use instance maps", hint="leave the flag out"
        )
