"""Write report.html, the page on a validation for people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import EncoderGraph, Manifest
from spade_deploy.export.int8.write import Int8Summary
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.processor import processor
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.pages import render as pages
from spade_deploy.release.student import StudentReport
from spade_deploy.release.student_table import student_rows
from spade_deploy.spec import GeneratorSpec, Precision
from spade_deploy.validation.report import SampleImages, ValidationReport
from spade_deploy.version import __version__

MAX_AMPLIFICATION = 64
"""The largest factor by which a picture shows a difference enlarged."""
INVISIBLE = 2
"""A difference of so few grey levels is told and not drawn: nobody could see it, and its picture would be black."""


def report_page(
    report: ValidationReport,
    manifest: Manifest,
    folder: Path,
    int8: Int8Summary | None = None,
    student: StudentReport | None = None,
) -> str:
    """The text of report.html.

    folder: where the graphs' files lie. int8: the facts about the int8 graphs. student: a student beside its teacher.
    """
    present = {entry.label_id for result in report.results for entry in result.diff.classes}
    spec, graphs = manifest.generator, manifest.graphs
    return pages.render(
        "report.html.j2",
        name=str(report.artifact),
        report=report,
        verdict=verdict(report),
        summary=_summary(report, manifest),
        limits=limits,
        sizes={graph.name: f"{(folder / graph.file).stat().st_size / 1e6:.1f} MB" for graph in graphs},
        kept={graph.name: graph.kept_fp32 for graph in graphs},
        samples=[_columns(sample, spec) for sample in report.samples],
        legend=pages.legend(spec.labels, effective_palette(spec.labels), present),
        classes=list(zip(*(result.diff.classes for result in report.results), strict=True)),
        facts=_facts(spec, manifest.encoder),
        int8=int8,
        student=student,
        student_rows=student_rows(student) if student is not None else [],
        student_verdicts=_student_verdicts(student),
        student_strips=_student_strips(report, student, spec) if student is not None else [],
        worst_grey=max((entry.grey_levels for entry in int8.ranking), default=0.0) or 1.0 if int8 else 1.0,
        version=__version__,
    )


def verdict(report: ValidationReport) -> str:
    """What the validation found, in plain words."""
    failed = [result.name for result in report.results if not result.passed]
    if failed:
        which = f"{failed[0]} does not make" if len(failed) == 1 else f"{', '.join(failed)} do not make"
        return f"Do not deploy this: {which} the images that the trained model makes."
    exact = [result for result in report.results if result.graph.precision is Precision.FP32]
    lossy = [result for result in report.results if result.graph.precision is not Precision.FP32]
    parts = []
    if exact:
        most = max(result.diff.max_flip for result in exact)
        share = max(result.diff.flip_share for result in exact)
        same = "the very same pixels" if most == 0 else f"the same images, to {most} of 255 in {pages.percent(share)}"
        parts.append(f"in float32 it makes {same}{' of the pixels' * (most > 0)}")
    for result in lossy:
        parts.append(f"{result.name} stays within its limits ({pages.decibel(result.diff.psnr_db)})")
    return f"This can be deployed: it makes the images that the trained model makes; {'; '.join(parts)}."


def _summary(report: ValidationReport, manifest: Manifest) -> list[tuple[str, str]]:
    """The first table of the page: when, what, how fast here."""
    spec, source = manifest.generator, manifest.source
    made = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(manifest.created_unix_ns / 1e9))
    step = f", step {source.step}" if source.origin == "train" and source.step is not None else ", imported"
    count = "" if source.parameters is None else f", {source.parameters / 1e6:.1f} M parameters"
    rows = [("date", made), ("model", f"{source.run}{step}: {spec.architecture}{count}")]
    times = [(result.name, result.median_seconds) for result in report.results]
    told = [f"{name} {pages.short_time(seconds)}" for name, seconds in times if seconds is not None]
    if told:
        size = f"for an image of {spec.height} x {spec.width}"
        rows.append(("speed here", f"{', '.join(told)} {size}, median of {len(report.results[0].seconds)}"))
    cores, runtimes = usable_cores(), {result.runtime.partition(",")[0]: None for result in report.results}
    rows.append(("this machine", f"{processor()}, {cores} core{'s' * (cores != 1)}, {', '.join(runtimes)}"))
    return rows


def _student_strips(report: ValidationReport, student: StudentReport, spec: GeneratorSpec) -> list[list[Column]]:
    """For each golden label map the map, the real photo, the teacher's image and the student's."""
    strips = []
    for sample, (teacher, own) in zip(report.samples, student.pictures, strict=False):
        columns = [Column(pages.picture("label map", colorize(sample.label, spec.labels), is_ids=True))]
        if sample.photo is not None:
            columns.append(Column(pages.picture("real photo", sample.photo)))
        columns += [Column(pages.picture("teacher", teacher)), Column(pages.picture("student", own))]
        strips.append(columns)
    return strips


def _student_verdicts(student: StudentReport | None) -> list[tuple[str, str]]:
    """Which of both is better by which figures; figures with the same sentence share a line."""
    by_reason: dict[str, list[str]] = {}
    for figure in student.quality.figures if student is not None and student.quality is not None else ():
        by_reason.setdefault(figure.verdict, []).append(figure.name_alone)
    return [(", ".join(names), reason) for reason, names in by_reason.items() if reason]


def limits(tolerance: Tolerance) -> str:
    """The limits of a tolerance, in words."""
    held = [
        ("max error", "<=", tolerance.max_abs),
        ("mean error", "<=", tolerance.mean_abs),
        ("PSNR", ">=", tolerance.min_psnr_db),
        ("SSIM", ">=", tolerance.min_ssim),
        ("largest flip", "<=", tolerance.max_flip),
        ("flipped share", "<=", tolerance.flip_share),
    ]
    return ", ".join(f"{what} {sign} {value:.3g}" for what, sign, value in held if value is not None)


@dataclass(frozen=True)
class Column:
    """A picture of the report, and how it differs from PyTorch's."""

    picture: pages.Picture
    """The picture."""
    difference: pages.Picture | None = None
    """The difference, enlarged; None where it is nothing, or too little to see."""
    remark: str = ""
    """The difference in words, where it is not drawn."""


def _columns(sample: SampleImages, spec: GeneratorSpec) -> list[Column]:
    """The label map, the real photo, PyTorch's image, and each graph's image over its difference."""
    columns = [Column(pages.picture("label map", colorize(sample.label, spec.labels), is_ids=True))]
    if sample.photo is not None:
        columns.append(Column(pages.picture("real photo", sample.photo)))
    columns.append(Column(pages.picture("PyTorch", sample.reference)))
    for name, pixels in sample.candidates.items():
        columns.append(_compared(name, pixels, sample.reference))
    return columns


def _compared(name: str, pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Column:
    error = np.abs(pixels.astype(np.int16) - reference.astype(np.int16))
    shown, most, share = pages.picture(name, pixels), int(error.max()), float(error.any(axis=-1).mean())
    if most == 0:
        return Column(shown, remark="the same pixels as PyTorch's")
    if most <= INVISIBLE:
        return Column(shown, remark=f"differs by {most} of 255 in {pages.percent(share)} of the pixels")
    factor = max(1, min(MAX_AMPLIFICATION, 255 // most))
    drawn = np.clip(error * factor, 0, 255).astype(np.uint8)
    caption = f"difference, {factor} times as strong" if factor > 1 else "difference"
    return Column(shown, pages.picture(caption, drawn))


def _facts(spec: GeneratorSpec, encoder: EncoderGraph | None) -> list[tuple[str, str]]:
    labels = spec.labels
    style = "none" if spec.z_dim is None else str(spec.z_dim)
    if encoder is None and spec.has_features:
        style = "given by callers, or zeros; no encoder of photos"
    if encoder is not None:
        how = f"photos' by {encoder.file} (max error {encoder.max_error:.2g}, allowed {encoder.tolerance:.2g})"
        style = how if spec.has_features else f"{style}, {how}"
    extras = [name for name, is_there in (("dontcare", labels.has_dontcare), ("edges", labels.has_edges)) if is_there]
    return [
        ("architecture", spec.title),
        ("labels", f"{labels.num_labels}" + (f" + {' + '.join(extras)}" if extras else "")),
        (
            "size",
            f"{spec.height} x {spec.width}" + (f", any {spec.side_rule}" if spec.is_dynamic else ""),
        ),
        *_shape_facts(spec),
        ("norm", f"{spec.norm}{', spectral' if spec.spectral_norm else ''}"),
        *([("style vector", style)] if spec.has("z_dim") else []),
        *([("instance features", style)] if spec.has_features else []),
    ]


def _shape_facts(spec: GeneratorSpec) -> list[tuple[str, str]]:
    """Facts about widths and doublings, as far as the architecture has them."""
    width = f"base {spec.base_channels}"
    if spec.has("hidden_channels"):
        width += f", hidden {spec.hidden_channels}, kernel {spec.kernel_size}"
    if spec.level_text:
        width += f"; {spec.level_text}"
    doublings = [("upsampling", f"{spec.upsampling} ({spec.doublings} doublings)")]
    depth = [] if spec.depth is None else [("depth", spec.depth)]
    return [*(doublings if spec.has("upsampling") else []), *depth, ("channels", width)]
