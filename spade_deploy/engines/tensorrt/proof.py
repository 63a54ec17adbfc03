"""Proof of precision: compare the types that the typed graph asks for with those that the built engine really runs.

If half precision is asked for in a way that TensorRT no longer supports, the build succeeds, and the engine runs in
float32. So the layers that do the work, convolutions and matrix products, are read twice: from the typed network
before the build, and from the engine's own inspector after it.

What the inspector shows. A kernel has the types of what goes in and out, and says which layers of the graph it
computes: in its metadata, or in its name, where fused layers are joined with ` + ` and convolutions that share an input
with ` || `. A layer cannot be seen where it was computed while building, or lies in a region that TensorRT compiles as
a whole and shows as one `ForeignNode`, whose types are those of the region's ends. An engine of TensorRT for RTX is
such a region as a whole.

What is enough. Every layer that is seen must have its precision, and at least half of those that the graph asks for
must be seen. A builder that ignores the types ignores them everywhere, so half of the layers, each in its precision,
show that this one does not; fewer may be an exception in an engine of another type. Where not one layer is seen,
nothing is claimed of the engine: the proof is then of the network's types alone, to which a strongly typed engine is
bound, and says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spade_deploy.errors import BuildError, reason_of
from spade_deploy.spec import Precision

TYPES = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8", "BF16": "bf16", "FP8": "fp8"}
WORK = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_JOINED = re.compile(r" \+ | \|\| ")
_MOVES = ("reformat", "noop", "constant", "shuffle", "cast")
"""Kinds of an engine's layers that only move values. Their names contain those of the layers that they serve."""


@dataclass(frozen=True)
class TypedLayer:
    """A convolution or product of the typed network."""

    name: str
    """Its name in the graph."""
    kind: str
    """Its kind: 'convolution', 'deconvolution' or 'matrix_multiply'."""
    type: str
    """The type of what it multiplies: 'fp16'."""


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built engine, as the inspector shows it."""

    name: str
    """Its name in the engine."""
    kind: str
    """Its kind, in TensorRT's words."""
    types: tuple[str, ...]
    """The types of its inputs and outputs, sorted; empty if the inspector does not show them."""
    covers: tuple[str, ...]
    """The graph's layers that are fused in it, as far as the inspector shows them."""

    @property
    def is_readable(self) -> bool:
        """Whether its types are those in which its covered layers run: it computes, and is not a compiled region."""
        return bool(self.types) and "ForeignNode" not in self.name and self.kind.lower() not in _MOVES


@dataclass(frozen=True)
class Proof:
    """How many of the working layers, convolutions and products, are in a precision."""

    precision: Precision
    """The precision of the graph."""
    total: int
    """The working layers of the typed network."""
    asked: int
    """How many of these layers have the precision in the typed network."""
    reached: int
    """How many layers were seen in the precision in the engine itself; the other `asked - reached` could not be seen.
    If the engine was not read it equals `asked`, since a strongly typed engine has to keep the network's types."""
    of_engine: bool
    """Whether the engine itself was read. An engine for a card that is not in this machine cannot be read."""
    layers: tuple[EngineLayer, ...] = ()
    """All layers that the inspector shows."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def proof_text(proof: Mapping[str, Any]) -> str:
    """A proof in one sentence, from the JSON of `Proof.to_json`."""
    counted = f"{proof.get('reached')} of {proof.get('total')} convolutions and products in {proof.get('precision')}"
    if proof.get("of_engine"):
        hidden = int(proof.get("asked", 0)) - int(proof.get("reached", 0))
        more = f"; {hidden} more by the types of the network, not seen in the engine" if hidden > 0 else ""
        return f"{counted}: read from the engine itself{more}"
    if proof.get("layers"):
        return f"{counted}: by the types of the network; TensorRT's inspector shows none of them in the engine"
    return f"{counted}: by the types of the network; the engine itself is compiled, and can be read, on the card alone"


def typed_layers(trt: Any, network: Any) -> list[TypedLayer]:
    """The working layers of a parsed network with their types; one that multiplies dequantized int8 values is int8."""
    made_by: dict[str, Any] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            made_by[layer.get_output(output).name] = layer
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        if kind not in WORK or layer.get_input(0).is_shape_tensor:
            continue
        type_name = TYPES.get(layer.get_input(0).dtype.name, layer.get_input(0).dtype.name.lower())
        if all(_is_dequantized(made_by, layer.get_input(side)) for side in range(min(2, layer.num_inputs))):
            type_name = "int8"
        names = _ONNX_LAYER.findall(getattr(layer, "metadata", "") or "")
        found.append(TypedLayer(names[0] if names else layer.name, kind.lower(), type_name))
    return found


def _is_dequantized(made_by: dict[str, Any], tensor: Any) -> bool:
    """Whether a value comes from a DequantizeLinear, through layers that only move values."""
    for _ in range(4):
        layer = made_by.get(tensor.name) if tensor is not None else None
        if layer is None:
            return False
        if layer.type.name == "DEQUANTIZE":
            return True
        if layer.type.name not in ("SHUFFLE", "IDENTITY"):
            return False
        tensor = layer.get_input(0)
    return False


def engine_layers(information: str) -> list[EngineLayer]:
    """The inspector's JSON (profiling verbosity 'detailed') -> layers. Raises BuildError for what is no such JSON."""
    try:
        entries = list(json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"the engine inspector's answer cannot be read: {reason_of(error)}") from error
    found = []
    for entry in entries:
        if not isinstance(entry, dict):  # verbosity 'layer names only': no types, so no proof
            found.append(EngineLayer(str(entry), "", (), ()))
            continue
        name = str(entry.get("Name", ""))
        tensors = [*(entry.get("Inputs") or []), *(entry.get("Outputs") or [])]
        types = [_type_in(str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))) for tensor in tensors]
        covers = [*_ONNX_LAYER.findall(str(entry.get("Metadata", ""))), *_JOINED.split(name)]
        kind = str(entry.get("LayerType", ""))
        found.append(EngineLayer(name, kind, tuple(sorted(filter(None, set(types)))), tuple(dict.fromkeys(covers))))
    return found


def prove(precision: Precision, typed: Sequence[TypedLayer], layers: Sequence[EngineLayer] | None) -> Proof:
    """Compare an engine with its typed graph. layers: those of the engine; None if it cannot be read here.

    Raises BuildError where the graph has no layer of the precision at all, a layer of the engine runs in another type,
    or too few layers can be seen to say that it does not (see the top of this file).
    """
    asked = [layer for layer in typed if layer.type == precision]
    if not asked:
        raise BuildError(
            f"the graph has no convolution or product in {precision}: {_counts(typed)}",
            hint=f"`spade export --{precision}` makes a graph of that precision" if precision != "fp32" else None,
        )
    types: dict[str, set[str]] = {}
    for layer in layers or ():
        for name in layer.covers if layer.is_readable else ():
            types.setdefault(name, set()).update(layer.types)
    seen = [layer.name for layer in asked if layer.name in types]
    if not seen:
        return Proof(precision, len(typed), len(asked), len(asked), of_engine=False, layers=tuple(layers or ()))
    wrong = [name for name in seen if precision not in types[name]]
    if wrong:
        raise BuildError(
            f"the engine is not {precision}: {len(wrong)} of {len(asked)} layers run in another type, the first"
            f" {wrong[0]} in {', '.join(sorted(types[wrong[0]]))}",
            hint="the engine was not written; report it with the versions that `spade doctor` prints",
        )
    if 2 * len(seen) < len(asked):
        hidden = next(layer.name for layer in asked if layer.name not in types)
        raise BuildError(
            f"the engine is not proved to be {precision}: only {len(seen)} of {len(asked)} layers can be seen in it,"
            f" and at least half must be; the first that cannot is {hidden}",
            hint="the engine was not written; report it with the versions that `spade doctor` prints",
        )
    return Proof(precision, len(typed), len(asked), len(seen), of_engine=True, layers=tuple(layers or ()))


def _counts(typed: Sequence[TypedLayer]) -> str:
    kinds = sorted({layer.type for layer in typed})
    return ", ".join(f"{sum(layer.type == kind for layer in typed)} in {kind}" for kind in kinds) or "it has none"


def _type_in(described: str) -> str:
    words = {"half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "int8": "int8", "bf16": "bf16"}
    for word in re.findall(r"[a-z0-9]+", described.lower()):
        if word in words:
            return words[word]
    return ""
