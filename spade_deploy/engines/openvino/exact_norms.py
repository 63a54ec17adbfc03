"""Keep the statistics of instance and layer norm exact in float32: sums are taken one axis after another.

OpenVINO adds all values of a channel one by one. Maps of flat regions repeat a value thousands of times, and the same
rounding error each time: at 64 x 64 the statistics were off by 5e-6, and the image of a pix2pixHD by ten times the
error of eager PyTorch; the larger the map, the more. Rows first and then their sums leave 1.5 times (measured with
OpenVINO 2026.4.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def sum_axis_by_axis(model: Any) -> None:
    """Change an OpenVINO `Model`, so that every mean over several axes is taken one axis after another.

    That are `MVN` nodes, which ONNX's instance norms become, and `ReduceMean` nodes: of several axes, and of one axis
    after another, which OpenVINO would join.
    """
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MVN", "ReduceMean") or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        value = node.input_value(0)
        rank = value.get_partial_shape().rank.get_length()
        axes, told = _axes_of(node, rank), node.get_attributes()
        while kind == "ReduceMean" and _is_mean(value.get_node()):
            axes = sorted({*axes, *_axes_of(value.get_node(), rank)})
            value = value.get_node().input_value(0)
        if len(axes) < 2 or (kind == "ReduceMean" and not told["keep_dims"]):
            continue
        new = _mean(value, axes, rank) if kind == "ReduceMean" else _normalised(value, axes, rank, told)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
    model.validate_nodes_and_infer_types()


def _is_mean(node: Any) -> bool:
    """Whether a node takes means of known axes, which stay with size 1."""
    if node.get_type_name() != "ReduceMean" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    return bool(node.get_attributes()["keep_dims"])


def _axes_of(node: Any, rank: int) -> list[int]:
    return sorted(int(axis) % rank for axis in node.input_value(1).get_node().get_data().ravel())


def _normalised(value: Any, axes: list[int], rank: int, told: dict[str, Any]) -> Any:
    from openvino import opset13 as op

    centred = op.subtract(value, _mean(value, axes, rank))
    if not told["normalize_variance"]:
        return centred
    variance, eps = _mean(op.multiply(centred, centred), axes, rank), op.constant(np.float32(told["eps"]))
    if str(told["eps_mode"]).lower() == "inside_sqrt":
        return op.divide(centred, op.sqrt(op.add(variance, eps)))
    return op.divide(centred, op.add(op.sqrt(variance), eps))


def _mean(value: Any, axes: list[int], rank: int) -> Any:
    """The mean over the axes, which stay with size 1. OpenVINO would join reductions, were there no reshape between."""
    from openvino import opset13 as op

    last = op.constant(np.array([axes[-1]], np.int64))
    mean = op.reduce_mean(value, last, keep_dims=True)
    for number in reversed(range(len(axes) - 1)):
        shape = [0] * rank  # as it is
        for axis in axes[number:]:
            shape[axis] = 1
        shape[axes[-1]] = -1
        mean = op.reduce_mean(op.reshape(mean, op.constant(np.array(shape, np.int64)), True), last, keep_dims=True)
    return mean
