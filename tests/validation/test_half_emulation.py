"""Half precision that rounds and overflows: by hand on single operators, and against two independent opinions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from spade_deploy.errors import ArtifactError, MissingDependencyError, RuntimeUnavailableError
from spade_deploy.validation import half_emulation
from spade_deploy.validation.half_emulation import EmulatedGraph


def graph_file(
    path: Path, nodes: Sequence[Any], weights: dict[str, NDArray[Any]] | None = None, narrow: int = TensorProto.FLOAT16
) -> Path:
    """x, float32 of any length -> y, float32: `nodes` go from `h`, x cast to half, to `out`, which is cast back."""
    ends = [
        helper.make_node("Cast", ["x"], ["h"], to=narrow),
        *nodes,
        helper.make_node("Cast", ["out"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    constants = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    made = helper.make_graph(ends, "test", [x], [y], constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def run(path: Path, values: Sequence[float], **options: Any) -> tuple[list[float], tuple[str, ...]]:
    found = EmulatedGraph(path, threads=1, **options).run({"x": np.array(values, np.float32)})
    return found.outputs["y"].tolist(), found.overflows


def plain(path: Path, values: Sequence[float]) -> list[float]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answer: list[float] = session.run(None, {"x": np.array(values, np.float32)})[0].tolist()
    return answer


def doubled() -> list[Any]:
    """h + h, then times a half: what passes 65504 in between."""
    return [
        helper.make_node("Add", ["h", "h"], ["twice"]),
        helper.make_node("Mul", ["twice", "factor"], ["out"]),
    ]


HALF = {"factor": np.array(0.5, np.float16)}


def test_a_value_between_two_operators_overflows(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", doubled(), HALF)
    assert run(path, [1, -40000, 40000]) == ([1, -np.inf, np.inf], ("twice", "out"))
    assert run(path, [1, -30000, 30000]) == ([1, -30000, 30000], ())
    # Why all this is needed: the CPU's kernels see nothing. The day they do, this is to be thought over.
    assert plain(path, [1, -40000, 40000]) == [1, -40000, 40000]


def test_a_cast_overflows(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", [helper.make_node("Identity", ["h"], ["out"])])
    assert run(path, [65504, 65519, 65520, -1e9]) == ([65504, 65504, np.inf, -np.inf], ("h",))


def test_infinity_behind_a_bounded_result_is_seen(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["h", "h"], ["twice"]), helper.make_node("Tanh", ["twice"], ["out"])]
    assert run(graph_file(tmp_path / "g.onnx", nodes), [60000.0]) == ([1.0], ("twice",))


def test_not_a_number_is_seen(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["h", "h"], ["out"])]
    found, overflows = run(graph_file(tmp_path / "g.onnx", nodes), [1e6])
    assert np.isnan(found).all()
    assert overflows == ("h", "out")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1 + 2**-11, 1.0),
        (1 + 3 * 2**-11, 1 + 2**-9),
        (2049, 2048),
        (2**-24, 2**-24),
        (2**-26, 0.0),
        (0.1, 0.0999755859375),
    ],
)
def test_values_are_rounded_to_half(tmp_path: Path, value: float, stored: float) -> None:
    path = graph_file(tmp_path / "g.onnx", [helper.make_node("Identity", ["h"], ["out"])])
    assert run(path, [value]) == ([stored], ())
    assert float(np.float16(value)) == stored


def test_sums_are_made_in_float32(tmp_path: Path) -> None:
    # 49984 + 49984 - 49984 passes 65504 on the way: a tensor core does not mind (docs/precision.md says who does).
    nodes = [helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=1), helper.make_node("Neg", ["sum"], ["out"])]
    assert run(graph_file(tmp_path / "g.onnx", nodes), [49984, 49984, -49984]) == ([-49984], ())
    assert run(graph_file(tmp_path / "g.onnx", nodes), [49984, 49984]) == ([-np.inf], ("sum", "out"))


def test_weights_and_constants_are_half_too(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(2, np.float16)))
    nodes = [constant, helper.make_node("Mul", ["h", "c"], ["m"]), helper.make_node("Add", ["m", "w"], ["out"])]
    path = graph_file(tmp_path / "g.onnx", nodes, {"w": np.array(0.1, np.float16)})
    assert run(path, [1.0]) == ([float(np.float16(2) + np.float16(0.1))], ())
    with np.errstate(over="ignore"):
        path = graph_file(tmp_path / "inf.onnx", nodes, {"w": np.array(1e6).astype(np.float16)})
    assert run(path, [1.0]) == ([np.inf], ("out",))


def test_what_is_float32_stays_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["h"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["root"]),
        helper.make_node("Cast", ["root"], ["out"], to=TensorProto.FLOAT16),
    ]
    assert run(graph_file(tmp_path / "g.onnx", nodes), [60000]) == ([60000], ())


def test_another_narrow_type(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["h", "h"], ["out"])]
    path = graph_file(tmp_path / "g.onnx", nodes, narrow=TensorProto.BFLOAT16)
    assert run(path, [60000, 1 + 2**-9], narrow="BFLOAT16") == ([119808, 2.0], ())


def test_it_agrees_with_onnx_own_evaluator(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "first": (rng.standard_normal((8, 1, 3)) * 300).astype(np.float16),
        "second": (rng.standard_normal((1, 8, 3)) * 3).astype(np.float16),
        "in": np.array([1, 1, -1], np.int64),
        "flat": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["h", "in"], ["map"]),
        helper.make_node("Conv", ["map", "first"], ["a"], pads=[1, 1]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.2),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1]),
        helper.make_node("Reshape", ["c", "flat"], ["out"]),
    ]
    path = graph_file(tmp_path / "g.onnx", nodes, weights)
    x = (rng.standard_normal(400) * 25).astype(np.float32)
    judged = np.array(run(path, x.tolist())[0])
    with np.errstate(over="ignore"):
        answers: Any = ReferenceEvaluator(str(path)).run(None, {"x": x})
    trusted = answers[0]
    assert 0.02 < np.isinf(trusted).mean() < 0.9
    # It adds up in half, so a value next to 65504 may end on either side.
    assert (np.isfinite(trusted) != np.isfinite(judged)).mean() < 0.02
    both = np.isfinite(trusted) & np.isfinite(judged)
    assert np.abs(trusted[both] - judged[both]).max() < 4e-3 * np.abs(trusted[both]).max()


def test_a_runtime_that_does_not_round_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime did before 1.17: a cast to half and back was taken for nothing."""

    class Careless:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, _: Any, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            return list(inputs.values())

    path = graph_file(tmp_path / "g.onnx", doubled(), HALF)
    half_emulation._require_true_rounding.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Careless)
        with pytest.raises(RuntimeUnavailableError, match=r"cannot be emulated: ONNX Runtime .* where rounding gives"):
            EmulatedGraph(path)
    EmulatedGraph(path)


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_file(tmp_path / "g.onnx", doubled(), HALF)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="emulated with onnx") as caught:
        EmulatedGraph(path)
    assert "pip install" in str(caught.value.hint)


def test_a_graph_that_nothing_is_known_of(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unknown", ["h"], ["u"], domain="elsewhere"), helper.make_node("Neg", ["u"], ["out"])]
    with pytest.raises(ArtifactError, match=r"cannot be emulated.*elsewhere"):
        EmulatedGraph(graph_file(tmp_path / "g.onnx", nodes))
