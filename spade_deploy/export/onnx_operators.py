"""The operations of PyTorch that deploy models use, as ONNX nodes: the methods of a `Recorded` value.

Functions such as `torch.cat` are in `onnx_functions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spade_deploy.errors import ExportError
from spade_deploy.export.onnx_sizes import Dimension, Size, broadcast, over, product

if TYPE_CHECKING:
    import onnx_ir as ir

    from spade_deploy.export.onnx_recorder import Recorder

_TO_THE_END = np.iinfo(np.int64).max
_ONNX_NUMBERS = {torch.float16: 10, torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.uint8: 2, torch.bool: 9}


class Recorded:
    """Stands for a tensor while a model is recorded: it has a type and sizes, and no numbers."""

    functions: ClassVar[dict[str, Callable[..., Any]]] = {}
    """What each function of PyTorch becomes, by its name there; `onnx_functions.py` fills it."""

    def __init__(self, recorder: Recorder, value: ir.Value, dtype: torch.dtype, sizes: Sequence[Dimension]) -> None:
        self.recorder, self.value, self.dtype, self.shape = recorder, value, dtype, tuple(sizes)
        self.device = torch.device("cpu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """PyTorch calls this for a function of its own that gets a recorded value."""
        known = cls.functions.get(func.__name__)
        if known is None:
            raise ExportError(
                f"{func.__name__} cannot be recorded as ONNX nodes", hint="add it to `export/onnx_functions.py`"
            )
        return known(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Python and PyTorch ask for some of these, to learn what a value is
            raise AttributeError(name)
        raise ExportError(
            f"Tensor.{name} cannot be recorded as ONNX nodes", hint="add it to `export/onnx_operators.py`"
        )

    def node(self, operator: str, *more: Any, sizes: Sequence[Dimension] | None = None, **attributes: Any) -> Recorded:
        """The result of one node, of this type. more: its further inputs. sizes: of the result; as this if left out."""
        inputs = [self.value, *(self._value_of(one) for one in more)]
        (found,) = self.recorder.emit(operator, inputs, **attributes)
        return Recorded(self.recorder, found, self.dtype, self.shape if sizes is None else sizes)

    def _value_of(self, one: Any) -> ir.Value | None:
        if one is None:
            return None
        if isinstance(one, Recorded):
            return one.value
        return self.recorder.tensor(one) if isinstance(one, Tensor) else self.recorder.constant(one)

    def _with(self, operator: str, other: Any) -> Recorded:
        """An elementwise operator with another value, a tensor, or a number, which takes the type of this."""
        if not isinstance(other, Recorded | Tensor):
            other = torch.tensor(other, dtype=self.dtype)
        if other.dtype is not self.dtype:
            raise ExportError(f"{operator} of {self.dtype} and {other.dtype} cannot be recorded: one has to be cast")
        return self.node(operator, other, sizes=broadcast(self.shape, tuple(other.shape)))

    def __add__(self, other: Any) -> Recorded:
        return self._with("Add", other)

    def __sub__(self, other: Any) -> Recorded:
        return self._with("Sub", other)

    def __mul__(self, other: Any) -> Recorded:
        return self._with("Mul", other)

    def __truediv__(self, other: Any) -> Recorded:
        return self._with("Div", other)

    def __eq__(self, other: object) -> Recorded:  # type: ignore[override]
        return self._with("Equal", other)._typed(torch.bool)

    def __ne__(self, other: object) -> Recorded:  # type: ignore[override]
        return (self == other).node("Not")

    def __ge__(self, other: Any) -> Recorded:
        return self._with("GreaterOrEqual", other)._typed(torch.bool)

    def __neg__(self) -> Recorded:
        return self.node("Neg")

    def __invert__(self) -> Recorded:
        return self.node("Not")

    def __matmul__(self, other: Any) -> Recorded:
        return self.node("MatMul", other, sizes=[*self.shape[:-1], *other.shape[-1:]])

    __hash__ = object.__hash__

    def _typed(self, dtype: torch.dtype) -> Recorded:
        return Recorded(self.recorder, self.value, dtype, self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def to(self, dtype: torch.dtype) -> Recorded:
        return self if dtype is self.dtype else self.node("Cast", to=_ONNX_NUMBERS[dtype])._typed(dtype)

    def float(self) -> Recorded:
        return self.to(torch.float32)

    def floor(self) -> Recorded:
        return self.node("Floor")

    def clamp(self, min: int | None = None, max: int | None = None) -> Recorded:
        return self.node("Clip", *(None if one is None else torch.tensor(one, dtype=self.dtype) for one in (min, max)))

    def masked_fill(self, mask: Recorded, number: Any) -> Recorded:
        (found,) = self.recorder.emit(
            "Where", [mask.value, self._value_of(torch.tensor(number, dtype=self.dtype)), self.value]
        )
        return Recorded(self.recorder, found, self.dtype, self.shape)

    def permute(self, *axes: int) -> Recorded:
        return self.node("Transpose", perm=list(axes), sizes=[self.shape[axis] for axis in axes])

    def view(self, *given: Any) -> Recorded:
        sizes: tuple[Dimension, ...] = tuple(given[0]) if isinstance(given[0], tuple) else given
        known = list(sizes)
        if -1 in known:
            rest = [size for size in known if size != -1]
            place = known.index(-1)
            known[place] = _quotient(self.shape, rest)
            # A size that is computed stays -1 in the graph only where nothing else says it.
            sizes = tuple(known) if isinstance(known[place], int) else sizes
        return self.node("Reshape", _Shape(self.recorder, sizes), sizes=known, allowzero=1)

    def flatten(self, start: int = 0, end: int = -1) -> Recorded:
        end = end % len(self.shape)
        before, merged, after = self.shape[:start], product(self.shape[start : end + 1]), self.shape[end + 1 :]
        fixed = [isinstance(size, int) for size in (*before, *after)]
        if start == 0 and all(fixed):
            asked: Sequence[Dimension] = (-1, *after)
        elif isinstance(merged, int) and before and not any(fixed[: len(before)]) and len(before) == 1:
            asked = (-1, merged, *after)
        else:
            asked = (*before, merged, *after)
        return self.node("Reshape", _Shape(self.recorder, asked), sizes=(*before, merged, *after), allowzero=1)

    def index_select(self, dim: int, index: Tensor | Recorded) -> Recorded:
        sizes = [*self.shape[:dim], index.shape[0], *self.shape[dim + 1 :]]
        return self.node("Gather", index, sizes=sizes, axis=dim)

    def chunk(self, chunks: int, dim: int) -> tuple[Recorded, ...]:
        size = self.shape[dim]
        if not isinstance(size, int) or size % chunks:
            raise ExportError(f"an axis of size {size} cannot be recorded in {chunks} equal parts")
        if chunks == 1:
            return (self,)
        found = self.recorder.emit("Split", [self.value], chunks, axis=dim, num_outputs=chunks)
        sizes = [*self.shape]
        sizes[dim] = size // chunks
        return tuple(Recorded(self.recorder, value, self.dtype, sizes) for value in found)

    def split(self, part: int, dim: int) -> tuple[Recorded, ...]:
        size = self.shape[dim]
        if not isinstance(size, int) or size % part:
            raise ExportError(f"an axis of size {size} cannot be recorded in parts of {part}")
        return self.chunk(size // part, dim)

    def mean(self, dim: int | Sequence[int], keepdim: bool = False) -> Recorded:
        return self._reduced("ReduceMean", dim, keepdim)

    def sum(self, dim: int | Sequence[int], keepdim: bool = False) -> Recorded:
        return self.float()._reduced("ReduceSum", dim, keepdim).to(self.dtype)  # sums of halves are float32

    def _reduced(self, operator: str, dim: int | Sequence[int], keepdim: bool) -> Recorded:
        axes = [dim] if isinstance(dim, int) else list(dim)
        gone = {axis % len(self.shape) for axis in axes}
        sizes = [1 if axis in gone else size for axis, size in enumerate(self.shape) if keepdim or axis not in gone]
        attributes = {"keepdims": int(keepdim), "noop_with_empty_axes": 0}
        return self.node(operator, np.array(axes, np.int64), sizes=sizes, **attributes)

    def __getitem__(self, index: Any) -> Recorded:
        found, axis = self, 0
        parts = index if isinstance(index, tuple) else (index,)
        for place in (place for place, part in enumerate(parts) if part is None):
            sizes = (*found.shape[:place], 1, *found.shape[place:])
            found = found.node("Unsqueeze", np.array([place], np.int64), sizes=sizes)
        for axis, part in reversed(list(enumerate(parts))):  # a number takes its axis away
            if isinstance(part, int):
                sizes = (*found.shape[:axis], *found.shape[axis + 1 :])
                found = found.node("Gather", np.array(part, np.int64), sizes=sizes, axis=axis)
            elif part is not None and part != slice(None):
                found = found._sliced(axis, part)
        return found

    def _sliced(self, axis: int, part: Any) -> Recorded:
        if not isinstance(part, slice):
            raise ExportError(f"the index {part!r} cannot be recorded as ONNX nodes")
        start, stop, step = part.start or 0, _TO_THE_END if part.stop is None else part.stop, part.step or 1
        if (start, stop, step) == (0, _TO_THE_END, 1):
            return self
        size = self.shape[axis]
        if isinstance(size, int):
            size = len(range(size)[part])
        elif (start, stop) == (0, _TO_THE_END):
            size = over(size, step)
        else:
            size = stop if start == 0 and stop > 0 and step == 1 else None
        numbers = [np.array([number], np.int64) for number in (start, stop, axis, step)]
        return self.node("Slice", *numbers, sizes=[*self.shape[:axis], size, *self.shape[axis + 1 :]])


class _Shape(Recorded):
    """The sizes that a reshape asks for, as an input of a node."""

    def __init__(self, recorder: Recorder, sizes: Sequence[Dimension]) -> None:
        super().__init__(recorder, recorder.shape(sizes), torch.int64, (len(sizes),))


def _quotient(sizes: Sequence[Dimension], parts: Sequence[Dimension]) -> Dimension:
    """What -1 stands for where a tensor of these sizes is viewed with the other `parts`; None if it is not known."""
    (all_of, symbols), (divisor, taken) = _factors(sizes), _factors(parts)
    for symbol in taken:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    if None in (*sizes, *parts) or all_of % divisor or len(symbols) > 1:
        return None
    return Size(all_of // divisor, symbols[0]) if symbols else all_of // divisor


def _factors(sizes: Sequence[Dimension]) -> tuple[int, list[str]]:
    """The fixed factor of a product of sizes, and the named numbers in it."""
    factor = math.prod(size.factor if isinstance(size, Size) else size or 1 for size in sizes)
    return factor, [size.symbol for size in sizes if isinstance(size, Size)]
