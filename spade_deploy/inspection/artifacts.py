"""Describe an artifact, or an engine in it, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spade_deploy.artifact import MANIFEST, Artifact, engine_path, list_engines, read_engine
from spade_deploy.engines.tensorrt.key import EngineKey
from spade_deploy.engines.tensorrt.open import time_layers
from spade_deploy.engines.tensorrt.proof import proof_text
from spade_deploy.errors import ArtifactError, NotFoundError, reason_of
from spade_deploy.files.onnx_data import stored_numbers
from spade_deploy.inspection.description import (
    Description,
    Rows,
    Table,
    millions,
    number_text,
    shortened,
    size_text,
    spec_rows,
    when,
)

SHOWN_LAYERS = 200


def describe_artifact(artifact: Artifact) -> Description:
    """Describe an artifact: its spec, graphs, validation, engines and files. Raises ArtifactError if it is damaged."""
    manifest = artifact.manifest
    source = manifest.source
    step = "" if source.step is None else f", step {source.step}"
    report = _report(artifact)
    passed = report.get("passed")
    verdict = {True: "passed", False: "failed"}[passed] if isinstance(passed, bool) else "not recorded"
    rows = (
        ("path", str(artifact.path)),
        ("made", when(manifest.created_unix_ns)),
        ("from", f"{source.run}{step} ({source.origin}), weights {source.generator_sha256[:16]}"),
        *([("teacher", f"weights {source.teacher_sha256[:16]}")] if source.teacher_sha256 else []),
        *spec_rows(manifest.generator, _parameters(artifact)),
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
        tuple((name, size_text(fact.bytes), fact.sha256[:16]) for name, fact in manifest.files.items()),
    )
    validation = _validation(report)
    tables = (graphs, *(() if validation is None else (validation,)), *_engines(artifact), files)
    return Description("Artifact", rows, tables)


def _parameters(artifact: Artifact) -> str:
    """How many parameters the model has, as its manifest says; of an older one, what its first graph stores."""
    manifest = artifact.manifest
    if manifest.source.parameters is not None:
        return millions(manifest.source.parameters)
    graph = artifact.graph()
    try:
        return f"{millions(stored_numbers(artifact.path / graph.file))} stored in {graph.file}"
    except (OSError, ValueError) as error:
        return f"not known: {graph.file}: {reason_of(error)}"


def describe_engine(path: Path, with_times: bool) -> Description:
    """Describe an engine by its manifest. Its machine code is run only `with_times`, and else only hashed.

    Raises NotFoundError if no manifest vouches for it, ArtifactError if it is damaged.
    """
    folder = path.parent.parent
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(
            f"{path} is not inside an artifact, so nothing says what it is", hint="`spade build` makes engines"
        )
    artifact = Artifact.open(folder)
    entry = next((entry for entry in list_engines(artifact) if entry.name == path.stem), None)
    if entry is None:
        raise NotFoundError(
            f"{path} has no manifest in its folder, so it is never run", hint="`spade build` makes it again"
        )
    read_engine(artifact, entry)  # compared with its digest
    key, proof = EngineKey.from_json(entry.key), entry.proof
    options = [f"{name} {value}" for name, value in entry.key["options"].items() if value not in (None, False)]
    rows: Rows = (
        ("path", str(engine_path(artifact, entry))),
        ("size", size_text(entry.bytes)),
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
    """The layers as TensorRT's inspector shows them, with their times; the slowest first where they were timed."""
    known = {
        str(layer["name"]): layer for layer in proof.get("layers", []) if isinstance(layer, dict) and "name" in layer
    }
    cells = [
        (
            shortened(name),
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
            size_text(entry.bytes),
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
        psnr = (
            "identical" if "psnr_db" in figures and figures["psnr_db"] is None else number_text(figures.get("psnr_db"))
        )
        verdict = "passed" if facts.get("passed") is True else "failed"
        rows.append((str(facts.get("precision", "?")), verdict, number_text(figures.get("max_abs")), psnr))
    title = f"Validation against {report.get('reference', '?')}"
    return Table(title, ("precision", "verdict", "max error", "PSNR dB"), tuple(rows))
