"""The manifest: what an artifact says of itself, and how it is read from a file that nobody vouches for.

Fields that this version does not know are ignored: a change that an older reader must not ignore raises
FORMAT_VERSION.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spade_deploy import __version__
from spade_deploy.artifact.tensors import TensorInfo, encoder_tensors, input_rule, input_tensors, output_tensors
from spade_deploy.errors import ArtifactError, ConfigError, NewerArtifactError, quoted, reason_of
from spade_deploy.files.reading import MAX_JSON_BYTES
from spade_deploy.files.reading import read_json as read_json_file
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision, RoundingError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_OUTPUTS = "golden/outputs.npz"
EXPORT_AGAIN = "`spade export` makes a new artifact; if this one was copied, copy it again"

# Portable on every file system, and unable to leave the folder: no leading dot, slash or backslash, no '..'.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,4}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Graph:
    """One ONNX file.

    kept_fp32: the layers that stay fp32 in an fp16 or int8 graph.
    break_even_share: of a lookup graph, the share of unique patterns from which on the dense graph is as fast on a
    CPU, measured at export; None where it was not measured.
    min_psnr_db: of an int8 graph, the quality it was made to reach and is held to.
    """

    file: str
    precision: Precision
    kept_fp32: tuple[str, ...] = ()
    opset: int = 18
    kind: GraphKind = GraphKind.DENSE
    break_even_share: float | None = None
    min_psnr_db: float | None = None

    @property
    def name(self) -> str:
        """For people: 'fp32' of a dense graph, 'fp32 lookup'."""
        return str(self.precision) if self.kind is GraphKind.DENSE else f"{self.precision} {self.kind}"


@dataclass(frozen=True)
class EncoderGraph:
    """The style encoder's ONNX file.

    max_error: the largest difference of mu or logvar from the PyTorch module's, measured at export. tolerance: what
    was allowed.
    """

    file: str
    opset: int
    max_error: float
    tolerance: float


@dataclass(frozen=True)
class Source:
    """What was exported: a run's name, its step (None after an import), 'train' or 'import', the weights' digest."""

    run: str
    step: int | None
    origin: str
    generator_sha256: str


@dataclass(frozen=True)
class FileFact:
    """Digest and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    rounding: the float32 rounding error of the PyTorch reference on the golden inputs, which tolerances follow from.
    encoder: of a model whose styles can be taken from photos, else None.
    files: by name relative to the folder, with forward slashes.
    """

    created_unix_ns: int
    generator: GeneratorSpec
    graphs: tuple[Graph, ...]
    source: Source
    versions: Mapping[str, str]
    rounding: RoundingError
    files: Mapping[str, FileFact]
    encoder: EncoderGraph | None = None
    format_version: int = FORMAT_VERSION

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What there is a dense graph of."""
        return tuple(graph.precision for graph in self.graphs if graph.kind is GraphKind.DENSE)

    def to_json(self) -> dict[str, Any]:
        """The file's content, its own digest last."""
        spec = self.generator
        value = {
            "format_version": self.format_version,
            "created_unix_ns": self.created_unix_ns,
            "generator": spec.to_json(),
            "input_rule": input_rule(spec),
            "inputs": [asdict(tensor) for tensor in input_tensors(spec)],
            "outputs": [asdict(tensor) for tensor in output_tensors(spec)],
            "graphs": [asdict(graph) for graph in self.graphs],
            **({} if self.encoder is None else {"encoder": _encoder_json(self.encoder, spec)}),
            "golden": {"inputs": GOLDEN_INPUTS, "outputs": GOLDEN_OUTPUTS},
            "rounding": asdict(self.rounding),
            "source": asdict(self.source),
            "versions": dict(self.versions),
            "files": {name: asdict(fact) for name, fact in sorted(self.files.items())},
        }
        return {**value, "manifest_sha256": manifest_digest(value)}


def _encoder_json(encoder: EncoderGraph, spec: GeneratorSpec) -> dict[str, Any]:
    inputs, outputs = encoder_tensors(spec)
    return {
        **asdict(encoder),
        "inputs": [asdict(tensor) for tensor in inputs],
        "outputs": [asdict(tensor) for tensor in outputs],
    }


def manifest_digest(value: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a manifest without its own digest."""
    without = {name: entry for name, entry in value.items() if name != "manifest_sha256"}
    text = json.dumps(without, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact's folder; raises ArtifactError or NewerArtifactError."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        what = "is not a folder" if not folder.is_dir() else f"is not an artifact: it holds no {MANIFEST}"
        if not folder.exists():
            what = "does not exist"
        raise ArtifactError(f"{folder} {what}", hint="`spade export` makes an artifact; give the folder that it names")
    return parse_manifest(folder, read_json(path, "manifest"))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a bounded, regular file; `what` names it in the ArtifactError."""
    try:
        return read_json_file(path, MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: the {what} is damaged: {reason_of(error)}", hint=EXPORT_AGAIN) from error


def parse_manifest(folder: Path, value: dict[str, Any]) -> Manifest:
    """Check every field of a manifest's JSON: its types, its digest, and that it does not contradict itself."""
    where = folder / MANIFEST
    version = value.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(
            f"{where}: format_version {quoted(version)} is not a positive number: not an artifact's manifest"
        )
    if version > FORMAT_VERSION:
        raise NewerArtifactError(
            f"{folder} is of artifact format {version}; this version ({__version__}) reads up to {FORMAT_VERSION}",
            hint="pip install --upgrade spade-deploy",
        )
    try:
        if value.get("manifest_sha256") != manifest_digest(value):
            raise _FieldError("its content is not what was written: the digest differs")
        manifest = Manifest(
            created_unix_ns=_get(value, "created_unix_ns", int),
            generator=GeneratorSpec.from_json(_get(value, "generator", dict)),
            graphs=tuple(_parse_graph(entry) for entry in _get(value, "graphs", list)),
            source=_parse_source(_get(value, "source", dict)),
            versions={name: _typed(text, str, name) for name, text in _get(value, "versions", dict).items()},
            rounding=_parse_rounding(_get(value, "rounding", dict)),
            files={name: _parse_fact(fact, name) for name, fact in _get(value, "files", dict).items()},
            encoder=_parse_encoder(_get(value, "encoder", dict)) if "encoder" in value else None,
            format_version=version,
        )
        for name in manifest.files:
            require_safe_name(folder, name)
        _check_consistency(manifest, value)
    except (_FieldError, ConfigError) as error:
        raise ArtifactError(f"{where}: the manifest is damaged: {reason_of(error)}", hint=EXPORT_AGAIN) from error
    return manifest


def require_safe_name(folder: Path, name: str) -> None:
    """Refuse names that leave the folder, and those that not every file system can hold."""
    if not _SAFE_NAME.fullmatch(name):
        raise ArtifactError(
            f"{folder}: file name {quoted(name)} is not allowed in an artifact:"
            " letters, digits, '_', '-' and '.', below the folder"
        )


class _FieldError(Exception):
    pass


def _check_consistency(manifest: Manifest, value: dict[str, Any]) -> None:
    if not manifest.graphs:
        raise _FieldError("graphs is empty")
    encoder, spec = manifest.encoder, manifest.generator
    graphs = [graph.file for graph in manifest.graphs] + ([] if encoder is None else [encoder.file])
    for name in (*graphs, GOLDEN_INPUTS, GOLDEN_OUTPUTS):
        if name not in manifest.files:
            raise _FieldError(f"files lacks {quoted(name)}")
    if _get(value, "golden", dict) != {"inputs": GOLDEN_INPUTS, "outputs": GOLDEN_OUTPUTS}:
        raise _FieldError(f"golden {quoted(value['golden'])} is not {GOLDEN_INPUTS} and {GOLDEN_OUTPUTS}")
    _check_tensors(value, "", (input_tensors(spec), output_tensors(spec)))
    if encoder is not None:
        if spec.z_dim is None:
            raise _FieldError("encoder contradicts the generator, which has no style vector")
        _check_tensors(value["encoder"], "encoder: ", encoder_tensors(spec))


def _check_tensors(value: dict[str, Any], where: str, expected: tuple[tuple[TensorInfo, ...], ...]) -> None:
    for field, tensors in zip(("inputs", "outputs"), expected, strict=True):
        told = [_typed(entry, dict, field) for entry in _get(value, field, list)]
        found = [(entry.get("name"), entry.get("dtype"), entry.get("shape")) for entry in told]
        if found != [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in tensors]:
            raise _FieldError(f"{where}{field} contradicts the generator: {quoted(found)}")


def _parse_graph(value: Any) -> Graph:
    _typed(value, dict, "graphs")
    precision = _get(value, "precision", str)
    if precision not in list(Precision):
        raise _FieldError(f"graphs: precision {quoted(precision)} is not one of {', '.join(Precision)}")
    kind = _get(value, "kind", str)
    if kind not in list(GraphKind):
        raise _FieldError(f"graphs: kind {quoted(kind)} is not one of {', '.join(GraphKind)}")
    return Graph(
        file=_get(value, "file", str),
        precision=Precision(precision),
        kept_fp32=tuple(_typed(name, str, "kept_fp32") for name in _get(value, "kept_fp32", list)),
        opset=_get(value, "opset", int),
        kind=GraphKind(kind),
        break_even_share=_optional_number(value, "break_even_share"),
        min_psnr_db=_optional_number(value, "min_psnr_db"),
    )


def _parse_encoder(value: dict[str, Any]) -> EncoderGraph:
    return EncoderGraph(
        file=_get(value, "file", str),
        opset=_get(value, "opset", int),
        max_error=_get(value, "max_error", float),
        tolerance=_get(value, "tolerance", float),
    )


def _parse_source(value: dict[str, Any]) -> Source:
    step = value.get("step")
    return Source(
        run=_get(value, "run", str),
        step=None if step is None else _typed(step, int, "step"),
        origin=_get(value, "origin", str),
        generator_sha256=_get(value, "generator_sha256", str),
    )


def _parse_rounding(value: dict[str, Any]) -> RoundingError:
    return RoundingError(*(_get(value, name, float) for name in ("max_abs", "mean_abs", "logit_max", "logit_mean")))


def _parse_fact(value: Any, name: str) -> FileFact:
    _typed(value, dict, f"files: {quoted(name)}")
    fact = FileFact(_get(value, "sha256", str), _get(value, "bytes", int))
    if not _SHA256.fullmatch(fact.sha256) or fact.bytes < 0:
        raise _FieldError(f"files: {quoted(name)}: {quoted(fact.sha256)}, {fact.bytes} bytes")
    return fact


def _optional_number(value: dict[str, Any], name: str) -> float | None:
    entry = value.get(name)
    return None if entry is None else float(_typed(entry, (int, float), name))


def _get(value: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    if name not in value:
        raise _FieldError(f"field {name!r} is missing")
    return _typed(value[name], kind, name)


def _typed(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = getattr(kind, "__name__", "number")
        raise _FieldError(f"{what}: {quoted(value)} is of type {type(value).__name__}, not {wanted}")
    return value
