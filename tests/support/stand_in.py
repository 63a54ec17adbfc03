"""A stand-in for an exported model: a few ONNX nodes with the same inputs and outputs, and its NumPy twin.

Red follows the label ids, green the instance ids, blue the style vector, so that a mixed-up input shows in a channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from spade_deploy.artifact import (
    ENCODER_ONNX,
    IMAGE,
    INSTANCE,
    LABEL,
    LOGITS,
    PIXELS,
    Arrays,
    Artifact,
    EncoderGraph,
    Graph,
    Source,
    Z,
    encoder_tensors,
    graph_file,
    input_tensors,
    output_tensors,
    rewrite_manifest,
    write_golden,
    write_manifest,
    write_style_directions,
)
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision, RoundingError

CREATED_UNIX_NS = 1_700_000_000_000_000_000
PLAIN = GeneratorSpec(LabelSpec(5), base_channels=2, hidden_channels=2, height=64, width=32)
EDGES = GeneratorSpec(LabelSpec(5, has_dontcare=True, has_edges=True), base_channels=2, height=32, width=64)
STYLED = GeneratorSpec(LabelSpec(300), base_channels=2, z_dim=2, height=32, width=32)
"""More than 256 ids: int32 labels. Two style numbers: their mean is the same in every order of summation."""


def expected(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What the graph of `stand_in_graph` answers."""
    red = inputs[LABEL].astype(np.float32) * np.float32(2 / spec.labels.num_ids) - 1
    green, blue = np.full_like(red, -1), np.full_like(red, -1)
    if spec.labels.has_edges:
        green = (inputs[INSTANCE] % 16).astype(np.float32) * np.float32(1 / 8) - 1
    if spec.z_dim is not None:
        blue = np.clip(inputs[Z].mean(axis=1), -1, 1)[:, None, None] + red * 0
    image = np.stack([red, green, blue], axis=1)
    return {PIXELS: ((image + 1) * np.float32(127.5)).astype(np.uint8).transpose(0, 2, 3, 1), IMAGE: image}


def golden_outputs(spec: GeneratorSpec, inputs: Arrays) -> Arrays:
    """`expected`, and the logits that a reference would have."""
    outputs = expected(spec, inputs)
    logits = np.arctanh(np.clip(outputs[IMAGE], -0.999999, 0.999999))
    return {**outputs, LOGITS: logits.astype(np.float32)}


def stand_in_graph(spec: GeneratorSpec, wrong_output: str | None = None) -> bytes:
    """ONNX bytes; `wrong_output` renames the image output."""
    nodes, constants = [], []

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    one, axis = constant("one", 1), constant("axis", [1], np.int64)
    ids = node("Cast", [LABEL], "ids", to=TensorProto.FLOAT)
    red = node("Sub", [node("Mul", [ids, constant("step", 2 / spec.labels.num_ids)], "scaled"), one], "red")
    zeros = node("Mul", [red, constant("zero", 0)], "zeros")
    green = blue = node("Sub", [zeros, one], "minus_one")
    if spec.labels.has_edges:
        rest = node("Cast", [node("Mod", [INSTANCE, constant("m", 16, np.int32)], "mod")], "rest", to=TensorProto.FLOAT)
        green = node("Sub", [node("Mul", [rest, constant("eighth", 1 / 8)], "eighths"), one], "green")
    if spec.z_dim is not None:
        mean = node("ReduceMean", [Z, axis], "mean", keepdims=1)
        clipped = node("Clip", [mean, constant("low", -1), constant("high", 1)], "clipped")
        blue = node("Add", [node("Unsqueeze", [clipped, constant("last", [2], np.int64)], "column"), zeros], "blue")
    planes = [node("Unsqueeze", [plane, axis], f"plane_{k}") for k, plane in enumerate((red, green, blue))]
    image = node("Concat", planes, wrong_output or IMAGE, axis=1)
    scaled = node("Mul", [node("Add", [image, one], "shifted"), constant("half", 127.5)], "bytes")
    node("Transpose", [node("Cast", [scaled], "nchw", to=TensorProto.UINT8)], PIXELS, perm=[0, 2, 3, 1])
    types = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, types[t.dtype], list(t.shape)) for t in tensors]
        for tensors in (input_tensors(spec), output_tensors(spec))
    )
    if wrong_output:
        outputs[1].name = wrong_output
    graph = helper.make_graph(nodes, "stand_in", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def random_inputs(spec: GeneratorSpec, count: int = 2, size: tuple[int, int] | None = None, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    height, width = size or (spec.height, spec.width)
    inputs: Arrays = {}
    for tensor in input_tensors(spec):
        if tensor.name == Z:
            inputs[Z] = rng.standard_normal((count, spec.z_dim or 0), np.float32)
        else:
            high = spec.labels.num_ids if tensor.name == LABEL else 40
            inputs[tensor.name] = rng.integers(0, high, (count, height, width)).astype(tensor.dtype)
    return inputs


def stand_in_artifact(
    folder: Path,
    spec: GeneratorSpec = PLAIN,
    precisions: Sequence[Precision] = (Precision.FP32,),
    graph: bytes | None = None,
) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    content = stand_in_graph(spec) if graph is None else graph
    for precision in precisions:
        (folder / graph_file(precision)).write_bytes(content)
    inputs = random_inputs(spec)
    write_golden(folder, inputs, golden_outputs(spec, inputs))
    write_manifest(
        folder,
        generator=spec,
        graphs=tuple(
            Graph(graph_file(precision), precision, ("conv_img",) if precision is Precision.FP16 else ())
            for precision in precisions
        ),
        source=Source("tiny-001", 40, "train", hashlib.sha256(b"weights").hexdigest()),
        versions={"onnx": onnx.__version__},
        rounding=RoundingError(1e-6, 1e-7, 1e-6, 1e-7),
        created_unix_ns=CREATED_UNIX_NS,
    )
    return Artifact.open(folder)


def with_stand_in_encoder(folder: Path, spec: GeneratorSpec) -> Artifact:
    """Give an artifact a style encoder: mu and logvar are the photo's mean."""
    assert spec.z_dim is not None
    inputs, outputs = encoder_tensors(spec)
    types = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    row = numpy_helper.from_array(np.zeros((1, spec.z_dim), np.float32), "row")
    last = numpy_helper.from_array(np.array([1], np.int64), "last")
    nodes = [
        helper.make_node("Cast", ["photo"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Add", ["column", "row"], ["mu"]),
        helper.make_node("Identity", ["mu"], ["logvar"]),
    ]
    told = [
        [helper.make_tensor_value_info(t.name, types[t.dtype], list(t.shape)) for t in ts] for ts in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "encoder", told[0], told[1], [axes, row, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / ENCODER_ONNX)
    fact = EncoderGraph(ENCODER_ONNX, 18, 1e-6, 1e-4)
    rewrite_manifest(folder, replace(read_manifest(folder), encoder=fact))
    return Artifact.open(folder)


def with_directions(folder: Path) -> Artifact:
    """Give an artifact of two style numbers its main directions."""
    write_style_directions(folder, np.array([[0.6, 0.8], [-0.8, 0.6]]))
    rewrite_manifest(folder, Artifact.open(folder).manifest)
    return Artifact.open(folder)
