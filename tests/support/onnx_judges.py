"""Tiny ONNX judges whose answers can be computed by hand: colour statistics as features, nearest colour as class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FACTS = {"mean": 127.5, "std": 127.5}


def extractor_file(
    path: Path,
    *,
    outputs: Sequence[str] = ("features",),
    as_map: bool = False,
    shape: Sequence[Any] = ("n", 3, "h", "w"),
    facts: dict[str, Any] | None = FACTS,
    scale: float = 1.0,
) -> Path:
    """Means of x and of x^2 over the image, N x 6; or x itself as N x 3 x H x W. Every output is the same."""
    nodes, constants = [], [numpy_helper.from_array(np.array(scale, np.float32), "scale")]
    if as_map:
        nodes.append(helper.make_node("Mul", ["image", "scale"], ["found"]))
    else:
        constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
        nodes += [
            helper.make_node("Mul", ["image", "image"], ["square"]),
            helper.make_node("Concat", ["image", "square"], ["both"], axis=1),
            helper.make_node("ReduceMean", ["both", "axes"], ["pooled"], keepdims=0),
            helper.make_node("Mul", ["pooled", "scale"], ["found"]),
        ]
    nodes += [helper.make_node("Identity", ["found"], [name]) for name in outputs]
    size = ["n", 3, "h", "w"] if as_map else ["n", 6]
    return _save(path, nodes, constants, shape, [(name, TensorProto.FLOAT, size) for name in outputs], facts)


def segmenter_file(
    path: Path,
    colors: Sequence[tuple[int, int, int]],
    *,
    names: Sequence[str] | None = None,
    stride: int = 1,
    as_ids: bool = False,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Class n where the pixel is nearest to colors[n]: logits 2 x.c - |c|^2, or their argmax as ids."""
    centres = (np.array(colors, np.float32) - 127.5) / 127.5
    constants = [
        numpy_helper.from_array((2 * centres)[:, :, None, None], "weight"),
        numpy_helper.from_array(-(centres**2).sum(1), "bias"),
    ]
    conv = helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], strides=[stride, stride])
    nodes, output = [conv], ("logits", TensorProto.FLOAT, ["n", len(colors), "a", "b"])
    if as_ids:
        conv.output[0] = "scores"
        nodes.append(helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0))
        output = ("ids", TensorProto.INT64, ["n", "a", "b"])
    told = {**FACTS, **({"labels": list(names)} if names is not None else {}), **(facts or {})}
    return _save(path, nodes, constants, ["n", 3, "h", "w"], [output], told)


def _save(
    path: Path,
    nodes: list[Any],
    constants: list[Any],
    shape: Sequence[Any],
    outputs: list[tuple[str, int, list[Any]]],
    facts: dict[str, Any] | None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "judge",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(*output) for output in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if facts is not None:
        helper.set_model_props(model, {"spade-deploy": json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
