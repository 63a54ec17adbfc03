"""Write report.html, the page on a validation for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy.artifact import EncoderGraph, Graph
from spade_deploy.export.int8.write import Int8Summary
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.pages import render as pages
from spade_deploy.spec import GeneratorSpec
from spade_deploy.validation.report import ValidationReport
from spade_deploy.version import __version__

MAX_AMPLIFICATION = 64
"""The largest factor by which a picture shows a difference enlarged."""


def report_page(
    report: ValidationReport,
    graphs: Sequence[Graph],
    spec: GeneratorSpec,
    folder: Path,
    int8: Int8Summary | None = None,
    encoder: EncoderGraph | None = None,
) -> str:
    """The text of report.html. folder: where the graphs' files lie. int8: the facts about the int8 graphs.

    encoder: the style encoder's graph, if the model has one.
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
    return [
        ("architecture", spec.architecture),
        ("labels", f"{labels.num_labels}" + (f" + {' + '.join(extras)}" if extras else "")),
        (
            "size",
            f"{spec.height} x {spec.width}" + (f", any {spec.side_rule}" if spec.is_dynamic else ""),
        ),
        *_shape_facts(spec),
        ("norm", f"{spec.norm}{', spectral' if spec.spectral_norm else ''}"),
        *([("style vector", style)] if spec.has("z_dim") else []),
    ]


def _shape_facts(spec: GeneratorSpec) -> list[tuple[str, str]]:
    """Facts about widths and doublings, as far as the architecture has them."""
    width = f"base {spec.base_channels}"
    if spec.has("hidden_channels"):
        width += f", hidden {spec.hidden_channels}, kernel {spec.kernel_size}"
    doublings = [("upsampling", f"{spec.upsampling} ({spec.doublings} doublings)")]
    return [*(doublings if spec.has("upsampling") else []), ("channels", width)]
