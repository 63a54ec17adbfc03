"""An fp32 graph -> an int8 graph: QuantizeLinear / DequantizeLinear pairs before the trained layers.

A value x becomes clip(round(x / scale), -128, 127), round half to even, and back: x = q scale. Zero points are zero.
- Weights: one scale for each output channel, max |w| / 127.
- Activations: one scale for each layer's input, max |x| / 127 over the calibration maps.
- Biases, outputs and everything between the layers stay float32: TensorRT takes no quantised bias, and a pair at an
  output would round once more.
TensorRT fuses the pairs into int8 kernels; ONNX Runtime computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spade_deploy.errors import ExportError, reason_of
from spade_deploy.files.onnx_data import EXTERNAL_DATA_BYTES

LEVELS = 127
"""Quantised weights lie in -127..127, and so do activations up to the largest that calibration saw."""

_ZERO = "int8.zero"
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Int8Weight:
    """A weight in int8."""

    values: NDArray[np.int8]
    """The quantised numbers, of the weight's shape."""

    scales: NDArray[np.float32]
    """The scales that the numbers are multiplied by, one for each index of `axis`."""

    axis: int
    """The axis of the output channels."""

    def dequantized(self) -> NDArray[np.float32]:
        """The weight that the graph computes with."""
        product: NDArray[np.float32] = self.values.astype(np.float32) * _along(self.scales, self.axis, self.values.ndim)
        return product


def activation_scale(largest: float) -> np.float32:
    """The scale for magnitudes up to `largest`; 1 if all values were zero."""
    scale = np.float32(largest / LEVELS)
    return scale if scale >= _TINY else np.float32(1)


def quantize_weight(weight: NDArray[np.float32], axis: int) -> Int8Weight:
    """weight: of any rank; axis: that of its output channels. A channel of zeros has scale 1."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scales = (np.abs(weight).max(axis=others).astype(np.float64) / LEVELS).astype(np.float32)
    scales[scales < _TINY] = 1
    values = np.clip(np.rint(weight / _along(scales, axis, weight.ndim)), -LEVELS, LEVELS)
    return Int8Weight(values.astype(np.int8), scales, axis)


def write_int8(source: Path, target: Path, ranges: Mapping[str, float], facts: Mapping[str, str] | None = None) -> None:
    """Write the int8 graph of the fp32 graph `source` to `target`.

    ranges: of each layer to quantise, by its weight's name without `.weight`, the largest magnitude of its input.
    facts: metadata that replaces that of the same name in `source`.
    Raises ExportError where the graph lacks one of them, where a range is not finite, where there are none, or where
    ONNX's own checker refuses the result.
    """
    model = onnx.load(str(source))
    insert_pairs(model, ranges)
    helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **(facts or {})})
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > EXTERNAL_DATA_BYTES:
        onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
    else:
        onnx.save(model, str(target))
    try:
        onnx.checker.check_model(str(target))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the int8 graph is not valid ONNX: {reason_of(error)}") from error


def insert_pairs(model: ModelProto, ranges: Mapping[str, float]) -> None:
    """Quantise the layers in `ranges`, in place. Raises ExportError as `write_int8` does."""
    if not ranges:
        raise ExportError("there is no layer to make int8")
    for layer, largest in ranges.items():
        if not 0 <= largest < float("inf"):
            raise ExportError(
                f"int8: the input of {layer} reaches {largest} on the calibration maps",
                hint="the checkpoint comes from a training run that diverged: take an earlier one",
            )
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = _Pairs()
    nodes: list[NodeProto] = []
    done = set()
    for node in model.graph.node:
        axis = _output_axis(node, weights)
        layer = node.input[1].removesuffix(".weight") if axis is not None else ""
        if axis is not None and layer in ranges:
            tensor = weights[node.input[1]]
            nodes += pairs.activation(node, activation_scale(ranges[layer]), layer)
            nodes += pairs.weight(node, quantize_weight(numpy_helper.to_array(tensor), axis))
            done.add(layer)
        nodes.append(node)
    missing = sorted(set(ranges) - done)
    if missing:
        raise ExportError(
            f"int8: the graph has no product with {missing[0]}.weight: the int8 writer does not know this graph"
        )
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, [*kept, *pairs.constants])):
        del field[:]
        field.extend(values)


class _Pairs:
    """Makes the pairs, one for each value, and collects their constants."""

    def __init__(self) -> None:
        self.constants: list[TensorProto] = [numpy_helper.from_array(np.array(0, np.int8), _ZERO)]
        self._activations: dict[tuple[str, float], str] = {}

    def activation(self, node: NodeProto, scale: np.float32, layer: str) -> list[NodeProto]:
        """The nodes that quantise `node`'s first input; an empty list if that value is quantised already."""
        value = node.input[0]
        known = self._activations.get((value, float(scale)))
        name = f"{layer}.input"
        node.input[0] = known or f"{name}.dequantized"
        if known:
            return []
        self._activations[value, float(scale)] = node.input[0]
        self.constants.append(numpy_helper.from_array(np.array(scale), f"{name}.scale"))
        parameters = [f"{name}.scale", _ZERO]
        return [
            helper.make_node("QuantizeLinear", [value, *parameters], [f"{name}.int8"], f"{name}.quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}.int8", *parameters], [f"{name}.dequantized"], f"{name}.dequantize"
            ),
        ]

    def weight(self, node: NodeProto, weight: Int8Weight) -> list[NodeProto]:
        """The node that makes `node`'s second input of its int8 weight."""
        name = node.input[1]
        node.input[1] = f"{name}.dequantized"
        zeros = np.zeros(weight.scales.shape, np.int8)
        for part, array in (("int8", weight.values), ("scale", weight.scales), ("zero", zeros)):
            self.constants.append(numpy_helper.from_array(array, f"{name}.{part}"))
        inputs = [f"{name}.{part}" for part in ("int8", "scale", "zero")]
        return [
            helper.make_node(
                "DequantizeLinear", inputs, [f"{name}.dequantized"], f"{name}.dequantize", axis=weight.axis
            )
        ]


def _output_axis(node: NodeProto, weights: Mapping[str, TensorProto]) -> int | None:
    """The axis of the output channels in the weight of a product; None for any other node."""
    if len(node.input) < 2 or node.input[1] not in weights:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return len(weights[node.input[1]].dims) - 1 if node.op_type == "MatMul" else None


def _along(scales: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    return scales.reshape([-1 if index == axis else 1 for index in range(rank)])
