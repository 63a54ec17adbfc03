"""Damage of ONNX graphs: of the protobuf's bytes, and of what it says."""

from __future__ import annotations

import random

import onnx
from onnx import TensorProto, helper

from .bytes_damage import damage_bytes

_LOCATIONS = (
    "../secret.bin",
    "/etc/passwd",
    "/dev/zero",
    "weights.bin",
    "golden/inputs.npz",
    "",
    "a/../../x",
    "x" * 5000,
)


def damaged_onnx(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A model file that is no longer what it was."""
    if rng.random() < 0.45:
        return damage_bytes(rng, content)
    model = onnx.load_from_string(content)
    graph = model.graph
    what = rng.choice(
        (
            "external",
            "external",
            "type",
            "shape",
            "output",
            "input",
            "operator",
            "loop",
            "no nodes",
            "attribute",
            "opset",
            "domain",
            "huge constant",
            "metadata",
            "name",
            "dimension",
            "function",
            "duplicate",
            "ir",
        )
    )
    node = rng.choice(graph.node)
    if what == "external" and graph.initializer:
        tensor = rng.choice(graph.initializer)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (
            ("location", rng.choice(_LOCATIONS)),
            ("offset", "0"),
            ("length", rng.choice(("4", "-1", "9" * 30))),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        what = f"external data in {tensor.external_data[0].value[:30]!r}"
    elif what == "type" and graph.initializer:
        rng.choice(graph.initializer).data_type = rng.choice((0, 2, 10, 16, 17, 8, 99))
    elif what == "shape" and graph.initializer:
        dims = rng.choice(graph.initializer).dims
        dims.append(rng.choice((-1, 0, 1 << 40, 7)))
    elif what == "output":
        del graph.output[rng.randrange(len(graph.output))]
    elif what == "input":
        graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 3]))
    elif what == "operator":
        node.op_type = rng.choice(("Relu", "NoSuchOperator", "", "Identity", "Loop", "x" * 3000, "\x1b[31m"))
    elif what == "loop":
        node.input[:] = [node.output[0]]
    elif what == "no nodes":
        del graph.node[:]
    elif what == "attribute" and node.attribute:
        rng.choice(node.attribute).i = rng.choice((-(1 << 62), 1 << 62, 99))
    elif what == "opset":
        model.opset_import[0].version = rng.choice((0, 1, 7, 999, -1))
    elif what == "domain":
        node.domain = rng.choice(("com.microsoft", "evil", ""))
    elif what == "huge constant":
        shape = helper.make_tensor("shape_of_it", TensorProto.INT64, [2], [1 << 20, 1 << 12])
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("ConstantOfShape", ["shape_of_it"], ["a_lot"]))
        graph.output.append(helper.make_tensor_value_info("a_lot", TensorProto.FLOAT, None))
    elif what == "metadata":
        entry = model.metadata_props.add()
        entry.key, entry.value = (
            rng.choice(("spade_deploy", "images")),
            rng.choice(("{", '{"mean": 1e999}', "x" * 10_000)),
        )
    elif what == "name":
        graph.output[0].name = rng.choice(("image2", "", "x" * 3000, "\x1b[31m"))
    elif what == "dimension":
        dims = graph.input[0].type.tensor_type.shape.dim
        if dims:
            dims[rng.randrange(len(dims))].dim_value = rng.choice((-1, 0, 1 << 40, 3))
    elif what == "function":
        model.functions.add().name = "nothing"
    elif what == "duplicate":
        graph.node.append(node)
    elif what == "ir":
        model.ir_version = rng.choice((0, 1, 99, -1))
    return model.SerializeToString(), str(what)
