"""Graphs hold the operators of the golden list alone, and TensorRT's parser takes each of them, strongly typed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from spade_deploy.export.onnx_file import OPSET
from spade_deploy.spec import NormType
from tests.support.operators import Case, export, operators_of, read_golden, unexpected

CASES = [
    Case("dense", "fp16", {"z_dim": 16, "norm": NormType.INSTANCE}),
    Case("lookup", "fp16", {"norm": NormType.BATCH}),
    Case("dense", "int8"),
    Case("lookup", "int8", {"z_dim": 16}),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    return request.param, export(request.param, tmp_path_factory.mktemp("graph"))


def parse(path: Path) -> list[str]:
    """What TensorRT for RTX's parser has to say against a graph; its network is strongly typed."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed: pip install 'spade-deploy[rtx]'")
    import tensorrt_rtx

    class Silent(tensorrt_rtx.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt_rtx.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            pass

    logger = Silent()
    builder = tensorrt_rtx.Builder(logger)
    flag = tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    is_parsed = parser.parse_from_file(str(path))
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    assert is_parsed == (not errors)
    return errors


def test_a_graph_holds_operators_of_the_list_alone(exported: tuple[Case, Path]) -> None:
    case, path = exported
    assert unexpected(read_golden(), case, operators_of(onnx.load(str(path)))) == set()


def test_tensorrt_parses_the_graph(exported: tuple[Case, Path]) -> None:
    _, path = exported
    assert parse(path) == []


def small_graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "small", values[:1], values[1:])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_another_operator_is_reported() -> None:
    golden = read_golden()
    model = small_graph(helper.make_node("Conv", ["x"], ["a"]), helper.make_node("Einsum", ["a"], ["y"], equation="ij"))
    for case in CASES:
        assert unexpected(golden, case, operators_of(model)) == {"ai.onnx.Einsum"}
    pairs = small_graph(helper.make_node("QuantizeLinear", ["x", "s"], ["y"]))
    assert unexpected(golden, Case("dense", "int8"), operators_of(pairs)) == set()
    assert unexpected(golden, Case("dense", "fp16"), operators_of(pairs)) == {"ai.onnx.QuantizeLinear"}


def test_operators_of_other_domains_and_of_inner_graphs_are_seen() -> None:
    inner = helper.make_graph([helper.make_node("Gelu", ["x"], ["z"], domain="com.example")], "inner", [], [])
    model = small_graph(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    assert operators_of(model) == {"ai.onnx.If", "com.example.Gelu"}


def test_the_list_names_operators_of_onnx_itself() -> None:
    golden = read_golden()
    assert golden.keys() == {"dense", "lookup", "int8"}
    for operator in set.union(*golden.values()):
        domain, _, name = operator.rpartition(".")
        assert domain == "ai.onnx"  # what a contributor's domain has, not every runtime has
        assert onnx.defs.has(name, OPSET)


def test_the_parser_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for name, domain, is_known in (("Relu", "", True), ("Nothing", "com.example", False)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(small_graph(helper.make_node(name, ["x"], ["y"], domain=domain)), str(path))
        assert (parse(path) == []) == is_known
