"""Emulate real half precision on a machine without it: compute what a half-precision graph gives on a GPU.

ONNX Runtime's CPU kernels compute an fp16 graph in float32 and round only some values. So a value beyond 65504, which
is infinity on a GPU, goes unnoticed. Here the exported graph is rewritten: every operator computes in float32, and each
of its fp16 results is rounded to half and widened again, and overflows as half does. Tensor cores do the same: they add
up products in float32 and store half. docs/precision.md says what is not emulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays
from spade_deploy.engines.ort.session import Optimization, SessionSetup, open_session
from spade_deploy.errors import ArtifactError, MissingDependencyError, RuntimeUnavailableError, reason_of

_MOVES = frozenset(
    [
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Pad",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that only move values, so that their results are half already."""


@dataclass(frozen=True)
class Emulated:
    """The result of a graph in real half precision."""

    outputs: Arrays
    """The outputs by name."""
    overflows: tuple[str, ...]
    """The tensors that hold infinity or NaN, in the order they are computed."""


class EmulatedGraph:
    """A graph whose tensors of one narrow type are rounded and overflow as on hardware that has that type.

    narrow: the name of an ONNX element type, FLOAT16 or BFLOAT16. threads: the CPU threads; None takes one a core.
    Raises MissingDependencyError without onnx or ONNX Runtime, RuntimeUnavailableError if ONNX Runtime drops a cast
    that rounds, ArtifactError for a graph that cannot be rewritten.
    """

    def __init__(self, path: Path, *, narrow: str = "FLOAT16", threads: int | None = None) -> None:
        onnx, _ = _packages()
        _require_true_rounding(narrow)
        model = onnx.load(str(path), load_external_data=False)
        self._units = _Units(model.graph)
        self.watched = _rewrite(model, _element(narrow), path)
        self._outputs = [value.name for value in model.graph.output][: -len(self.watched) or None]
        self._session = open_session(
            model.SerializeToString(),
            # An optimiser may remove a cast to half and back, and the emulation consists of these casts.
            SessionSetup(threads, Optimization.NONE, weights_folder=path.parent, never_spins=True),
            failed=lambda error: ArtifactError(f"{path}: half precision cannot be emulated on it: {reason_of(error)}"),
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Emulated:
        """inputs: the graph's own, by name."""
        try:
            found = self._session.run([*self._outputs, *map(_sum_of, self.watched)], dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise RuntimeUnavailableError(f"half precision could not be emulated: {reason_of(error)}") from error
        outputs = dict(zip(self._outputs, found, strict=False))
        sums = zip(self.watched, found[len(self._outputs) :], strict=True)
        return Emulated(outputs, tuple(name for name, total in sums if not np.isfinite(total)))

    def unit_of(self, tensor: str) -> str | None:
        """The unit that computes a tensor or casts it to half; None if it is not known."""
        return self._units.of(tensor)


def _rewrite(model: Any, narrow: int, path: Path) -> list[str]:
    """Compute in float32, round each narrow result. Returns the rounded tensors, in order; each has a sum as output.

    The sum is of magnitudes, and finite if and only if every value is.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    types = _element_types(model, path)
    nodes, watched = [], []
    for tensor in graph.initializer:
        if tensor.data_type == narrow:
            nodes.append(helper.make_node("Cast", [f"{tensor.name}/narrow"], [tensor.name], to=TensorProto.FLOAT))
            tensor.name = f"{tensor.name}/narrow"
    for node in graph.node:
        narrow_outputs = [name for name in node.output if types.get(name) == narrow]
        _widen_attributes(node, narrow)
        nodes.append(node)
        if not narrow_outputs or _moves(node):
            continue
        for place, name in enumerate(node.output):
            if name in narrow_outputs:
                node.output[place] = f"{name}/wide"
                nodes += [
                    helper.make_node("Cast", [f"{name}/wide"], [f"{name}/rounded"], to=narrow),
                    helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT),
                    helper.make_node("ReduceL1", [name], [_sum_of(name)], keepdims=0),
                ]
                watched.append(name)
    kept = [_copy(node) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph.output.extend(helper.make_tensor_value_info(_sum_of(name), TensorProto.FLOAT, []) for name in watched)
    return watched


def _element_types(model: Any, path: Path) -> dict[str, int]:
    """The element type of each tensor. They are inferred without the weights, which may exceed a protobuf message."""
    import onnx
    from onnx import helper

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "types"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    try:
        seen = onnx.shape_inference.infer_shapes(light).graph
    except Exception as error:  # onnx's exceptions share no base class
        raise ArtifactError(f"{path}: half precision cannot be emulated on it: {reason_of(error)}") from error
    types = {v.name: v.type.tensor_type.elem_type for v in (*seen.value_info, *seen.input, *seen.output)}
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise ArtifactError(
                    f"{path}: half precision cannot be emulated: it is not known which type is that of {name}"
                )
    return types


def _moves(node: Any) -> bool:
    """Whether a node only moves values."""
    if node.op_type == "Resize":
        return any(attribute.name == "mode" and attribute.s == b"nearest" for attribute in node.attribute)
    return node.op_type in _MOVES


def _widen_attributes(node: Any, narrow: int) -> None:
    """Widen the constants inside a node, and the target of a cast."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == narrow:
            wide = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == narrow:
            attribute.i = TensorProto.FLOAT


@dataclass(frozen=True)
class _Step:
    """A node before it was rewritten."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Units:
    """Finds the unit of a tensor: names of weights and values begin with that of the unit (`up_3.conv_1.weight`)."""

    def __init__(self, graph: Any) -> None:
        self._known = {t.name.split(".")[0] for t in graph.initializer if "." in t.name}
        self._makers: dict[str, _Step] = {}
        self._readers: dict[str, list[_Step]] = {}
        for node in graph.node:
            step = _Step(node.op_type, tuple(node.input), tuple(node.output))
            self._makers.update(dict.fromkeys(step.outputs, step))
            for name in step.inputs:
                self._readers.setdefault(name, []).append(step)

    def of(self, tensor: str) -> str | None:
        """The unit of a tensor: for a cast to half the one that reads it, else the one whose weights or name it has."""
        step = self._makers.get(tensor)
        if step is None:
            return None
        own = self._named((*step.outputs, *step.inputs[1:]))
        if own is not None:
            return own
        if step.operator == "Relu":  # it ends a level of hidden maps, which other units read
            return self.of(step.inputs[0])
        return self._ahead(tensor)

    def _ahead(self, tensor: str) -> str | None:
        waiting, seen = [tensor], {tensor}
        while waiting:
            for step in self._readers.get(waiting.pop(0), ()):
                found = self._named((*step.outputs, *step.inputs))
                if found is not None:
                    return found
                waiting += [name for name in step.outputs if name not in seen]
                seen.update(step.outputs)
        return None

    def _named(self, names: Iterable[str]) -> str | None:
        return next((head for head in (name.split(".")[0] for name in names) if head in self._known), None)


@cache
def _require_true_rounding(narrow: str) -> None:
    """Raise an error if ONNX Runtime drops a cast to half and back, as versions before 1.17 did."""
    from onnx import TensorProto, helper

    _, ort = _packages()
    nodes = [
        helper.make_node("Cast", ["x"], ["rounded"], to=_element(narrow)),
        helper.make_node("Cast", ["rounded"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "probe", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    session = open_session(model.SerializeToString(), SessionSetup(optimization=Optimization.NONE))
    (found,) = session.run(None, {"x": np.array([3.4e38, 1 + 2**-8 + 2**-12, -65520.0], np.float32)})
    expected = {"FLOAT16": [np.inf, 1 + 2**-8, -np.inf], "BFLOAT16": [np.inf, 1 + 2**-7, -65536.0]}[narrow]
    if found.tolist() != expected:
        raise RuntimeUnavailableError(
            f"half precision cannot be emulated: ONNX Runtime {ort.__version__} answers {found.tolist()} where rounding"
            f" gives {expected}",
            hint="pip install --upgrade onnxruntime",
        )


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnx.shape_inference
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"half precision is emulated with onnx and ONNX Runtime, of which one cannot be imported: {error}",
            hint="pip install 'spade-deploy[export,cpu]'",
        ) from error
    return onnx, onnxruntime


def _element(name: str) -> int:
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(name))


def _copy(node: Any) -> Any:
    return type(node).FromString(node.SerializeToString())


def _sum_of(tensor: str) -> str:
    return f"{tensor}/sum"
