"""One command's worth: a folder of label maps through an artifact."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import Backend, GraphChoice
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.files.locks import locked
from spade_deploy.images.image_file import Size
from spade_deploy.inference.pipeline import Pipeline, Progress, Reader, Tally
from spade_deploy.inference.plan import Failure, make_plan
from spade_deploy.inference.style import style_vector
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.pairs import require_instances
from spade_deploy.spec import MAX_BATCH, GeneratorSpec, Precision

_DROP = "leave the flag out"


class ResizePolicy(StrEnum):
    """Model: every map is resized to the model's size, nearest, as in training. Never: its own size must fit."""

    MODEL = "model"
    NEVER = "never"


@dataclass(frozen=True)
class InferSummary:
    """What became of every label file: total = written + skipped + failures.

    left_out: a sentence for each photo that lay beside its label map. skipped: results that were there.
    resized: results whose files had another size than the model was run with.
    runtime: what ran, empty where nothing was left to run. seconds: from the first file to the last, without loading.
    """

    out: Path
    total: int
    written: int
    skipped: int
    resized: int
    failures: tuple[Failure, ...]
    runtime: str
    seconds: float
    left_out: tuple[str, ...] = ()

    @property
    def images_per_s(self) -> float:
        return self.written / self.seconds if self.seconds > 0 else 0.0


def infer(
    artifact: Artifact,
    labels: Path,
    out: Path,
    *,
    instances: Path | None = None,
    no_instances: bool = False,
    preset: str | None = None,
    precision: Precision | None = None,
    backend: Backend | str = Backend.AUTO,
    batch_size: int = 1,
    resize: ResizePolicy | str = ResizePolicy.MODEL,
    size: Size | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    style_image: Path | None = None,
    image_format: str = "png",
    threads: int | None = None,
    graph: GraphChoice | str = GraphChoice.AUTO,
    on_progress: Progress | None = None,
    on_runtime: Callable[[str], None] | None = None,
) -> InferSummary:
    """Make an image of every label map in `labels`: a flat folder, a data set in its layout, or one file.

    Images are named by the label map's stem; of Cityscapes' official files by city, sequence and frame.

    out: a folder, or for one label file a .png or .jpg name.
    instances: a folder paired by stem (or one file), needed by a model with an edge channel where the layout has none,
    unless `no_instances` leaves that channel empty. preset: whose layout; what the model's labels are if left out.
    size: (height, width) to run at instead of the model's own.
    seed, style_image: the style of a VAE model, the same for every image: a seed's, or a photo's; neither is the mean.
    on_runtime: told what runs, once it is loaded.
    Files that cannot be used, or whose result has no place, are in the summary's failures. Raises ConfigError,
    NotFoundError, errors of the runtime, FolderBusyError where another process fills the folder, and SpadeError where
    a result cannot be written.
    """
    spec = artifact.manifest.generator
    if not 1 <= batch_size <= MAX_BATCH:
        raise ConfigError(f"--batch-size: {batch_size} is not in 1..{MAX_BATCH}")
    _check_instance_flags(spec, instances, no_instances)
    reader = Reader(spec, _target_size(spec, resize, size), style_vector(artifact, seed, style_image))
    found = find_label_maps(labels, instances, spec.labels, preset=preset, no_instances=no_instances)
    if instances is None and not no_instances:
        hint = "give their folder, or `no_instances` to leave the edge channel empty (looks worse)"
        require_instances(found, spec.labels, "`instances`", hint)
    plan = make_plan(labels, found, out, image_format, overwrite)
    tally = Tally(len(plan.jobs), list(plan.failures), on_progress)
    runtime_name = ""
    if plan.jobs:
        _make_folder(plan.folder)
        # A single file may go into a folder that others fill; of two commands that fill one, both would make all.
        alone = nullcontext() if labels.is_file() else locked(plan.folder, f"making images of {labels}")
        with alone, open_runtime(artifact, precision, backend, threads, graph) as runtime:
            runtime_name = runtime.name
            if on_runtime is not None:
                on_runtime(runtime_name)
            tally.start()
            Pipeline(reader, runtime, batch_size, tally).run(plan.jobs)
    return InferSummary(
        out=out,
        total=len(plan.jobs) + plan.skipped + len(plan.failures),
        written=tally.written,
        skipped=plan.skipped,
        resized=tally.resized,
        failures=tuple(sorted(tally.failures, key=lambda failure: failure.path)),
        runtime=runtime_name,
        seconds=tally.seconds,
        left_out=plan.left_out,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpadeError(f"{folder} cannot be made: {error.strerror}", hint="choose another folder") from error


def _check_instance_flags(spec: GeneratorSpec, instances: Path | None, no_instances: bool) -> None:
    if instances is not None and no_instances:
        raise ConfigError("--instances and --no-instances contradict each other")
    flag = "--instances" if instances is not None else "--no-instances"
    if not spec.labels.has_edges and (instances is not None or no_instances):
        raise ConfigError(f"{flag}: this model has no edge channel, so instance maps mean nothing to it", hint=_DROP)


def _target_size(spec: GeneratorSpec, resize: ResizePolicy | str, size: Size | None) -> Size | None:
    """The size that every map is resized to, None where files keep their own."""
    if resize not in list(ResizePolicy):
        raise ConfigError(f"--resize: {str(resize)!r} is not one of {', '.join(ResizePolicy)}")
    own = (spec.height, spec.width)
    if resize == ResizePolicy.NEVER:
        if size is not None:
            raise ConfigError("--size and --resize never contradict each other", hint="leave one of them out")
        return None
    if size is None or size == own:
        return own
    if not spec.is_dynamic:
        raise ConfigError(f"--size: this model runs at {own[0]}x{own[1]} alone (its style vector fixes it)", hint=_DROP)
    for part in size:
        if not spec.takes_side(part):
            raise ConfigError(f"--size: {part} of {size[0]}x{size[1]} is not a {spec.side_rule}, as this model needs")
    return size
