"""Make images of a folder of label maps with an artifact: the work of `spade infer`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import Runtime
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.files.locks import locked
from spade_deploy.images.image_file import Size
from spade_deploy.inference.pipeline import Pipeline, Reader, Tally
from spade_deploy.inference.plan import Failure, make_plan
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.size import checked_size
from spade_deploy.inference.style import style_vector
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.pairs import require_instances
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GeneratorSpec, ResizePolicy
from spade_deploy.tuning.open import open_runtime


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

    @property
    def images_per_s(self) -> float:
        return self.written / self.seconds if self.seconds > 0 else 0.0


def infer(artifact: Artifact, request: InferRequest, progress: Progress = SILENT) -> InferSummary:
    """Make an image of every label map that the request names.

    Images are named by the label map's stem; those of Cityscapes' official files by city, sequence and frame. All
    images have the same style: that of a seed or a photo, else the mean style.
    Files that cannot be used, or whose result cannot be written, are in the summary's failures. Raises ConfigError,
    NotFoundError, errors of the runtime, FolderBusyError where another process fills the folder, and SpadeError where
    a result cannot be written.
    """
    spec, labels = artifact.manifest.generator, request.labels
    _check_edges(spec, request)
    size = None if request.resize == ResizePolicy.NEVER else checked_size(spec, request.size)
    reader = Reader(spec, size, style_vector(artifact, request.seed, request.style_image))
    found = find_label_maps(
        labels, request.instances, spec.labels, preset=request.preset, no_instances=request.no_instances
    )
    if request.instances is None and not request.no_instances:
        hint = "give their folder, or `no_instances` to leave the edge channel empty (looks worse)"
        require_instances(found, spec.labels, "`instances`", hint)
    plan = make_plan(labels, found, request.out, request.image_format, request.overwrite)
    tally = Tally(len(plan.jobs), list(plan.failures), progress)
    runtime_name = ""
    if plan.jobs:
        _make_folder(plan.folder)
        # Two commands that fill one folder would both make all images, so a folder is locked. A single image is not.
        alone = nullcontext() if labels.is_file() else locked(plan.folder, f"making images of {labels}")
        with alone, _open(artifact, request, len(plan.jobs), progress) as runtime:
            runtime_name = runtime.name
            progress.step(f"running {artifact.path} with {runtime_name}")
            tally.start()
            Pipeline(reader, runtime, request.batch_size, tally).run(plan.jobs)
    return InferSummary(
        out=request.out,
        total=len(plan.jobs) + plan.skipped + len(plan.failures),
        written=tally.written,
        skipped=plan.skipped,
        resized=tally.resized,
        size=size,
        failures=tuple(sorted(tally.failures, key=lambda failure: failure.path)),
        runtime=runtime_name,
        seconds=tally.seconds,
        left_out=plan.left_out,
    )


def _open(artifact: Artifact, request: InferRequest, images: int, progress: Progress) -> Runtime:
    return open_runtime(
        artifact,
        request.precision,
        request.backend,
        request.threads,
        request.graph,
        min_psnr_db=request.min_psnr_db,
        images=images,
        progress=progress,
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
            f"`{name}`: this model has no edge channel, so instance maps mean nothing to it", hint="leave the flag out"
        )
