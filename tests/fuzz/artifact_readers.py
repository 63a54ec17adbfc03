"""Cases of artifacts: manifests, golden tensors, graphs, engines; and of extractors, ONNX files that others made."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from spade_deploy.artifact import Artifact, list_engines, read_engine, rewrite_manifest
from spade_deploy.artifact.manifest import manifest_digest, read_manifest
from spade_deploy.engines.tensorrt.store import stored_engines
from spade_deploy.metrics import OnnxExtractor, OnnxSegmenter
from spade_deploy.spec import LabelSpec

from .bytes_damage import damage_bytes
from .case import Case
from .json_damage import damage_json
from .onnx_damage import damaged_onnx
from .weights_damage import damaged_npz


def manifest(case: Case) -> None:
    """Field by field, mostly with its own digest made right."""
    artifact = case.copy(case.rng.choice((case.corpus.plain, case.corpus.styled)), "artifact")
    path = artifact / "manifest.json"
    seal = _seal if case.rng.random() < 0.8 else None
    case.write("artifact/manifest.json", damage_json(case.rng, json.loads(path.read_bytes()), seal))
    _use(case, artifact)


def _seal(value: dict[str, Any]) -> None:
    """Make the digest of a manifest over itself right, where it has one."""
    if "manifest_sha256" in value:
        value["manifest_sha256"] = manifest_digest(value)


def _use(case: Case, artifact: Path, must_fail: str = "") -> None:
    """What is done with an artifact: opened, inspected, run, validated."""
    which = case.rng.random()
    case.watch.command("inspect", artifact, must_fail=must_fail)
    if which < 0.4:
        size = ("--style-image", case.corpus.images / "0.png") if (artifact / "encoder.onnx").is_file() else ()
        target = case.out / "photos"
        case.watch.command(
            "infer", case.corpus.labels, target, "--artifact", artifact, "--threads", "1", *size, must_fail=must_fail
        )
    elif which < 0.6:
        case.watch.command("validate", artifact, "--runs", case.runs, "--backend", "cpu", must_fail=must_fail)
    elif which < 0.7:
        case.watch.command("infer", case.corpus.labels, case.out, "--artifact", artifact, "--backend", "tensorrt")


def golden(case: Case) -> None:
    """Golden tensors with right digests, so that the parser is reached."""
    artifact = case.copy(case.corpus.plain, "artifact")
    name = case.rng.choice(("inputs", "outputs"))
    path = artifact / "golden" / f"{name}.npz"
    case.write(f"artifact/golden/{name}.npz", damaged_npz(case.rng, path.read_bytes()))
    _rehash(artifact)
    case.watch.call("Artifact.golden", lambda: Artifact.open(artifact).golden())
    if case.rng.random() < 0.4:
        case.watch.command("validate", artifact, "--runs", case.runs, "--backend", "cpu")


def _rehash(artifact: Path) -> None:
    from spade_deploy.errors import SpadeError

    with contextlib.suppress(SpadeError):
        rewrite_manifest(artifact, read_manifest(artifact))


def graph(case: Case) -> None:
    """An ONNX file, with the old digest and with a new one."""
    is_styled = case.rng.random() < 0.4
    artifact = case.copy(case.corpus.styled if is_styled else case.corpus.plain, "artifact")
    name = "encoder.onnx" if is_styled and case.rng.random() < 0.6 else "generator.fp32.onnx"
    good = (artifact / name).read_bytes()
    case.write(f"artifact/{name}", damaged_onnx(case.rng, good))
    is_changed = (artifact / name).read_bytes() != good
    if case.rng.random() < 0.25:
        _use(case, artifact, must_fail="a graph that is not the one of the manifest" if is_changed else "")
        return
    _rehash(artifact)
    _use(case, artifact)


def changed_file(case: Case) -> None:
    """Any file of an artifact with other bytes than the manifest says: nothing that opens artifacts takes it."""
    artifact = case.copy(case.corpus.plain, "artifact")
    names = list(read_manifest(artifact).files)
    name = case.rng.choice(names)
    good = (artifact / name).read_bytes()
    case.write(f"artifact/{name}", damage_bytes(case.rng, good))
    if (artifact / name).read_bytes() != good:
        _use(case, artifact, must_fail=f"another {name} than was written")


def engine(case: Case) -> None:
    """Engine manifests field by field, and engines."""
    artifact = case.copy(case.corpus.plain, "artifact")
    path = case.rng.choice(sorted((artifact / "engines").glob("*.json")))
    if case.rng.random() < 0.8:
        seal = _seal if case.rng.random() < 0.8 else None
        case.write(f"artifact/engines/{path.name}", damage_json(case.rng, json.loads(path.read_bytes()), seal))
        must_fail = ""
    else:
        binary = path.with_suffix(".engine")
        case.write(f"artifact/engines/{binary.name}", damage_bytes(case.rng, binary.read_bytes()))
        must_fail = "an engine that is not the one of its manifest" if binary.read_bytes() != b"engine" * 5000 else ""
    opened = Artifact.open(artifact)
    case.watch.call("stored_engines", stored_engines, opened)
    entries = case.watch.call("list_engines", list_engines, opened) or ()
    for entry in entries:
        if entry.name == path.stem:
            case.watch.call("read_engine", read_engine, opened, entry, must_fail=must_fail)
    case.watch.command("inspect", path, must_fail=must_fail)
    which = case.rng.random()
    if which < 0.4:
        case.watch.command("inspect", artifact)
    elif which < 0.7:
        # Other work does not depend on engines: auto runs on the CPU.
        case.watch.command("infer", case.corpus.labels, case.out / "photos", "--artifact", artifact, "--threads", "1")


def extractor(case: Case) -> None:
    """Feature extractors and segmenters: the graph, the JSON beside it, what it computes."""
    import numpy as np

    path = case.copy(case.corpus.extractor)
    beside = case.copy(case.corpus.extractor.with_suffix(".json"))
    if case.rng.random() < 0.5:
        case.write(path.name, damaged_onnx(case.rng, path.read_bytes()))
    else:
        case.write(beside.name, damage_json(case.rng, json.loads(beside.read_bytes())))
    pixels = np.zeros((2, 40, 40, 3), np.uint8)
    if case.rng.random() < 0.7:
        case.watch.call("OnnxExtractor", lambda: OnnxExtractor(path).features(pixels))
    else:
        case.watch.call("OnnxSegmenter", lambda: OnnxSegmenter(path, LabelSpec(4)).predict(pixels))
    if case.rng.random() < 0.1:
        data = ("--labels", case.corpus.labels, "--images", case.corpus.images, "--num-labels", "5", "--size", "64x64")
        target = ("--out", case.out / "evaluation", "--runs", case.runs)
        case.watch.command("eval", case.corpus.images, *data, "--extractor", path, *target)
