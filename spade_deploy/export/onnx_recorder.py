"""Record what a deploy model computes as an ONNX graph: its own `forward` runs on values that stand for tensors.

Nothing is computed. A `Recorded` value knows its type and its sizes, and every operation on it appends the ONNX nodes
that compute the same: those that torch.onnx writes of these models, with three differences. Sizes of reshapes are read
from the input that has them, not multiplied up; nodes and unnamed values have other names; and parameters that happen
to be equal, such as biases of zeros, stay apart, so that a graph depends on nothing but the spec.
An operation that is not known here is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from spade_deploy.errors import ExportError
from spade_deploy.export import onnx_functions  # noqa: F401, it adds them to `Recorded`
from spade_deploy.export.onnx_operators import Recorded
from spade_deploy.export.onnx_sizes import Dimension, Size

ONNX_TYPES = {
    torch.float16: ir.DataType.FLOAT16,
    torch.float32: ir.DataType.FLOAT,
    torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64,
    torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
}
IR_VERSION = 10


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph."""

    name: str
    """Its name."""
    dtype: torch.dtype
    """The type of its numbers."""
    sizes: tuple[Dimension, ...]
    """Its sizes; those that are not fixed are a `Size`."""


class Recorder:
    """The graph of one model while it is recorded.

    The same operation on the same values is recorded once. Parameters keep their names, and each has a tensor of its
    own; constants with equal values are one.
    """

    def __init__(self, model: nn.Module, opset: int) -> None:
        self._opset = opset
        self._nodes: list[ir.Node] = []
        self._inputs: list[tuple[ir.Value, tuple[Dimension, ...]]] = []
        self._tensors: dict[str, ir.Value] = {}
        self._transposed: set[str] = set()
        self._done: dict[Any, tuple[ir.Value, ...]] = {}
        self._constants: dict[Any, ir.Value] = {}
        self._order = {name: place for place, (name, _) in enumerate(model.named_parameters())}
        self._names = {id(tensor): name for name, tensor in model.named_parameters()}
        self._model = model

    def record(
        self, inputs: Sequence[GraphInput], outputs: Sequence[tuple[str, tuple[Dimension, ...]]], stages: Iterable[str]
    ) -> ir.Model:
        """The graph of the model's `forward` for these inputs. outputs: names and sizes. stages: modules whose results
        get their name. Raises ExportError for an operation that cannot be recorded."""
        given = [self._input(one) for one in inputs]
        with self._named(stages) as named, torch.no_grad():
            results = self._model(*given)
        results = results if isinstance(results, tuple) else (results,)
        for missing in (name for name in stages if name not in named):
            raise ExportError(f"the recorded graph has no value for layer {missing}")
        for (name, sizes), result in zip(outputs, results, strict=True):
            result.value.name = name
            result.value.type, result.value.shape = ir.TensorType(ONNX_TYPES[result.dtype]), _onnx_shape(sizes)
        tensors = sorted(self._tensors.items(), key=lambda each: self._order.get(each[0], len(self._order)))
        graph = ir.Graph(
            [value for value, _ in self._inputs],
            [result.value for result in results],
            nodes=self._nodes,
            initializers=[value for _, value in tensors],
            opset_imports={"": self._opset},
            name="main_graph",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def emit(
        self, operator: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """The results of a node, which is appended unless the same node is there already."""
        key = (operator, *(id(value) for value in inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._done:
            place = len(self._nodes)
            node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=f"{operator}_{place}")
            for number, value in enumerate(node.outputs):
                value.name = f"{operator.lower()}_{place}" + (f"_{number}" if outputs > 1 else "")
            self._nodes.append(node)
            self._done[key] = tuple(node.outputs)
        return self._done[key]

    def tensor(self, tensor: Tensor, *, is_transposed: bool = False) -> ir.Value:
        """A tensor of the model, or a constant, as a value of the graph."""
        name = self._names.get(id(tensor))
        array = (tensor.t().contiguous() if is_transposed else tensor.contiguous()).detach().cpu().numpy()
        if name is None:
            return self.constant(array)
        if name not in self._tensors:
            self._tensors[name] = _filled(name, array)
        elif self._tensors[name].shape != ir.Shape(array.shape) or is_transposed != (name in self._transposed):
            raise ExportError(f"{name} is needed as it is and transposed, and has one tensor in the graph")
        if is_transposed:
            self._transposed.add(name)
        return self._tensors[name]

    def constant(self, array: Any) -> ir.Value:
        """Fixed numbers as a value of the graph."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._tensors[name] = _filled(name, array)
        return self._constants[key]

    def shape(self, sizes: Sequence[Dimension]) -> ir.Value:
        """The sizes as int64 numbers: constant where all are fixed, but for one that is -1."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        parts = [self.constant(np.array([s], np.int64)) if isinstance(s, int) else self._size_of(s) for s in sizes]
        return self.emit("Concat", parts, axis=0)[0]

    def _size_of(self, wanted: Dimension) -> ir.Value:
        for value, sizes in self._inputs:
            if isinstance(wanted, Size) and wanted in sizes:
                axis = sizes.index(wanted)
                return self.emit("Shape", [value], start=axis, end=axis + 1)[0]
        raise ExportError(f"no input of the graph has the size {wanted}")

    def _input(self, one: GraphInput) -> Recorded:
        value = ir.Value(name=one.name, type=ir.TensorType(ONNX_TYPES[one.dtype]), shape=_onnx_shape(one.sizes))
        self._inputs.append((value, one.sizes))
        return Recorded(self, value, one.dtype, one.sizes)

    @contextmanager
    def _named(self, stages: Iterable[str]) -> Iterator[set[str]]:
        """Inside, the result of each of these modules gets the module's name."""
        named: set[str] = set()

        def hook(name: str) -> Callable[..., None]:
            def keep(_: nn.Module, __: Any, result: Recorded) -> None:
                result.value.name = name
                named.add(name)

            return keep

        handles = [self._model.get_submodule(name).register_forward_hook(hook(name)) for name in stages]
        try:
            yield named
        finally:
            for handle in handles:
                handle.remove()


def _filled(name: str, array: Any) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def _onnx_shape(sizes: Sequence[Dimension]) -> ir.Shape:
    return ir.Shape([size if isinstance(size, int) else str(size) for size in sizes])
