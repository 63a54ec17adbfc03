"""The functions of PyTorch that deploy models use, such as `torch.cat`, as ONNX nodes. Methods: `onnx_operators.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spade_deploy.errors import ExportError
from spade_deploy.export.onnx_operators import Recorded
from spade_deploy.export.onnx_sizes import Dimension, broadcast, over, times

if TYPE_CHECKING:
    import onnx_ir as ir

    from spade_deploy.export.onnx_recorder import Recorder

_CONV = {"auto_pad": "NOTSET"}
_RESIZE = {"antialias": 0, "exclude_outside": 0, "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch"}


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


def _embedding(index: Any, table: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any) -> Recorded:
    if max_norm is not None:
        raise ExportError("an embedding with a largest norm cannot be recorded as ONNX nodes")
    recorder = _first([index, table]).recorder
    (found,) = recorder.emit("Gather", [_value(recorder, table), _value(recorder, index)], axis=0)
    return Recorded(recorder, found, table.dtype, [*index.shape, *table.shape[1:]])


def _cat(tensors: Sequence[Any], dim: int = 0) -> Recorded:
    first = _first(tensors)
    if any(one.dtype is not first.dtype for one in tensors):
        raise ExportError("tensors of several types cannot be recorded as one: cast them first")
    values = [_value(first.recorder, one) for one in tensors]
    (found,) = first.recorder.emit("Concat", values, axis=dim)
    along = [one.shape[dim] for one in tensors]
    sizes = [*first.shape]
    sizes[dim] = sum(along) if all(isinstance(size, int) for size in along) else None
    return Recorded(first.recorder, found, first.dtype, sizes)


def _pad(x: Recorded, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Recorded:
    if mode not in ("constant", "reflect"):
        raise ExportError(f"padding of the mode {mode} cannot be recorded as ONNX nodes")
    axes = len(x.shape)
    before, after, sizes = [0] * axes, [0] * axes, [*x.shape]
    for place in range(len(pad) // 2):  # PyTorch begins with the last axis
        axis = axes - 1 - place
        before[axis], after[axis] = pad[2 * place], pad[2 * place + 1]
        size = sizes[axis]
        grown = before[axis] + after[axis]
        sizes[axis] = size + grown if isinstance(size, int) else size if grown == 0 else None
    filled = [torch.tensor(value, dtype=x.dtype)] if value else []
    return x.node("Pad", np.array([*before, *after], np.int64), *filled, mode=mode, sizes=sizes)


def _interpolate(
    x: Recorded,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    **others: Any,
) -> Recorded:
    if mode == "nearest" and size is not None and all(isinstance(side, int) for side in (*size, *x.shape[2:])):
        return _picked(x, size)
    is_known = size is None and scale_factor == 2 and mode in ("nearest", "bilinear")
    if not is_known or align_corners or others.get("antialias"):
        raise ExportError(f"the resizing {mode} to {size or scale_factor} cannot be recorded as ONNX nodes")
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "bilinear":
        how = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel", "nearest_mode": "floor"}
    scales = np.array([1, 1, 2, 2], np.float32)
    sizes = [*x.shape[:2], *(times(side, 2) for side in x.shape[2:])]
    return x.node("Resize", None, scales, sizes=sizes, cubic_coeff_a=-0.75, **_RESIZE, **how)


def _picked(x: Recorded, size: Sequence[int]) -> Recorded:
    """Nearest resizing between fixed sizes. PyTorch computes the places, in its own rounding."""
    for axis, wanted in enumerate(size, start=2):
        here = int(x.shape[axis])  # type: ignore[arg-type]
        if here != wanted:
            every = torch.arange(here, dtype=torch.float64).view(1, 1, here)
            x = x.index_select(axis, functional.interpolate(every, size=wanted, mode="nearest").long().flatten())
    return x


def _batch_norm(
    x: Recorded,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Recorded:
    if training:
        raise ExportError("a batch norm in train mode cannot be recorded as ONNX nodes: call .eval() first")
    return x.node("BatchNormalization", weight, bias, mean, variance, epsilon=eps, training_mode=0)


def _max_pool(
    x: Recorded, kernel: int, stride: int | None, padding: int, dilation: int, ceil_mode: bool, **others: Any
) -> Recorded:
    if padding or dilation != 1 or ceil_mode or any(others.values()):
        raise ExportError("a maximum of windows that leave the map cannot be recorded as ONNX nodes")
    step = stride or kernel
    space: list[Dimension] = []
    for side in x.shape[-2:]:
        space.append(
            (side - kernel) // step + 1 if isinstance(side, int) else over(side, step) if step == kernel else None
        )
    attributes = {"kernel_shape": [kernel] * 2, "strides": [step] * 2}
    if x.dim() == 4:
        return x.node("MaxPool", sizes=[*x.shape[:2], *space], **attributes)
    found = x[None].node("MaxPool", sizes=[1, x.shape[0], *space], **attributes)  # one map without a batch
    return found.node("Squeeze", np.array([0], np.int64), sizes=[x.shape[0], *space])


def _stack(tensors: Sequence[Any], dim: int = 0) -> Recorded:
    axis = np.array([dim], np.int64)
    first = _first(tensors)
    sizes = (*first.shape[:dim], 1, *first.shape[dim:])
    return _cat(
        [
            one.node("Unsqueeze", axis, sizes=sizes) if isinstance(one, Recorded) else one.unsqueeze(dim)
            for one in tensors
        ],
        dim,
    )


def _cumsum(x: Recorded, dim: int, dtype: torch.dtype | None = None) -> Recorded:
    return x.to(dtype or x.dtype).node("CumSum", np.array(dim, np.int64))


def _where(condition: Recorded, x: Recorded, y: Recorded) -> Recorded:
    (found,) = x.recorder.emit("Where", [condition.value, x.value, y.value])
    return Recorded(x.recorder, found, x.dtype, broadcast(x.shape, y.shape))


def _scatter(x: Tensor, dim: int, index: Recorded, source: Tensor) -> Recorded:
    recorder = index.recorder
    (found,) = recorder.emit("ScatterElements", [recorder.tensor(x), index.value, recorder.tensor(source)], axis=dim)
    return Recorded(recorder, found, x.dtype, x.shape)


def _first(values: Sequence[Any]) -> Recorded:
    return next(one for one in values if isinstance(one, Recorded))


def _value(recorder: Recorder, one: Any) -> ir.Value:
    return one.value if isinstance(one, Recorded) else recorder.tensor(one)


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


Recorded.functions.update(
    {
        "conv2d": _conv,
        "conv_transpose2d": _conv_transpose,
        "linear": _linear,
        "embedding": _embedding,
        "scatter": _scatter,
        "stack": _stack,
        "cumsum": _cumsum,
        "where": _where,
        "add": lambda x, y: y + x,
        "mul": lambda x, y: y * x,
        "cat": _cat,
        "pad": _pad,
        "interpolate": _interpolate,
        "avg_pool2d": _avg_pool,
        "max_pool2d": _max_pool,
        "batch_norm": _batch_norm,
        "relu": lambda x, inplace=False: x.node("Relu"),
        "leaky_relu": lambda x, negative_slope=0.01, inplace=False: x.node("LeakyRelu", alpha=negative_slope),
        "tanh": lambda x: x.node("Tanh"),
        "sqrt": lambda x: x.node("Sqrt"),
        "rsqrt": lambda x: x.node("Sqrt").node("Reciprocal"),
        "maximum": lambda x, y: x.node("Max", y, sizes=broadcast(x.shape, y.shape)),
        "split": lambda x, part, dim=0: x.split(part, dim),
    }
)
