"""Which TensorRT engines of an artifact Triton's TensorRT back end can serve, and why the others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spade_deploy.artifact import Artifact, list_engines, read_engine, whole_engines
from spade_deploy.engines.tensorrt.key import EngineKey
from spade_deploy.engines.tensorrt.store import StoredEngine
from spade_deploy.errors import ArtifactError
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile

_ORDER = (Precision.FP16, Precision.INT8, Precision.FP32)
"""The precisions in the order in which `engines/tensorrt/open.py` takes engines."""


@dataclass(frozen=True)
class PlanChoice:
    """Engines that are one model: of one precision, TensorRT and profile, each for another kind of card."""

    precision: Precision
    """The precision of their graph."""
    version: str
    """The TensorRT that built them; Triton must have the same."""
    profile: ShapeProfile
    """The sizes that they take."""
    files: Mapping[str, str]
    """The compute capability of each by the name of its file."""
    contents: Mapping[str, bytes]
    """The engine in each file."""
    cards: tuple[str, ...]
    """The cards that they were built on."""


def choose_plan(artifact: Artifact, precision: Precision | None) -> tuple[PlanChoice | None, list[str]]:
    """The engines that are packaged, None if there are none, and a sentence for each that is left out."""
    fit, left_out = _readable(artifact)
    if not fit:
        left_out.append("there is no TensorRT model: run `spade build` on the card that will run the engine")
        return None, left_out
    order = [precision] if precision is not None else list(_ORDER)
    able = [one for one in fit if one.key.precision in order]
    if not able:
        there = ", ".join(sorted({one.key.precision for one in fit}))
        left_out.append(f"there is no TensorRT model: the engines have the precision {there}, not {precision}")
        return None, left_out
    first = min(able, key=lambda one: (order.index(one.key.precision), _newest_first(one.key)))
    contents: dict[str, bytes] = {}
    files: dict[str, str] = {}
    cards = []
    for one in fit:
        key = one.key
        file = f"sm{key.compute_capability.replace('.', '')}.plan"
        same = (key.precision, key.version, key.profile) == (
            first.key.precision,
            first.key.version,
            first.key.profile,
        )
        if not same or file in files:
            left_out.append(
                f"the engine {one.entry.name} ({key.precision}, TensorRT {key.version}, {key.profile}, {key.gpu}) is"
                f" left out: a model has one engine per kind of card, all of the same kind as {first.entry.name}"
            )
            continue
        contents[file] = read_engine(artifact, one.entry)
        files[file] = key.compute_capability
        cards.append(key.gpu)
    key = first.key
    return PlanChoice(key.precision, key.version, key.profile, files, contents, tuple(cards)), left_out


def _readable(artifact: Artifact) -> tuple[list[StoredEngine], list[str]]:
    """The whole engines of this artifact's dense graphs that TensorRT built, and why others are none of them."""
    manifest = artifact.manifest
    digests = {manifest.files[one.file].sha256: one.kind for one in manifest.graphs}
    found, left_out = [], []
    try:
        entries = list_engines(artifact)
    except ArtifactError as error:  # the manifest of one of them cannot be read
        left_out.append(f"an engine is left out: {error.message}")
        entries = whole_engines(artifact)
    for entry in entries:
        why = ""
        try:
            key = EngineKey.from_json(entry.key)
            read_engine(artifact, entry)
        except ArtifactError as error:
            left_out.append(f"the engine {entry.name} is left out: {error.message}")
            continue
        if key.onnx_sha256 not in digests:
            why = "it was built from another graph"
        elif digests[key.onnx_sha256] is not GraphKind.DENSE:
            why = "it runs the lookup graph, for which Triton uses ONNX Runtime"
        elif key.flavour is not Flavour.TENSORRT:
            why = "it was built by TensorRT for RTX, which Triton does not load"
        elif key.profile.least[0] > 1:
            why = f"it takes at least {key.profile.least[0]} images, but Triton sends single ones"
        if why:
            left_out.append(f"the engine {entry.name} is left out: {why}")
        else:
            found.append(StoredEngine(entry, key))
    return found, left_out


def _newest_first(key: EngineKey) -> tuple[int, ...]:
    return tuple(-int(part) for part in key.version.split(".")[:3] if part.isdecimal())
