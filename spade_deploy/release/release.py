"""Checkpoint -> validated artifact: export, validate, report, and only then put it in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy import __version__
from spade_deploy.artifact import (
    REPORT_HTML,
    REPORT_JSON,
    Artifact,
    EncoderGraph,
    Graph,
    Manifest,
    Source,
    carry_engines,
    free_place,
    require_replaceable,
    rewrite_manifest,
    writing,
)
from spade_deploy.errors import ConfigError, ExportError
from spade_deploy.export.int8.write import (
    DEFAULT_CALIBRATION_COUNT,
    DEFAULT_MIN_PSNR_DB,
    Int8Request,
    Int8Summary,
    require_target,
)
from spade_deploy.export.pipeline import export_artifact
from spade_deploy.export.precision import parse_kept
from spade_deploy.files.atomic import atomic_folder, write_json, write_text
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.metrics.judge import Tolerance
from spade_deploy.pages import render as pages
from spade_deploy.release.break_even import measure_break_even
from spade_deploy.release.example_inputs import calibration_inputs, golden_inputs
from spade_deploy.runs import ARTIFACT, resolve_checkpoint
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, Precision
from spade_deploy.validation.validate import ValidationReport, validate

GOLDEN_COUNT = 4
LARGE_PARAMETERS = 40_000_000
GOLDEN_COUNT_LARGE = 2
"""A full-size generator takes seconds an image in float64, and its golden outputs megabytes."""
MAX_AMPLIFICATION = 64


@dataclass(frozen=True)
class Release:
    """An artifact in its place, its report, and where its golden label maps came from.

    notes: what became of the engines of the artifact that was there before.
    """

    artifact: Artifact
    report: ValidationReport
    golden_from: str
    checkpoint: Path
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Int8Options:
    """What `--int8` was asked with.

    maps, instances: folders to calibrate on; None takes the data set's training labels. count: how many maps, evenly
    spaced. min_psnr_db: the quality of the image, against float32, that the int8 graphs must have.
    """

    maps: Path | None = None
    instances: Path | None = None
    count: int = DEFAULT_CALIBRATION_COUNT
    min_psnr_db: float = DEFAULT_MIN_PSNR_DB

    def __post_init__(self) -> None:
        require_target(self.min_psnr_db)
        if self.count < 1:
            raise ConfigError(f"--calibration-count: {self.count} is not a positive number")
        if self.instances is not None and self.maps is None:
            raise ConfigError("--calibrate-instances: needs --calibrate, the label maps that they belong to")

    @classmethod
    def from_flags(
        cls,
        wanted: bool,
        maps: Path | None,
        instances: Path | None,
        count: int | None,
        min_psnr_db: float | None,
    ) -> Int8Options | None:
        """None without --int8. Raises ConfigError where its options are given without it."""
        given = {
            "--calibrate": maps,
            "--calibrate-instances": instances,
            "--calibration-count": count,
            "--min-psnr": min_psnr_db,
        }
        if not wanted:
            for flag, value in given.items():
                if value is not None:
                    raise ConfigError(f"{flag}: belongs to --int8", hint="add --int8, or leave it out")
            return None
        return cls(
            maps,
            instances,
            DEFAULT_CALIBRATION_COUNT if count is None else count,
            DEFAULT_MIN_PSNR_DB if min_psnr_db is None else min_psnr_db,
        )


def release(
    checkpoint: Path | None,
    *,
    runs_dir: Path,
    best: bool = False,
    out: Path | None = None,
    precisions: Sequence[Precision] = (Precision.FP32,),
    labels: Path | None = None,
    instances: Path | None = None,
    int8: Int8Options | None = None,
    keep_fp32: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Release:
    """Export a checkpoint (None: the newest; best: the best one of its run) and validate what was written.

    out: the artifact's folder; by default `artifact/` in the checkpoint's run. An artifact that is there is replaced
    as a whole, and only by one that passed; one that fails is kept beside it as `<out>.failed`. A folder that holds
    anything but an artifact's own files is not replaced.
    labels, instances: folders whose first maps become the golden inputs; by default the run's validation split, or
    synthetic maps where there is none.
    int8: adds int8 graphs. keep_fp32: units that the fp16 graphs keep in float32, beside those whose ranges ask for it.
    on_progress: what takes long, done, in all.
    Raises ValidationFailedError, ExportError, NotFoundError, CheckpointError, ConfigError, FolderBusyError.
    """
    if keep_fp32 and Precision.FP16 not in precisions:
        raise ConfigError("--keep-fp32: belongs to --fp16", hint="add --fp16, or leave it out")
    checkpoint = resolve_checkpoint(checkpoint, runs_dir, best=best)
    on_step(f"loading {checkpoint}")
    loaded = load_generator(checkpoint)
    kept = parse_kept(loaded.spec, keep_fp32)
    run = checkpoint.parent.parent
    target = out if out is not None else run / ARTIFACT
    if target.name in ("", ".."):
        target = target.resolve()
    require_replaceable(target)
    golden = golden_inputs(loaded.spec, loaded.info, labels, instances, _golden_count(loaded.module))
    on_step(f"golden inputs: {golden.described}")
    request = None
    if int8 is not None:
        calibration = calibration_inputs(loaded.spec, loaded.info, int8.maps, int8.instances, int8.count)
        request = Int8Request(calibration.inputs, calibration.described, int8.min_psnr_db)
    source = Source(run.name, loaded.info.step, loaded.info.origin, loaded.info.generator_sha256)
    with writing(target, "exporting into it"), atomic_folder(target) as folder:
        require_replaceable(target)  # while it was waited for, or the checkpoint was read
        exported = export_artifact(
            loaded.module,
            folder,
            precisions=precisions,
            golden_inputs=golden.inputs,
            source=source,
            keep_fp32=kept,
            int8=request,
            encoder=loaded.encoder,
            on_step=on_step,
            on_progress=on_progress,
        )
        on_step("validating every graph against the untouched PyTorch module")
        report = validate(
            Artifact.open(folder),
            checkpoint=checkpoint,
            runs_dir=runs_dir,
            backend="cpu",
            stress=exported.stress,
            on_progress=on_progress,
        )
        _require_emulated(report)
        report = replace(report, artifact=target)
        manifest, measured = _with_break_even(folder, exported.manifest, on_step)
        summary = exported.int8
        more = {} if summary is None else {"int8": summary.to_json()}
        if manifest.encoder is not None:
            more["style_encoder"] = asdict(manifest.encoder)
        write_json(folder / REPORT_JSON, {**report.to_json(), **more, "break_even": measured})
        page = report_page(report, manifest.graphs, loaded.spec, folder, summary, manifest.encoder)
        write_text(folder / REPORT_HTML, page)
        rewrite_manifest(folder, manifest)
        if not report.passed:
            failed = free_place(target.with_name(target.name + ".failed"))
            with atomic_folder(failed) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
            on_step(f"the artifact that failed, with its report: {failed}")
            replace(report, artifact=failed).require_passed()
        notes = carry_engines(target, folder)
    return Release(Artifact.open(target), report, golden.described, checkpoint, notes)


def _require_emulated(report: ValidationReport) -> None:
    """An fp16 graph that nobody has seen in real half precision is not released."""
    for result in report.results:
        if result.half is not None and result.half.skipped is not None:
            raise ExportError(
                f"--fp16: {result.half.skipped}",
                hint="nothing else proves an fp16 graph without a GPU; or export without --fp16",
            )


def _with_break_even(
    folder: Path, manifest: Manifest, on_step: Callable[[str], None]
) -> tuple[Manifest, dict[str, Any]]:
    """The manifest with the measured rule in each lookup graph's entry, and what was measured, by the graph's name."""
    graphs, measured = [], {}
    for graph in manifest.graphs:
        if graph.kind is GraphKind.LOOKUP:
            on_step(f"measuring where {graph.name} beats dense")
            found = measure_break_even(Artifact(folder, manifest), graph.precision)
            graph = replace(graph, break_even_share=found.share)
            measured[graph.name] = {**asdict(found), "crossing": found.crossing, "share": found.share}
        graphs.append(graph)
    return replace(manifest, graphs=tuple(graphs)), measured


def _golden_count(module: Any) -> int:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return GOLDEN_COUNT_LARGE if parameters > LARGE_PARAMETERS else GOLDEN_COUNT


def report_page(
    report: ValidationReport,
    graphs: Sequence[Graph],
    spec: GeneratorSpec,
    folder: Path,
    int8: Int8Summary | None = None,
    encoder: EncoderGraph | None = None,
) -> str:
    """report.html as text. folder: where the graphs' files lie. int8: how the int8 graphs came about.

    encoder: the style encoder's graph, where there is one.
    """
    present = {entry.label_id for result in report.results for entry in result.diff.classes}
    return pages.render(
        "report.html.j2",
        name=str(report.artifact),
        report=report,
        limits=limits,
        sizes={graph.name: f"{(folder / graph.file).stat().st_size / 1e6:.1f} MB" for graph in graphs},
        kept={graph.name: graph.kept_fp32 for graph in graphs},
        samples=[_strip(sample, spec) for sample in report.samples],
        legend=pages.legend(spec.labels, effective_palette(spec.labels), present),
        classes=list(zip(*(result.diff.classes for result in report.results), strict=True)),
        facts=_facts(spec, encoder),
        int8=int8,
        worst_grey=max((entry.grey_levels for entry in int8.ranking), default=0.0) or 1.0 if int8 else 1.0,
        version=__version__,
    )


def limits(tolerance: Tolerance) -> str:
    """The limits that are held, in words."""
    held = [
        ("max error", "<=", tolerance.max_abs),
        ("mean error", "<=", tolerance.mean_abs),
        ("PSNR", ">=", tolerance.min_psnr_db),
        ("SSIM", ">=", tolerance.min_ssim),
        ("largest flip", "<=", tolerance.max_flip),
        ("flipped share", "<=", tolerance.flip_share),
    ]
    return ", ".join(f"{what} {sign} {value:.3g}" for what, sign, value in held if value is not None)


def _strip(sample: Any, spec: GeneratorSpec) -> list[pages.Picture]:
    """Two pictures a column: the label map over the reference, then each graph's image over its difference."""
    pictures = [
        pages.picture("label map", colorize(sample.label, spec.labels), is_ids=True),
        pages.picture("PyTorch", sample.reference),
    ]
    for name, pixels in sample.candidates.items():
        error = np.abs(pixels.astype(np.int16) - sample.reference.astype(np.int16))
        factor = int(min(MAX_AMPLIFICATION, 255 // max(1, int(error.max()))))
        shown = np.clip(error * factor, 0, 255).astype(np.uint8)
        pictures.append(pages.picture(name, pixels))
        caption = f"difference x{factor}" if error.any() else "no difference"
        pictures.append(pages.picture(caption, shown))
    return pictures


def _facts(spec: GeneratorSpec, encoder: EncoderGraph | None) -> list[tuple[str, str]]:
    labels = spec.labels
    style = "none" if spec.z_dim is None else str(spec.z_dim)
    if encoder is not None:
        style += f", photos' by {encoder.file} (max error {encoder.max_error:.2g}, allowed {encoder.tolerance:.2g})"
    extras = [name for name, is_there in (("dontcare", labels.has_dontcare), ("edges", labels.has_edges)) if is_there]
    is_spade = spec.architecture is Architecture.SPADE
    return [
        ("architecture", spec.architecture),
        ("labels", f"{labels.num_labels}" + (f" + {' + '.join(extras)}" if extras else "")),
        (
            "size",
            f"{spec.height} x {spec.width}" + (f", any {spec.side_rule}" if spec.is_dynamic else ""),
        ),
        *_shape_facts(spec),
        ("norm", f"{spec.norm}{', spectral' if spec.spectral_norm else ''}"),
        *([("style vector", style)] if is_spade else []),
    ]


def _shape_facts(spec: GeneratorSpec) -> list[tuple[str, str]]:
    """Widths and doublings, as far as the architecture has them."""
    width = f"base {spec.base_channels}"
    if spec.architecture is Architecture.SPADE:
        width += f", hidden {spec.hidden_channels}, kernel {spec.kernel_size}"
    doublings = [("upsampling", f"{spec.upsampling} ({spec.doublings} doublings)")]
    return [*(doublings if spec.architecture is not Architecture.PIX2PIXHD else []), ("channels", width)]
