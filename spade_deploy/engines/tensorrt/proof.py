"""Proof of precision: what types the typed graph asks for, and what types the built engine really runs.

A network that is asked for half precision in a way that TensorRT no longer listens to builds, runs, and is a float32
engine. So the layers that do the work, convolutions and matrix products, are read twice: from the typed network before
the build, and from the engine's own inspector after it.
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


@dataclass(frozen=True)
class TypedLayer:
    """A convolution or product of the typed network: its name, its kind, and the type of what it multiplies."""

    name: str
    kind: str
    type: str


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built engine. types: of what goes in and out. covers: the graph's layers that are fused in it."""

    name: str
    kind: str
    types: tuple[str, ...]
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """asked, reached: how many working layers the typed graph, and the engine, have in the precision.

    total: the working layers. of_engine: whether the engine itself was read; where it is built for a card that is not
    here, only the typed network is known, and `reached` is what a strongly typed network is bound to.
    """

    precision: Precision
    total: int
    asked: int
    reached: int
    of_engine: bool
    layers: tuple[EngineLayer, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def proof_text(proof: Mapping[str, Any]) -> str:
    """One sentence of `Proof.to_json`."""
    where = (
        "read from the engine itself"
        if proof.get("of_engine")
        else "by the types of the network; the engine itself is compiled, and can be read, on the card alone"
    )
    return (
        f"{proof.get('reached')} of {proof.get('total')} convolutions and products in {proof.get('precision')}: {where}"
    )


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
        covers = [*_ONNX_LAYER.findall(str(entry.get("Metadata", ""))), *name.split(" + ")]
        kind = str(entry.get("LayerType", ""))
        found.append(EngineLayer(name, kind, tuple(sorted(filter(None, set(types)))), tuple(dict.fromkeys(covers))))
    return found


def prove(precision: Precision, typed: Sequence[TypedLayer], layers: Sequence[EngineLayer] | None) -> Proof:
    """Hold an engine to its typed graph. layers: of the engine; None where it cannot be read here.

    Raises BuildError where the graph has no layer of the precision at all, or the engine fewer than the graph.
    """
    asked = [layer for layer in typed if layer.type == precision]
    if not asked:
        raise BuildError(
            f"the graph has no convolution or product in {precision}: {_counts(typed)}",
            hint=f"`spade export --{precision}` makes a graph of that precision" if precision != "fp32" else None,
        )
    if layers is None:
        return Proof(precision, len(typed), len(asked), len(asked), of_engine=False)
    of_layer = {name: layer.types for layer in layers for name in layer.covers if layer.types}
    seen = [layer for layer in asked if layer.name in of_layer]
    if not seen:
        # One opaque node for the whole network: its kernels are compiled when it is loaded on the card.
        return Proof(precision, len(typed), len(asked), len(asked), of_engine=False, layers=tuple(layers))
    wrong = [layer for layer in seen if precision not in of_layer[layer.name]]
    if wrong:
        raise BuildError(
            f"the engine is not {precision}: {len(wrong)} of {len(asked)} layers run in another type, the first"
            f" {wrong[0].name} in {', '.join(of_layer[wrong[0].name])}",
            hint="the engine was not written; report it with the versions that `spade doctor` prints",
        )
    return Proof(precision, len(typed), len(asked), len(asked), of_engine=True, layers=tuple(layers))


def _counts(typed: Sequence[TypedLayer]) -> str:
    kinds = sorted({layer.type for layer in typed})
    return ", ".join(f"{sum(layer.type == kind for layer in typed)} in {kind}" for kind in kinds) or "it has none"


def _type_in(described: str) -> str:
    words = {"half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "int8": "int8", "bf16": "bf16"}
    for word in re.findall(r"[a-z0-9]+", described.lower()):
        if word in words:
            return words[word]
    return ""
