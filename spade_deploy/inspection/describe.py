"""What an artifact, a checkpoint or a run is, told from its files alone: no PyTorch, no ONNX."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spade_deploy.artifact import MANIFEST, Artifact, engine_path, list_engines, read_engine
from spade_deploy.engines.tensorrt.key import EngineKey
from spade_deploy.engines.tensorrt.open import time_layers
from spade_deploy.engines.tensorrt.proof import proof_text
from spade_deploy.errors import ArtifactError, CheckpointError, NotFoundError, SpadeError, reason_of
from spade_deploy.files.reading import sha256_of
from spade_deploy.printable import printable
from spade_deploy.runs import (
    ARTIFACT,
    CHECKPOINT_JSON,
    CHECKPOINTS,
    GENERATOR_FILE,
    CheckpointInfo,
    damaged_checkpoints,
    is_resumable,
    read_checkpoint_info,
    resolve_checkpoint,
    run_checkpoints,
)
from spade_deploy.runs.weights_file import TensorCount, parameter_count, read_tensor_count
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec

Rows = tuple[tuple[str, str], ...]

SHOWN_NAMES = 4
SHOWN_LAYERS = 200
_MOST_IN_A_CELL = 500


@dataclass(frozen=True)
class Table:
    """One table of a description: cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Description:
    """What a path is: a title, facts by name, and tables for what there are several of."""

    title: str
    rows: Rows
    tables: tuple[Table, ...] = ()


def inspect_path(path: Path, *, with_times: bool = False) -> Description:
    """Describe an artifact's folder, a checkpoint's, or a run's; a file that names one stands for its folder.

    with_times: an engine is run, on its card, and its layers have their milliseconds.
    Raises NotFoundError for anything else, ArtifactError and CheckpointError for what is damaged.
    """
    try:
        return _for_a_terminal(_describe(path, with_times))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be looked at: {reason_of(error)}") from error


def _for_a_terminal(found: Description) -> Description:
    """Names in the files may hold what no terminal takes, or megabytes."""

    def cell(text: str) -> str:
        text = printable(str(text)).replace("\n", " ")
        return text if len(text) <= _MOST_IN_A_CELL else f"{text[: _MOST_IN_A_CELL - 3]}..."

    tables = tuple(
        replace(table, title=cell(table.title), rows=tuple(tuple(map(cell, row)) for row in table.rows))
        for table in found.tables
    )
    return Description(found.title, tuple((cell(name), cell(fact)) for name, fact in found.rows), tables)


def _describe(path: Path, with_times: bool) -> Description:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", hint=_WHAT)
    folder = path.parent if path.is_file() and path.name in (MANIFEST, CHECKPOINT_JSON, GENERATOR_FILE) else path
    if path.suffix == ".engine" or (path.parent.name == "engines" and path.suffix == ".json"):
        return _describe_engine(path, with_times)
    if os.path.lexists(folder / MANIFEST):
        return _describe_artifact(Artifact.open(folder))
    if (folder / CHECKPOINT_JSON).is_file() or (folder / GENERATOR_FILE).is_file():
        return _describe_checkpoint(resolve_checkpoint(folder, folder))
    if (folder / CHECKPOINTS).is_dir() or (folder / ARTIFACT / MANIFEST).is_file():
        return _describe_run(folder)
    raise NotFoundError(f"{path} is neither an artifact, nor a checkpoint, nor a run", hint=_way_on(path))


def _way_on(path: Path) -> str:
    """The next step for what cannot be described."""
    if path.is_dir():
        inside = next((child for child in sorted(path.iterdir()) if (child / CHECKPOINTS).is_dir()), None)
        return _WHAT if inside is None else f"it holds runs: spade inspect {inside}"
    if (path.parent / CHECKPOINT_JSON).is_file():
        return f"it belongs to a checkpoint: spade inspect {path.parent}"
    if path.suffix in (".pth", ".pt"):
        return f"`spade import {path}` makes a run of a released model; then inspect the run"
    if path.suffix == ".onnx":
        if (path.parent / MANIFEST).is_file():
            return f"it belongs to an artifact: spade inspect {path.parent}"
        return f"a graph alone does not say what its labels mean: {_WHAT}"
    return _WHAT


_WHAT = "give an artifact's folder, a checkpoint's, or a run's; `spade train` and `spade export` make them"


def _describe_artifact(artifact: Artifact) -> Description:
    manifest = artifact.manifest
    source = manifest.source
    step = "" if source.step is None else f", step {source.step}"
    report = _report(artifact)
    passed = report.get("passed")
    verdict = {True: "passed", False: "failed"}[passed] if isinstance(passed, bool) else "not recorded"
    rows = (
        ("path", str(artifact.path)),
        ("made", _when(manifest.created_unix_ns)),
        ("from", f"{source.run}{step} ({source.origin}), weights {source.generator_sha256[:16]}"),
        *_spec_rows(manifest.generator),
        ("precisions", ", ".join(manifest.precisions)),
        ("validation", verdict),
        ("made with", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())),
        ("integrity", "every file is as it was written"),
    )
    graphs = Table(
        "Graphs",
        ("file", "precision", "kind", "opset", "kept in fp32"),
        tuple(
            (graph.file, str(graph.precision), graph.kind, str(graph.opset), ", ".join(graph.kept_fp32) or "-")
            for graph in manifest.graphs
        ),
    )
    files = Table(
        "Files",
        ("file", "size", "sha256"),
        tuple((name, _size(fact.bytes), fact.sha256[:16]) for name, fact in manifest.files.items()),
    )
    validation = _validation(report)
    tables = (graphs, *(() if validation is None else (validation,)), *_engines(artifact), files)
    return Description("Artifact", rows, tables)


def _describe_engine(path: Path, with_times: bool) -> Description:
    """By its manifest; the engine itself is machine code, and is read as bytes alone."""
    folder = path.parent.parent
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(f"{path} lies in no artifact: nothing vouches for it", hint="`spade build` makes engines")
    artifact = Artifact.open(folder)
    entry = next((entry for entry in list_engines(artifact) if entry.name == path.stem), None)
    if entry is None:
        raise NotFoundError(f"{path} has no manifest beside it: it is never run", hint="`spade build` makes it again")
    read_engine(artifact, entry)  # compared with its digest
    key, proof = EngineKey.from_json(entry.key), entry.proof
    options = [f"{name} {value}" for name, value in entry.key["options"].items() if value not in (None, False)]
    rows: Rows = (
        ("path", str(engine_path(artifact, entry))),
        ("size", _size(entry.bytes)),
        ("graph", f"{key.precision} {key.kind} {key.onnx_sha256[:16]}"),
        ("built by", f"{key.flavour} {key.version} in {entry.seconds:.1f} s"),
        ("runs on", f"{key.gpu}, compute capability {key.compute_capability}, {key.system}"),
        ("profile", str(key.profile)),
        ("options", ", ".join(options) or "TensorRT's own"),
        ("proof", proof_text(proof)),
        ("integrity", "its sha256 is the one in its manifest"),
    )
    graph = artifact.manifest.files.get(artifact.graph(key.precision, key.kind).file)
    if graph is None or graph.sha256 != key.onnx_sha256:
        rows = (*rows, ("belongs", "to another export of this artifact: it will not be run"))
    times = time_layers(artifact, entry.name) if with_times else {}
    if times:
        rows = (*rows, ("time", f"{sum(times.values()):.3f} ms, layer by layer, for {key.profile.best}"))
    layers = _layers(proof, times)
    tables = (Table("Layers", ("name", "kind", "types", "of the graph", "ms"), layers),) if layers else ()
    return Description("TensorRT engine", rows, tables)


def _layers(proof: dict[str, Any], times: dict[str, float]) -> tuple[tuple[str, ...], ...]:
    """By the inspector, with the times of those that were timed; the slowest first where there are any."""
    known = {
        str(layer["name"]): layer for layer in proof.get("layers", []) if isinstance(layer, dict) and "name" in layer
    }
    cells = [
        (
            _short(name),
            str(known.get(name, {}).get("kind", "")),
            ", ".join(map(str, known.get(name, {}).get("types", []))) or "-",
            ", ".join(map(str, known.get(name, {}).get("covers", [])))[:80] or "-",
            f"{times[name]:.4f}" if name in times else "-",
        )
        for name in sorted({**known, **times}, key=lambda name: -times.get(name, 0.0))
    ]
    return tuple(cells[:SHOWN_LAYERS])


def _engines(artifact: Artifact) -> tuple[Table, ...]:
    keys = [(entry, EngineKey.from_json(entry.key)) for entry in list_engines(artifact)]
    if not keys:
        return ()
    cells = tuple(
        (
            f"{entry.name}.engine",
            f"{key.precision} {key.kind}",
            f"{key.flavour} {key.version}",
            key.gpu,
            _size(entry.bytes),
        )
        for entry, key in keys
    )
    return (Table("Engines", ("file", "graph", "built by", "runs on", "size"), cells),)


def _report(artifact: Artifact) -> dict[str, Any]:
    try:
        return artifact.report() or {}
    except ArtifactError:
        return {}  # the report is for people; nothing depends on it


def _validation(report: dict[str, Any]) -> Table | None:
    graphs = report.get("graphs")
    if not isinstance(graphs, list):
        return None
    rows = []
    for graph in graphs:
        facts = graph if isinstance(graph, dict) else {}
        figures = facts.get("figures")
        figures = figures if isinstance(figures, dict) else {}
        psnr = "identical" if "psnr_db" in figures and figures["psnr_db"] is None else _number(figures.get("psnr_db"))
        verdict = "passed" if facts.get("passed") is True else "failed"
        rows.append((str(facts.get("precision", "?")), verdict, _number(figures.get("max_abs")), psnr))
    title = f"Validation against {report.get('reference', '?')}"
    return Table(title, ("precision", "verdict", "max error", "PSNR dB"), tuple(rows))


def _describe_checkpoint(checkpoint: Path) -> Description:
    info = read_checkpoint_info(checkpoint)
    count = read_tensor_count(checkpoint / GENERATOR_FILE)
    _check_weights(checkpoint / GENERATOR_FILE, info, count)
    train = info.train or {}
    rows: list[tuple[str, str]] = [
        ("path", str(checkpoint)),
        ("made", _when(info.created_unix_ns)),
        ("from", f"{info.source} (import)" if info.origin == "import" else f"training, step {info.step}"),
        *_spec_rows(info.generator),
        ("tensors", f"{count.tensors}, {', '.join(count.dtypes)}"),
        ("weights", f"sha256 {info.generator_sha256[:16]}, as they were written"),
        ("resumable", "yes" if is_resumable(checkpoint) else "no: weights alone"),
    ]
    rows += [("guessed", guess) for guess in info.guesses or ()]
    if info.versions:
        rows.append(("made with", ", ".join(f"{name} {number}" for name, number in info.versions.items())))
    tables = [_files_table(checkpoint)]
    if train:
        settings = tuple((name, _short(value)) for name, value in train.items())
        tables.append(Table("Training settings", ("setting", "value"), settings))
    return Description("Checkpoint", tuple(rows), tuple(tables))


def _check_weights(path: Path, info: CheckpointInfo, count: TensorCount) -> None:
    digest = sha256_of(path)
    hint = "the folder was damaged or copied in part; use another checkpoint"
    if digest != info.generator_sha256:
        found = f"its SHA-256 begins {digest[:12]}, {CHECKPOINT_JSON} says {info.generator_sha256[:12]}"
        raise CheckpointError(f"{path}: {found}", hint=hint)
    expected = parameter_count(info.generator)
    if count.parameters != expected:
        found = f"{_millions(count.parameters)} parameters, {CHECKPOINT_JSON} describes {_millions(expected)}"
        raise CheckpointError(f"{path}: holds {found}", hint=hint)


def _describe_run(run: Path) -> Description:
    checkpoints = run_checkpoints(run)
    rows: list[tuple[str, str]] = [("path", str(run)), ("checkpoints", str(len(checkpoints)))]
    artifact = run / ARTIFACT
    if not (artifact / MANIFEST).is_file():
        rows.append(("artifact", "none yet: `spade export` makes it"))
    else:
        try:
            precisions = ", ".join(Artifact.open(artifact).manifest.precisions)
            rows.append(("artifact", f"{artifact} ({precisions})"))
        except SpadeError as error:
            rows.append(("artifact", f"damaged: {error}"))
    entries, newest = [], None
    for checkpoint in checkpoints:
        try:
            info = read_checkpoint_info(checkpoint)
        except CheckpointError as error:  # one that is damaged does not hide the others
            entries.append((checkpoint.name, "?", f"damaged: {error}", "?", ""))
        else:
            newest = (checkpoint, info)
            entries.append((checkpoint.name, str(info.step), info.origin, _when(info.created_unix_ns), ""))
    entries += [(folder.name, "?", f"damaged: {why}", "?", "") for folder, why in damaged_checkpoints(run)]
    if newest is not None:
        entries = [(*entry[:-1], "newest" if entry[0] == newest[0].name else "") for entry in entries]
        rows += [("newest", str(newest[0])), *_spec_rows(newest[1].generator)]
    table = Table("Checkpoints", ("name", "step", "origin", "made", ""), tuple(entries))
    return Description("Run", tuple(rows), (table,) if entries else ())


def _spec_rows(spec: GeneratorSpec) -> Rows:
    labels = spec.labels
    extra = [name for name, there in (("unknown (255)", labels.has_dontcare), ("edges", labels.has_edges)) if there]
    sizes = f"any {spec.side_rule}" if spec.is_dynamic else "this size alone"
    style = "none" if spec.z_dim is None else f"{spec.z_dim} numbers (VAE)"
    return (
        ("architecture", spec.architecture),
        ("labels", f"{labels.num_labels}{''.join(f' + {name}' for name in extra)}"),
        ("names", _names(labels)),
        ("size", f"{spec.height} x {spec.width} (height x width), runs at {sizes}"),
        *_shape_rows(spec),
        ("norm", f"{spec.norm}{', spectral norm' if spec.spectral_norm else ''}"),
        *((("style vector", style),) if spec.architecture is Architecture.SPADE else ()),
        ("parameters", _millions(parameter_count(spec))),
    )


def _shape_rows(spec: GeneratorSpec) -> Rows:
    """Widths and doublings, as far as the architecture has them."""
    width = f"{spec.base_channels} base"
    if spec.architecture is Architecture.SPADE:
        width += f", {spec.hidden_channels} hidden, kernel {spec.kernel_size}"
    doublings = ("upsampling", f"{spec.upsampling}: {spec.doublings} doublings")
    return (*((doublings,) if spec.architecture is not Architecture.PIX2PIXHD else ()), ("channels", width))


def _names(labels: LabelSpec) -> str:
    """The first names, with their colours where there are some: 'water #1c4b7a, urban #ff0000, ... (17 in all)'."""
    if not labels.names:
        return "none"
    shown = list(labels.names[:SHOWN_NAMES])
    if labels.palette:
        shown = [f"{name} #{bytes(color).hex()}" for name, color in zip(shown, labels.palette, strict=False)]
    rest = f", ... ({len(labels.names)} in all)" if len(labels.names) > SHOWN_NAMES else ""
    return ", ".join(shown) + rest


def _files_table(folder: Path) -> Table:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Table("Files", ("file", "size"), tuple((path.name, _size(path.stat().st_size)) for path in files))


def _when(unix_ns: int) -> str:
    """Local time in ISO form: '2026-03-01 14:05:09+01:00'."""
    try:
        return datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ns} ns after 1970"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
