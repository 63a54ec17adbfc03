"""Checkpoint -> validated artifact: export, validate, report, and only then put it in its place."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spade_deploy.artifact import (
    MODEL_CARD,
    REPORT_HTML,
    REPORT_JSON,
    Artifact,
    Manifest,
    Source,
    carry_engines,
    free_place,
    require_replaceable,
    rewrite_manifest,
    writing,
)
from spade_deploy.engines.base import Backend
from spade_deploy.errors import ExportError
from spade_deploy.export.int8.request import DEFAULT_CALIBRATION_COUNT, DEFAULT_MIN_PSNR_DB, Int8Request
from spade_deploy.export.int8.write import Int8Summary
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.export.precision import parse_kept
from spade_deploy.files.atomic import atomic_folder, write_json, write_text
from spade_deploy.networks.build import count_parameters
from spade_deploy.progress import SILENT, Progress, StepTimes
from spade_deploy.release.example_inputs import ExampleInputs, calibration_inputs, golden_inputs
from spade_deploy.release.model_card import model_card
from spade_deploy.release.quality import Quality
from spade_deploy.release.report import report_page
from spade_deploy.release.request import Int8Options, ReleaseRequest
from spade_deploy.release.student import Exported, StudentReport, compare_with_teacher
from spade_deploy.runs import ARTIFACT, resolve_checkpoint
from spade_deploy.runs.checkpoint import LoadedGenerator, load_generator
from spade_deploy.runs.leftovers import sweep_run, sweep_runs
from spade_deploy.runs.records import CheckpointInfo
from spade_deploy.spec import GeneratorSpec, GraphKind, GraphSet
from spade_deploy.validation.report import SampleImages, ValidationReport
from spade_deploy.validation.request import KnownOutputs, ValidationRequest
from spade_deploy.validation.validate import validate

GOLDEN_COUNT = 4
LARGE_PARAMETERS = 40_000_000
GOLDEN_COUNT_LARGE = 2
"""How many golden inputs a generator gets, and how many one of LARGE_PARAMETERS or more: such a generator takes seconds
for an image in float64, and its golden outputs take megabytes."""


@dataclass(frozen=True)
class Release:
    """An artifact in its place."""

    artifact: Artifact
    """The artifact, which passed its validation."""

    report: ValidationReport
    """The result of its validation."""

    golden_from: str
    """Where its golden label maps came from."""

    checkpoint: Path
    """The checkpoint that was exported."""

    notes: tuple[str, ...] = ()
    """Sentences on which engines of the artifact that was replaced were kept."""

    seconds: tuple[tuple[str, float], ...] = ()
    """The steps of the export, each with the seconds that it took."""

    student: StudentReport | None = None
    """A student beside its teacher; None for a generator without a teacher."""


@dataclass(frozen=True)
class Measured:
    """What was measured besides the validation."""

    int8: Int8Summary | None
    """The facts about the int8 graphs; None without any."""

    break_even: dict[str, Any]
    """For each lookup graph, the times by which the runtime chooses; empty if they were not measured."""

    student: StudentReport | None = None
    """A student beside its teacher; None for a generator without a teacher."""


def export_checkpoint(
    request: ReleaseRequest | None = None,
    *,
    runs_dir: Path = Path("runs"),
    quality: Quality | None = None,
    progress: Progress = SILENT,
) -> Release:
    """Export a checkpoint and validate what was written.

    An existing artifact is replaced as a whole, and only by one that passed; a new one that fails is kept beside it as
    `<out>.failed`. A folder that holds other files than those of an artifact is not replaced. Golden inputs are the
    first label maps of the folder that the request names, else of the run's held-out samples, else synthetic.
    quality: how good the photos of a student and of its teacher are, for the report.
    Raises ValidationFailedError, ExportError, NotFoundError, CheckpointError, ConfigError, FolderBusyError.
    """
    request, progress = request or ReleaseRequest(), StepTimes(progress)
    checkpoint = resolve_checkpoint(request.checkpoint, runs_dir, best=request.best)
    sweep_runs(runs_dir)
    sweep_run(checkpoint.parent.parent)  # it may lie elsewhere
    progress.step(f"loading {checkpoint}")
    loaded = load_generator(checkpoint)
    kept = parse_kept(loaded.spec, request.keep_fp32)
    run = checkpoint.parent.parent
    target = _target(request.out, run)
    require_replaceable(target)
    count = _golden_count(loaded.module)
    golden = golden_inputs(loaded.spec, loaded.info, request.labels, request.instances, count)
    progress.step(f"golden inputs: {golden.described}")
    exporting = ExportRequest(
        golden.inputs,
        _source(run.name, loaded, request.license or ""),
        request.precisions,
        kinds=(GraphKind.DENSE,) if request.graph is GraphSet.DENSE else None,
        keep_fp32=kept,
        int8=_int8_request(request.int8, loaded.spec, loaded.info),
        encoder=loaded.encoder,
    )
    with writing(target, "exporting into it"), atomic_folder(target) as folder:
        require_replaceable(target)  # it may have changed while this process waited for the lock
        exported = export_artifact(loaded.module, folder, exporting, progress)
        progress.step("loading the untouched PyTorch module again, to validate every graph against it")
        known = KnownOutputs(loaded.info.generator_sha256, golden.inputs, exported.reference)
        report = validate(
            Artifact.open(folder),
            ValidationRequest(
                checkpoint=checkpoint,
                runs_dir=runs_dir,
                backend=Backend.CPU,
                stress=exported.stress,
                known=known,
                times_graphs=request.tune,
            ),
            progress,
        )
        _require_emulated(report)
        report = replace(report, artifact=target, samples=_with_photos(report, golden))
        manifest, measured = _with_break_even(exported.manifest, report)
        if loaded.info.teacher is not None:
            progress.step("comparing the student with its teacher")
        student = compare_with_teacher(Exported(loaded, checkpoint, folder), golden.inputs, runs_dir, quality)
        _write_pages(folder, manifest, report, Measured(exported.int8, measured, student), golden.described)
        rewrite_manifest(folder, manifest)
        if not report.passed:
            failed = free_place(target.with_name(target.name + ".failed"))
            with atomic_folder(failed) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
            progress.step(f"the artifact that failed, with its report: {failed}")
            replace(report, artifact=failed).require_passed()
        progress.step("putting the artifact in its place")
        notes = carry_engines(target, folder)
    artifact = Artifact.open(target)
    return Release(artifact, report, golden.described, checkpoint, notes, progress.seconds(), student)


def _with_photos(report: ValidationReport, golden: ExampleInputs) -> tuple[SampleImages, ...]:
    """The images of the report, each beside the real photo of its label map where there is one."""
    if golden.photos is None:
        return report.samples
    return tuple(replace(one, photo=photo) for one, photo in zip(report.samples, golden.photos, strict=False))


def _write_pages(
    folder: Path,
    manifest: Manifest,
    report: ValidationReport,
    measured: Measured,
    golden_from: str,
) -> None:
    """Write the report, for programs and for people, and the model card."""
    more = {} if measured.int8 is None else {"int8": measured.int8.to_json()}
    if measured.student is not None:
        more["student"] = measured.student.to_json()
    if manifest.encoder is not None:
        more["style_encoder"] = asdict(manifest.encoder)
    write_json(folder / REPORT_JSON, {**report.to_json(), **more, "break_even": measured.break_even})
    page = report_page(report, manifest, folder, measured.int8, measured.student)
    write_text(folder / REPORT_HTML, page)
    write_text(folder / MODEL_CARD, model_card(manifest, report, golden_from))


def _source(run: str, loaded: LoadedGenerator, license_name: str) -> Source:
    info = loaded.info
    parameters, teacher = count_parameters(loaded.module), (info.teacher or ("", ""))[1]
    return Source(run, info.step, info.origin, info.generator_sha256, license_name, parameters, teacher)


def _target(out: Path | None, run: Path) -> Path:
    """The artifact's folder, with a name to which a suffix can be added."""
    target = out if out is not None else run / ARTIFACT
    return target.resolve() if target.name in ("", "..") else target


def _int8_request(asked: Int8Options, spec: GeneratorSpec, info: CheckpointInfo) -> Int8Request | None:
    """Read the calibration maps; None if no int8 graph is asked for."""
    if not asked.wanted:
        return None
    count = asked.calibration_count or DEFAULT_CALIBRATION_COUNT
    maps = calibration_inputs(spec, info, asked.calibrate, asked.calibrate_instances, count)
    return Int8Request(maps.inputs, maps.described, asked.min_psnr_db or DEFAULT_MIN_PSNR_DB)


def _require_emulated(report: ValidationReport) -> None:
    """Raise an error for an fp16 graph that was not run in real half precision, as it is not to be released."""
    for result in report.results:
        if result.half is not None and result.half.skipped is not None:
            raise ExportError(
                f"`fp16`: {result.half.skipped}",
                hint="without a GPU nothing else proves an fp16 graph: mend that, or export without `fp16`",
            )


def _with_break_even(manifest: Manifest, report: ValidationReport) -> tuple[Manifest, dict[str, Any]]:
    """The manifest with the measured share in each lookup graph's entry, and the times by the graph's name."""
    found = {result.graph: result.break_even for result in report.results if result.break_even is not None}
    graphs = tuple(
        replace(graph, break_even_share=found[graph].share) if graph in found else graph for graph in manifest.graphs
    )
    measured = {
        graph.name: {**asdict(times), "crossing": times.crossing, "share": times.share}
        for graph, times in found.items()
    }
    return replace(manifest, graphs=graphs), measured


def _golden_count(module: Any) -> int:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return GOLDEN_COUNT_LARGE if parameters > LARGE_PARAMETERS else GOLDEN_COUNT
