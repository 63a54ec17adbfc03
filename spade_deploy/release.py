"""Checkpoint -> validated artifact: export, validate, report, and only then put it in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy import __version__, pages
from spade_deploy.artifact import (
    INSTANCE,
    LABEL,
    REPORT_HTML,
    REPORT_JSON,
    Arrays,
    Artifact,
    Graph,
    Manifest,
    Source,
    Z,
    rewrite_manifest,
)
from spade_deploy.atomic import atomic_folder, write_json, write_text
from spade_deploy.break_even import measure_break_even
from spade_deploy.compare import Tolerance
from spade_deploy.dataset_files import DataConfig
from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, NotFoundError, SpadeError
from spade_deploy.export.pipeline import export_artifact
from spade_deploy.label_map import (
    colorize,
    effective_palette,
    label_dtype,
    list_label_files,
    read_instance_map,
    read_label_map,
    synthetic_label_maps,
)
from spade_deploy.runs import ARTIFACT, CheckpointInfo, resolve_checkpoint
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision
from spade_deploy.training.checkpoint import load_generator
from spade_deploy.training.dataset import open_held_out, validation_labels
from spade_deploy.validation import ValidationReport, validate

GOLDEN_COUNT = 4
LARGE_PARAMETERS = 40_000_000
GOLDEN_COUNT_LARGE = 2
"""A full-size generator takes seconds an image in float64, and its golden outputs megabytes."""
MAX_AMPLIFICATION = 64


@dataclass(frozen=True)
class Release:
    """An artifact in its place, its report, and where its golden label maps came from."""

    artifact: Artifact
    report: ValidationReport
    golden_from: str
    checkpoint: Path


def release(
    checkpoint: Path | None,
    *,
    runs_dir: Path,
    out: Path | None = None,
    precisions: Sequence[Precision] = (Precision.FP32,),
    labels: Path | None = None,
    instances: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Release:
    """Export a checkpoint (None: the newest) and validate what was written.

    out: the artifact's folder; by default `artifact/` in the checkpoint's run. An artifact that is there is replaced
    as a whole, and only by one that passed; one that fails is kept beside it as `<out>.failed`.
    labels, instances: folders whose first maps become the golden inputs; by default the run's validation split, or
    synthetic maps where there is none. Raises ValidationFailedError, ExportError, NotFoundError, CheckpointError.
    """
    checkpoint = resolve_checkpoint(checkpoint, runs_dir)
    on_step(f"loading {checkpoint}")
    loaded = load_generator(checkpoint)
    run = checkpoint.parent.parent
    target = out if out is not None else run / ARTIFACT
    _require_replaceable(target)
    golden, golden_from = _golden_inputs(loaded.spec, loaded.info, labels, instances, _golden_count(loaded.module))
    on_step(f"golden inputs: {golden_from}")
    source = Source(run.name, loaded.info.step, loaded.info.origin, loaded.info.generator_sha256)
    with atomic_folder(target) as folder:
        exported = export_artifact(
            loaded.module, folder, precisions=precisions, golden_inputs=golden, source=source, on_step=on_step
        )
        on_step("validating every graph against the untouched PyTorch module")
        report = validate(Artifact.open(folder), checkpoint=checkpoint, runs_dir=runs_dir, backend="cpu")
        report = replace(report, artifact=target)
        manifest, measured = _with_break_even(folder, exported.manifest, on_step)
        write_json(folder / REPORT_JSON, {**report.to_json(), "break_even": measured})
        write_text(folder / REPORT_HTML, report_page(report, exported.manifest.graphs, loaded.spec, folder))
        rewrite_manifest(folder, manifest)
        if not report.passed:
            failed = target.with_name(target.name + ".failed")
            shutil.rmtree(failed, ignore_errors=True)
            shutil.copytree(folder, failed)
            on_step(f"the artifact that failed, with its report: {failed}")
            report.require_passed()
    return Release(Artifact.open(target), report, golden_from, checkpoint)


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
            measured[graph.name] = {**asdict(found), "share": found.share}
        graphs.append(graph)
    return replace(manifest, graphs=tuple(graphs)), measured


def _require_replaceable(target: Path) -> None:
    is_artifact = (target / "manifest.json").is_file()
    if target.exists() and not is_artifact and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"--out: {target} exists and is no artifact: it will not be replaced", hint="name another folder"
        )


def _golden_count(module: Any) -> int:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return GOLDEN_COUNT_LARGE if parameters > LARGE_PARAMETERS else GOLDEN_COUNT


def _golden_inputs(
    spec: GeneratorSpec, info: CheckpointInfo, labels: Path | None, instances: Path | None, count: int
) -> tuple[Arrays, str]:
    ids, objects, origin = _golden_maps(spec, info, labels, instances, count)
    inputs: Arrays = {LABEL: ids.astype(label_dtype(spec.labels))}
    if spec.labels.has_edges:
        inputs[INSTANCE] = (np.zeros(ids.shape) if objects is None else objects).astype(np.int32)
    if spec.z_dim is not None:
        inputs[Z] = np.random.default_rng(0).standard_normal((len(ids), spec.z_dim)).astype(np.float32)
    return inputs, origin


def _golden_maps(
    spec: GeneratorSpec, info: CheckpointInfo, labels: Path | None, instances: Path | None, count: int
) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    if labels is not None:
        return (*_read_maps(spec, labels, instances, count), f"label maps of {labels}")
    why = "an imported model has no data set"
    if info.data is not None:
        try:
            held_out, split = open_held_out(DataConfig.from_json(info.data), spec.labels)
            label, instance, _ = validation_labels(held_out, count)
            objects = None if instance is None else instance.numpy()
            return label.numpy(), objects, f"the data set's {split} split"
        except (DatasetError, NotFoundError, LabelMapError, ConfigError) as error:
            why = error.message
    ids, objects = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed=0)
    return ids, objects, f"synthetic label maps ({why}; --labels DIR takes real ones)"


def _read_maps(
    spec: GeneratorSpec, labels: Path, instances: Path | None, count: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    size = (spec.height, spec.width)
    files = list_label_files(labels)[:count]
    if not files:
        raise NotFoundError(f"--labels: {labels} holds no label maps")
    ids = np.stack([read_label_map(path, spec.labels, size) for path in files])
    if instances is None:
        return ids, None
    by_stem = {path.stem: path for path in list_label_files(instances)}
    missing = [path.name for path in files if path.stem not in by_stem]
    if missing:
        raise SpadeError(f"--instances: {instances} holds no instance map for {missing[0]}")
    return ids, np.stack([read_instance_map(by_stem[path.stem], size) for path in files])


def report_page(report: ValidationReport, graphs: Sequence[Graph], spec: GeneratorSpec, folder: Path) -> str:
    """report.html as text. folder: where the graphs' files lie."""
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
        facts=_facts(spec),
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
    pictures = [
        pages.picture("label map", colorize(sample.label, spec.labels), is_ids=True),
        pages.picture("PyTorch", sample.reference),
    ]
    for name, pixels in sample.candidates.items():
        error = np.abs(pixels.astype(np.int16) - sample.reference.astype(np.int16))
        factor = int(min(MAX_AMPLIFICATION, 255 // max(1, int(error.max()))))
        shown = np.clip(error * factor, 0, 255).astype(np.uint8)
        pictures.append(pages.picture(name, pixels))
        caption = f"{name} difference x{factor}" if error.any() else f"{name} difference: none"
        pictures.append(pages.picture(caption, shown))
    return pictures


def _facts(spec: GeneratorSpec) -> list[tuple[str, str]]:
    labels = spec.labels
    extras = [name for name, is_there in (("dontcare", labels.has_dontcare), ("edges", labels.has_edges)) if is_there]
    return [
        ("labels", f"{labels.num_labels}" + (f" + {' + '.join(extras)}" if extras else "")),
        (
            "size",
            f"{spec.height} x {spec.width}" + (", any multiple of " + str(spec.stride) if spec.is_dynamic else ""),
        ),
        ("upsampling", f"{spec.upsampling} ({spec.upsampling.doublings} doublings)"),
        ("channels", f"base {spec.base_channels}, hidden {spec.hidden_channels}, kernel {spec.kernel_size}"),
        ("norm", f"{spec.norm}{', spectral' if spec.spectral_norm else ''}"),
        ("style vector", "none" if spec.z_dim is None else str(spec.z_dim)),
    ]
