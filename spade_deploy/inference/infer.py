"""Make images of a folder of label maps with an artifact: the work of `spade infer`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.files.locks import locked
from spade_deploy.images.image_file import Size
from spade_deploy.inference.jobs import Failure
from spade_deploy.inference.maker import (
    RECORD,
    Maker,
    Record,
    differences,
    note_labels,
    planned_maker,
    read_record,
    require_known,
    require_only,
    require_same,
    write_record,
)
from spade_deploy.inference.pipeline import TargetError
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.plan import Plan, make_plan, result_folder
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.run import Run
from spade_deploy.inference.size import checked_size
from spade_deploy.inference.style import style_vector
from spade_deploy.inference.work import Crew, OneProcess, Work
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.pairs import require_instances
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GeneratorSpec, ResizePolicy

_ALL = 2**63 - 1
"""A time after that of every file."""


@dataclass(frozen=True)
class InferSummary:
    """The result for all label files: total = written + skipped + failures."""

    out: Path
    """The folder of the images, or the file of the only one."""

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

    Images are named by the label map's stem; those of Cityscapes' official files by city, sequence and frame. All
    images have the same style: that of a seed or a photo, else the mean style. Images that are there already are kept
    if the folder's record (`maker.RECORD`) says that the same model made them in the same way.
    crew: who makes the images; this process if it is left out.
    Files that cannot be used, or whose result cannot be written, are in the summary's failures. Raises ConfigError,
    also for a folder that holds the images of another maker, NotFoundError, errors of the runtime, FolderBusyError
    where another process fills the folder, and SpadeError where a result cannot be written.
    """
    spec, labels = artifact.manifest.generator, request.labels
    _check_edges(spec, request)
    size = None if request.resize == ResizePolicy.NEVER else checked_size(spec, request.size)
    style = style_vector(artifact, request.seed, request.style_image)
    found = find_label_maps(
        labels, request.instances, spec.labels, preset=request.preset, no_instances=request.no_instances
    )
    if request.instances is None and not request.no_instances:
        hint = "give their folder, or `no_instances` to leave the edge channel empty (looks worse)"
        require_instances(found, spec.labels, "`instances`", hint)
    folder = result_folder(labels, request.out)
    maker = planned_maker(artifact, request, size)
    record = None if folder is None else read_record(folder)
    plan = make_plan(request, found, None if record is None else record.redo_before_ns)
    filled = _Folder(folder, request, maker, plan)
    filled.check(record)
    path = str(artifact.path)
    run = Run(path, len(plan.jobs), list(plan.failures), progress, lambda ran: filled.begin(artifact, ran))
    if plan.jobs:
        _make_folder(plan.folder)
        work = _work(artifact, request, maker, plan, style=style, size=size)
        # Two commands that fill one folder would both make all images, so a folder is locked. A single image is not.
        with nullcontext() if labels.is_file() else locked(plan.folder, f"making images of {labels}"):
            try:
                (crew or OneProcess(artifact)).make(work, plan.jobs, run)
            except TargetError as error:
                counted = f"{run.written} of {len(plan.jobs)} images were"
                raise SpadeError(f"{error.message}; {counted}", hint=error.hint) from error
            filled.end(is_whole=not run.failures)
    return InferSummary(
        out=request.out,
        total=len(plan.jobs) + plan.skipped + len(plan.failures),
        written=run.written,
        skipped=plan.skipped,
        resized=run.resized,
        size=size,
        failures=tuple(sorted(run.failures, key=lambda failure: Path(str(failure.path)))),
        runtime=run.runtime,
        seconds=run.seconds,
        left_out=plan.left_out,
        lost=tuple(run.losses),
    )


class _Folder:
    """The folder of the images, whose record says what made them. A single image with a name has none."""

    def __init__(self, folder: Path | None, request: InferRequest, maker: Maker, plan: Plan) -> None:
        self._folder, self._request, self._maker, self._plan = folder, request, maker, plan
        self._record: Record | None = None

    def check(self, record: Record | None) -> None:
        """Raise ConfigError where images of another maker would be kept. record: what the folder has."""
        request, plan = self._request, self._plan
        if self._folder is None:
            if plan.skipped:
                raise ConfigError(f"`out`: {request.out} is there already", hint="`overwrite` makes it again")
            return
        if record is None:
            if not request.overwrite:
                require_known(self._folder, plan.skipped)
        elif not request.overwrite:
            require_same(self._folder, record, self._maker)
            note_labels(self._folder, record, request.labels, plan.skipped)
        elif differences(record.maker, self._maker):
            require_only(self._folder, [job.result for job in plan.jobs])

    def begin(self, artifact: Artifact, maker: Maker) -> None:
        """Record the maker before its first image. The folder is locked, and its record is read once more."""
        if self._folder is None:
            return
        folder, labels = self._folder, str(self._request.labels.resolve())
        old, redo_before_ns = read_record(folder), None
        if not self._request.overwrite:
            if old is not None:
                require_same(folder, old, maker)
                redo_before_ns = old.redo_before_ns
        elif old is None or differences(old.maker, maker):
            if old is not None:
                require_only(folder, [job.result for job in self._plan.jobs])
            redo_before_ns = _ALL
        elif old.redo_before_ns is not None:
            redo_before_ns = old.redo_before_ns
        kept = old.labels if old is not None and redo_before_ns != _ALL else ()
        record = Record(maker, str(artifact.path), tuple(dict.fromkeys((*kept, labels))), redo_before_ns)
        write_record(folder, record)
        if redo_before_ns == _ALL:
            # The time of the file system, which may differ from that of this machine, separates old images from new.
            record = replace(record, redo_before_ns=(folder / RECORD).stat().st_mtime_ns)
            write_record(folder, record)
        self._record = record

    def end(self, *, is_whole: bool) -> None:
        """All images were made again, unless some label map failed, whose old image is still another maker's."""
        if self._folder is not None and self._record is not None and self._record.redo_before_ns and is_whole:
            write_record(self._folder, replace(self._record, redo_before_ns=None))


def _work(
    artifact: Artifact,
    request: InferRequest,
    maker: Maker,
    plan: Plan,
    *,
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
        artifact.path, maker, Folder(plan.folder), size, style, request.batch_size, images=len(plan.jobs), engine=engine
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpadeError(f"{folder} cannot be made: {error.strerror}", hint="choose another folder") from error


def _check_edges(spec: GeneratorSpec, request: InferRequest) -> None:
    name = "instances" if request.instances is not None else "no_instances"
    if not spec.labels.has_edges and (request.instances is not None or request.no_instances):
        raise ConfigError(
            f"`{name}`: this model has no edge channel, so it cannot use instance maps", hint="leave the flag out"
        )
