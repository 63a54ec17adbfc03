"""The operations of PyTorch that deploy models use, as ONNX nodes: the methods and functions of a `Recorded` value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spade_deploy.errors import ExportError
from spade_deploy.export.onnx_sizes import Dimension, Size, broadcast, over, product, times

if TYPE_CHECKING:
    import onnx_ir as ir

    from spade_deploy.export.onnx_recorder import Recorder

_TO_THE_END = np.iinfo(np.int64).max
_CONV = {"auto_pad": "NOTSET"}
_RESIZE = {"antialias": 0, "exclude_outside": 0, "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch"}
_ONNX_NUMBERS = {torch.float16: 10, torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.uint8: 2, torch.bool: 9}


class Recorded:
    """Stands for a tensor while a model is recorded: it has a type and sizes, and no numbers."""

    def __init__(self, recorder: Recorder, value: ir.Value, dtype: torch.dtype, sizes: Sequence[Dimension]) -> None:
        self.recorder, self.value, self.dtype, self.shape = recorder, value, dtype, tuple(sizes)
        self.device = torch.device("cpu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """PyTorch calls this for a function of its own that gets a recorded value."""
        known = FUNCTIONS.get(func.__name__)
        if known is None:
            raise ExportError(
                f"{func.__name__} cannot be recorded as ONNX nodes", hint="add it to `export/onnx_operators.py`"
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

    def clamp(self, low: int, high: int) -> Recorded:
        return self.node("Clip", *(torch.tensor(limit, dtype=self.dtype) for limit in (low, high)))

    def permute(self, *axes: int) -> Recorded:
        return self.node("Transpose", perm=list(axes), sizes=[self.shape[axis] for axis in axes])

    def view(self, *sizes: Dimension) -> Recorded:
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
        for axis, part in enumerate(parts):
            if part is not None and part != slice(None):
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


def _conv(
    x: Recorded, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Recorded:
    strides, pads, dilations = (_pair(each) for each in (stride, padding, dilation))
    kernel = list(weight.shape[2:])
    space: list[Dimension] = []
    for size, k, s, p, d in zip(x.shape[2:], kernel, strides, pads, dilations, strict=True):
        spare = 2 * p - d * (k - 1)
        if isinstance(size, int):
            space.append((size + spare - 1) // s + 1)
        else:
            space.append(over(size, s) if spare in range(1 - s, 1) else None)
    attributes = {"group": groups, "pads": pads * 2, "strides": strides, "dilations": dilations, **_CONV}
    more = (weight,) if bias is None else (weight, bias)
    return x.node("Conv", *more, sizes=[x.shape[0], weight.shape[0], *space], kernel_shape=kernel, **attributes)


def _conv_transpose(
    x: Recorded, weight: Tensor, bias: Any, stride: Any, padding: Any, more: Any, groups: int, dilation: Any
) -> Recorded:
    strides, pads, added, dilations = (_pair(each) for each in (stride, padding, more, dilation))
    kernel = list(weight.shape[2:])
    space: list[Dimension] = []
    for size, k, s, p, a, d in zip(x.shape[2:], kernel, strides, pads, added, dilations, strict=True):
        rest = d * (k - 1) + a + 1 - 2 * p - s
        space.append(size * s + rest if isinstance(size, int) else times(size, s) if rest == 0 else None)
    attributes = {"group": groups, "pads": pads * 2, "strides": strides, "dilations": dilations, **_CONV}
    given = (weight,) if bias is None else (weight, bias)
    sizes = [x.shape[0], weight.shape[1] * groups, *space]
    return x.node("ConvTranspose", *given, sizes=sizes, kernel_shape=kernel, output_padding=added, **attributes)


def _linear(x: Recorded, weight: Tensor, bias: Tensor | None = None) -> Recorded:
    sizes = [*x.shape[:-1], weight.shape[0]]
    if bias is not None and x.dim() == 2:
        return x.node("Gemm", weight, bias, sizes=sizes, alpha=1.0, beta=1.0, transA=0, transB=1)
    (found,) = x.recorder.emit("MatMul", [x.value, x.recorder.tensor(weight, is_transposed=True)])
    product_ = Recorded(x.recorder, found, x.dtype, sizes)
    return product_ if bias is None else product_ + bias


def _embedding(
    index: Recorded, table: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Recorded:
    if max_norm is not None:
        raise ExportError("an embedding with a largest norm cannot be recorded as ONNX nodes")
    rows = table.value if isinstance(table, Recorded) else index.recorder.tensor(table)
    (found,) = index.recorder.emit("Gather", [rows, index.value], axis=0)
    return Recorded(index.recorder, found, table.dtype, [*index.shape, *table.shape[1:]])


def _cat(tensors: Sequence[Any], dim: int = 0) -> Recorded:
    first = next(one for one in tensors if isinstance(one, Recorded))
    if any(one.dtype is not first.dtype for one in tensors):
        raise ExportError("tensors of several types cannot be recorded as one: cast them first")
    values = [one.value if isinstance(one, Recorded) else first.recorder.tensor(one) for one in tensors]
    (found,) = first.recorder.emit("Concat", values, axis=dim)
    along = [one.shape[dim] for one in tensors]
    sizes = [*first.shape]
    sizes[dim] = sum(along) if all(isinstance(size, int) for size in along) else None
    return Recorded(first.recorder, found, first.dtype, sizes)


def _pad(x: Recorded, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Recorded:
    if mode not in ("constant", "reflect") or value:
        raise ExportError(f"padding of the mode {mode} with {value} cannot be recorded as ONNX nodes")
    axes = len(x.shape)
    before, after, sizes = [0] * axes, [0] * axes, [*x.shape]
    for place in range(len(pad) // 2):  # PyTorch begins with the last axis
        axis = axes - 1 - place
        before[axis], after[axis] = pad[2 * place], pad[2 * place + 1]
        size = sizes[axis]
        grown = before[axis] + after[axis]
        sizes[axis] = size + grown if isinstance(size, int) else size if grown == 0 else None
    return x.node("Pad", np.array([*before, *after], np.int64), mode=mode, sizes=sizes)


def _interpolate(
    x: Recorded,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    **others: Any,
) -> Recorded:
    is_known = size is None and scale_factor == 2 and mode in ("nearest", "bilinear")
    if not is_known or align_corners or others.get("antialias"):
        raise ExportError(f"the resizing {mode} to {size or scale_factor} cannot be recorded as ONNX nodes")
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "bilinear":
        how = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel", "nearest_mode": "floor"}
    scales = np.array([1, 1, 2, 2], np.float32)
    sizes = [*x.shape[:2], *(times(side, 2) for side in x.shape[2:])]
    return x.node("Resize", None, scales, sizes=sizes, cubic_coeff_a=-0.75, **_RESIZE, **how)


def _instance_norm(x: Recorded, *given: Any, eps: float, **others: Any) -> Recorded:
    if any(isinstance(one, Tensor | Recorded) for one in (*given, *others.values())):
        raise ExportError("an instance norm with weights or running statistics cannot be recorded as ONNX nodes")
    channels = int(x.shape[1])  # type: ignore[arg-type]
    ones, zeros = (torch.full((channels,), number, dtype=x.dtype) for number in (1.0, 0.0))
    return x.node("InstanceNormalization", ones, zeros, epsilon=eps)


def _avg_pool(
    x: Recorded, kernel: int, stride: int | None = None, padding: int = 0, ceil_mode: bool = False, **others: Any
) -> Recorded:
    step, counts_padding = stride or kernel, others.pop("count_include_pad", True)
    if ceil_mode or others:
        raise ExportError("average pooling with a ceiling or another divisor cannot be recorded as ONNX nodes")
    space: list[Dimension] = []
    for size in x.shape[2:]:
        if isinstance(size, int):
            space.append((size + 2 * padding - kernel) // step + 1)
        else:
            space.append(over(size, step) if 2 * padding - kernel + 1 in range(1 - step, 1) else None)
    attributes = {"auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": int(counts_padding), "pads": [padding] * 4}
    sizes = [*x.shape[:2], *space]
    return x.node("AveragePool", sizes=sizes, kernel_shape=[kernel] * 2, strides=[step] * 2, **attributes)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv,
    "conv_transpose2d": _conv_transpose,
    "linear": _linear,
    "embedding": _embedding,
    "cat": _cat,
    "pad": _pad,
    "interpolate": _interpolate,
    "instance_norm": _instance_norm,
    "avg_pool2d": _avg_pool,
    "relu": lambda x, inplace=False: x.node("Relu"),
    "leaky_relu": lambda x, negative_slope=0.01, inplace=False: x.node("LeakyRelu", alpha=negative_slope),
    "tanh": lambda x: x.node("Tanh"),
    "sqrt": lambda x: x.node("Sqrt"),
    "rsqrt": lambda x: x.node("Sqrt").node("Reciprocal"),
    "maximum": lambda x, y: x.node("Max", y, sizes=broadcast(x.shape, y.shape)),
    "split": lambda x, part, dim=0: x.split(part, dim),
}
"""What each function of PyTorch becomes, by its name there."""
