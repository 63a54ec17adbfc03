"""The manifest: what an artifact says of itself, and how it is read from a file that may have been tampered with.

Fields that this version does not know are ignored. So a change that an older version must not ignore has to raise
FORMAT_VERSION.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.artifact.tensors import TensorInfo, encoder_tensors, graph_tensors, input_rule, output_tensors
from spade_deploy.errors import ArtifactError, ConfigError, NewerArtifactError, quoted, reason_of
from spade_deploy.fields import Count, CountOrNone, Sha256, Sha256OrNone, digest_of, from_json, of_type, parse, to_json
from spade_deploy.files.reading import MAX_JSON_BYTES
from spade_deploy.files.reading import read_json as read_json_file
from spade_deploy.spec import EXPORTED, GeneratorSpec, GraphKind, Precision, RoundingError
from spade_deploy.version import __version__

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_OUTPUTS = "golden/outputs.npz"
BANK = "bank.npz"
EXPORT_AGAIN = "`spade export` makes a new artifact; if this one was copied, copy it again"

# Portable on every file system, and unable to leave the folder: no leading dot, slash or backslash, no '..'.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,4}")


@dataclass(frozen=True)
class Graph:
    """One ONNX file of the generator."""

    file: str
    """Its name in the artifact's folder."""

    precision: Precision
    """The type of its weights and activations."""

    kept_fp32: tuple[str, ...] = ()
    """The layers that stay fp32 in an fp16 or int8 graph."""

    opset: int = 18
    """The version of ONNX's operators that it uses."""

    kind: GraphKind = GraphKind.DENSE
    """Whether it computes gamma and beta, or looks them up."""

    break_even_share: float | None = None
    """For a lookup graph, the share of unique patterns from which on the dense graph is as fast on a CPU.

    It is measured at export, and None if it was not measured.
    """

    min_psnr_db: float | None = None
    """For an int8 graph, the least PSNR that it was made to reach and has to keep."""

    @property
    def name(self) -> str:
        """Its name for people: 'fp32' for a dense graph, 'fp32 lookup' for a lookup graph."""
        return str(self.precision) if self.kind is GraphKind.DENSE else f"{self.precision} {self.kind}"


@dataclass(frozen=True)
class EncoderGraph:
    """The ONNX file of an encoder of photos: of styles, or of instance features."""

    file: str
    """Its name in the artifact's folder."""

    opset: int
    """The version of ONNX's operators that it uses."""

    max_error: float
    """The largest difference of its outputs from the PyTorch module's, measured at export."""

    tolerance: float
    """The largest difference that was allowed."""


@dataclass(frozen=True)
class Source:
    """What was exported."""

    run: str
    """The name of the run."""

    step: int | None
    """The step of its checkpoint; None after an import."""

    origin: str
    """How the weights came to be: 'train' or 'import'."""

    generator_sha256: str
    """The SHA-256 of the file of weights."""

    license: str = ""
    """The licence of the weights, such as 'cc-by-4.0'; empty where nobody stated one."""

    parameters: CountOrNone = None
    """How many trained numbers the generator has; None in artifacts of older versions."""

    teacher_sha256: Sha256OrNone = ""
    """The SHA-256 of the weights of a student's teacher; empty without one, and in artifacts of older versions."""


@dataclass(frozen=True)
class FileFact:
    """What one file of the artifact must be."""

    sha256: Sha256
    """The SHA-256 of its content."""

    bytes: Count
    """Its size."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    created_unix_ns: int
    """When the artifact was made, in nanoseconds since 1970."""

    generator: GeneratorSpec
    """How the generator is built. The graphs' inputs and outputs follow from it."""

    graphs: tuple[Graph, ...]
    """The generator's ONNX files."""

    source: Source
    """What was exported."""

    versions: Mapping[str, str]
    """The packages that made it, and their versions."""

    rounding: RoundingError
    """The float32 rounding error of the PyTorch reference on the golden inputs. Tolerances follow from it."""

    files: Mapping[str, FileFact]
    """Every other file by its name relative to the folder, with forward slashes."""

    encoder: EncoderGraph | None = None
    """The encoder of a model whose styles or instance features can be taken from photos."""

    format_version: int = FORMAT_VERSION
    """The version of this format."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of the dense graphs."""
        return tuple(graph.precision for graph in self.graphs if graph.kind is GraphKind.DENSE)

    def to_json(self) -> dict[str, Any]:
        """The file's content, its own digest last."""
        spec = self.generator
        value = {
            "format_version": self.format_version,
            "created_unix_ns": self.created_unix_ns,
            "generator": spec.to_json(),
            "input_rule": input_rule(spec),
            "inputs": [to_json(tensor) for tensor in graph_tensors(spec)],
            "outputs": [to_json(tensor) for tensor in output_tensors(spec)],
            "graphs": [to_json(graph) for graph in self.graphs],
            **({} if self.encoder is None else {"encoder": _encoder_json(self.encoder, spec)}),
            "golden": {"inputs": GOLDEN_INPUTS, "outputs": GOLDEN_OUTPUTS},
            "rounding": to_json(self.rounding),
            "source": to_json(self.source),
            "versions": dict(self.versions),
            "files": {name: to_json(fact) for name, fact in sorted(self.files.items())},
        }
        return {**value, "manifest_sha256": manifest_digest(value)}


def _encoder_json(encoder: EncoderGraph, spec: GeneratorSpec) -> dict[str, Any]:
    inputs, outputs = encoder_tensors(spec)
    return {
        **to_json(encoder),
        "inputs": [to_json(tensor) for tensor in inputs],
        "outputs": [to_json(tensor) for tensor in outputs],
    }


def manifest_digest(value: Mapping[str, Any]) -> str:
    """The digest of a manifest's JSON, in which the field of this digest itself is left out."""
    return digest_of({name: entry for name, entry in value.items() if name != "manifest_sha256"})


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
            raise ConfigError("its content is not what was written: the digest differs")
        if "encoder" in value:
            of_type(value["encoder"], dict, "encoder")
        manifest = from_json(Manifest, value, ignore_unknown=True)
        for name in manifest.files:
            require_safe_name(folder, name)
        _check_consistency(manifest, value)
    except ConfigError as error:
        raise ArtifactError(f"{where}: the manifest is damaged: {reason_of(error)}", hint=EXPORT_AGAIN) from error
    return manifest


def require_safe_name(folder: Path, name: str) -> None:
    """Refuse names that leave the folder, and those that not every file system can hold."""
    if not _SAFE_NAME.fullmatch(name):
        raise ArtifactError(
            f"{folder}: file name {quoted(name)} is not allowed in an artifact:"
            " letters, digits, '_', '-' and '.', below the folder"
        )


def _check_consistency(manifest: Manifest, value: dict[str, Any]) -> None:
    if not manifest.graphs:
        raise ConfigError("graphs is empty")
    for index, graph in enumerate(manifest.graphs):
        if graph.precision not in EXPORTED:
            allowed = ", ".join(EXPORTED)
            raise ConfigError(f"graphs[{index}]: precision {graph.precision} is no file's; allowed are {allowed}")
    encoder, spec = manifest.encoder, manifest.generator
    graphs = [graph.file for graph in manifest.graphs] + ([] if encoder is None else [encoder.file])
    bank = (BANK,) if spec.has_bank else ()
    for name in (*graphs, *bank, GOLDEN_INPUTS, GOLDEN_OUTPUTS):
        if name not in manifest.files:
            raise ConfigError(f"files lacks {quoted(name)}")
    if value.get("golden") != {"inputs": GOLDEN_INPUTS, "outputs": GOLDEN_OUTPUTS}:
        raise ConfigError(f"golden {quoted(value.get('golden'))} is not {GOLDEN_INPUTS} and {GOLDEN_OUTPUTS}")
    _check_tensors(value, "", (graph_tensors(spec), output_tensors(spec)))
    if encoder is not None:
        if spec.z_dim is None and not spec.has_features:
            raise ConfigError("encoder contradicts the generator, which has no style vector and no instance features")
        _check_tensors(value["encoder"], "encoder: ", encoder_tensors(spec))


def _check_tensors(value: dict[str, Any], where: str, expected: tuple[tuple[TensorInfo, ...], ...]) -> None:
    for field, tensors in zip(("inputs", "outputs"), expected, strict=True):
        told = parse(list[dict[str, Any]], value.get(field), f"{where}{field}")
        found = [(entry.get("name"), entry.get("dtype"), entry.get("shape")) for entry in told]
        if found != [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in tensors]:
            raise ConfigError(f"{where}{field} contradicts the generator: {quoted(found)}")
