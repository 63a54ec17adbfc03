"""Kernels for the lookup on a card: finding windows, hidden rows, products of gathered rows, and the modulation.

Each does in one pass over memory what takes PyTorch several. All take and give contiguous tensors with channels last.
TRITON_INTERPRET=1 runs them on a CPU.
"""

# ruff: noqa: N803, SIM108  (Triton's constants are written in capitals, and its language has no conditional expression)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FIND_BLOCK = 256
_PIXELS, _CHANNELS = 32, 64
_ROWS, _COLUMNS, _DEPTH = 128, 128, 64


@triton.jit
def _window_kernel(
    values,
    rows,
    numbers,
    counter,
    pixels,
    height,
    width,
    stride,
    outside,
    border,
    capacity,
    KERNEL: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pixel = pixel < pixels
    x = pixel % width
    y = (pixel // width) % height
    line = width * stride
    origin = ((pixel // (width * height)).to(tl.int64) * height + y) * stride * line + x * stride
    place = pixel
    writes = is_pixel
    if not OWN:
        centre = tl.load(values + origin, mask=is_pixel, other=0).to(tl.int32)
        flags = tl.zeros((BLOCK,), tl.int32)
        for tap in tl.static_range(KERNEL * KERNEL):
            down = tap // KERNEL - KERNEL // 2
            across = tap % KERNEL - KERNEL // 2
            inside = is_pixel & (y + down >= 0) & (y + down < height) & (x + across >= 0) & (x + across < width)
            value = tl.load(values + origin + (down * line + across) * stride, mask=inside, other=0).to(tl.int32)
            value = tl.where(inside, value, border)
            if OF_ROWS:
                flags = flags | (value >= outside).to(tl.int32)
            else:
                flags = flags | (value != centre).to(tl.int32)
        flags = tl.where(is_pixel, flags, 0)
        before = tl.atomic_add(counter, tl.sum(flags, axis=0)) + tl.cumsum(flags, axis=0) - 1
        place = tl.minimum(before, capacity - 1) + outside
        writes = (flags > 0) & (before < capacity)
        tl.store(numbers + pixel, tl.where(flags > 0, place, centre), mask=is_pixel)
    for tap in tl.static_range(KERNEL * KERNEL):
        down = tap // KERNEL - KERNEL // 2
        across = tap % KERNEL - KERNEL // 2
        inside = is_pixel & (y + down >= 0) & (y + down < height) & (x + across >= 0) & (x + across < width)
        value = tl.load(values + origin + (down * line + across) * stride, mask=inside, other=0).to(tl.int32)
        tl.store(rows + place.to(tl.int64) * KERNEL * KERNEL + tap, tl.where(inside, value, border), mask=writes)


def find_windows(
    values: Tensor,
    rows: Tensor,
    numbers: Tensor,
    counter: Tensor,
    *,
    kernel: int,
    outside: int,
    border: int,
    of_rows: bool,
    own: bool,
) -> None:
    """Number the k x k windows of every stride-th pixel of `values` N x H x W, as `PatternFinder` does, in any order.

    numbers: N x h x w, written. rows: written from row `outside` on, and left as they are before; with `own` one for
    each pixel. counter: int32, zero before; how many windows of more than one code there are. border: the value around
    the image. of_rows: the values are rows of smaller windows, which have one code where they are below `outside`.
    """
    _, height, width = numbers.shape
    stride = values.shape[1] // height
    pixels = numbers.numel()
    _window_kernel[(triton.cdiv(pixels, _FIND_BLOCK),)](
        values,
        rows,
        numbers,
        counter,
        pixels,
        height,
        width,
        stride,
        outside,
        border,
        len(rows) - outside,
        KERNEL=kernel,
        OF_ROWS=of_rows,
        OWN=own,
        BLOCK=_FIND_BLOCK,
    )


@triton.jit
def _hidden_kernel(
    codes, table, bias, out, count, channels, block_rows, TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    there = (row < count)[:, None] & is_channel[None, :]
    total = tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)[None, :] + tl.zeros(
        (ROWS, CHANNELS), tl.float32
    )
    for tap in tl.static_range(TAPS):
        code = tl.load(codes + row.to(tl.int64) * TAPS + tap, mask=row < count, other=0) + tap * block_rows
        place = code.to(tl.int64)[:, None] * channels + channel[None, :]
        total += tl.load(table + place, mask=there, other=0).to(tl.float32)
    total = tl.where((row < count)[:, None], tl.maximum(total, 0.0), 0.0)
    place = row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row <= count)[:, None] & is_channel[None, :])


def hidden_rows(codes: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """relu(bias + sum over taps of table[tap, code]): U x taps -> U + 1 x C; the last row, of the outside, is zero."""
    count, taps = codes.shape
    channels = table.shape[1]
    out = torch.empty(count + 1, channels, dtype=table.dtype, device=codes.device)
    grid = (triton.cdiv(count + 1, _PIXELS), triton.cdiv(channels, _CHANNELS))
    block_rows = table.shape[0] // taps
    _hidden_kernel[grid](
        codes, table, bias, out, count, channels, block_rows, TAPS=taps, ROWS=_PIXELS, CHANNELS=_CHANNELS
    )
    return out


@triton.jit
def _gathered_kernel(
    hidden,
    patterns,
    weight,
    bias,
    out,
    count,
    outputs,
    hidden_stride,
    column,
    TAPS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_output = row < count, output < outputs
    step = tl.arange(0, STEP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in range(TAPS):
        source = tl.load(patterns + row.to(tl.int64) * TAPS + tap, mask=is_row, other=0).to(tl.int64)
        for start in tl.static_range(0, DEPTH, STEP):
            is_step = start + step < DEPTH
            place = source[:, None] * hidden_stride + (column + start + step)[None, :]
            left = tl.load(hidden + place, mask=is_row[:, None] & is_step[None, :], other=0)
            place = output[None, :] * (TAPS * DEPTH) + (tap * DEPTH + start + step)[:, None]
            right = tl.load(weight + place, mask=is_output[None, :] & is_step[:, None], other=0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
    total += tl.load(bias + output, mask=is_output, other=0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


def gathered_product(hidden: Tensor, patterns: Tensor, column: int, weight: Tensor, bias: Tensor) -> Tensor:
    """The products of windows of hidden rows, which are never made: U x C and P x taps -> P x outputs.

    column: where the layer's channels begin in `hidden`. weight: outputs x taps * depth, of the window's rows in turn.
    """
    (count, taps), (outputs, total) = patterns.shape, weight.shape
    out = torch.empty(count, outputs, dtype=weight.dtype, device=weight.device)
    rows, columns = (_ROWS, _COLUMNS) if weight.dtype is torch.float16 else (64, 64)
    _gathered_kernel[(triton.cdiv(count, rows), triton.cdiv(outputs, columns))](
        hidden,
        patterns,
        weight,
        bias,
        out,
        count,
        outputs,
        hidden.shape[1],
        column,
        TAPS=taps,
        DEPTH=total // taps,
        PRECISION="ieee",
        ROWS=rows,
        COLUMNS=columns,
        STEP=_DEPTH if weight.dtype is torch.float16 else 32,
        num_warps=8,
        num_stages=3,
    )
    return out


@triton.jit
def _modulate_kernel(
    x,
    table,
    index,
    out,
    pixels,
    height,
    width,
    channels,
    table_stride,
    gamma,
    beta,
    slope,
    DOUBLES: tl.constexpr,
    HAS_BETA: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_pixel = pixel < pixels
    there = is_pixel[:, None] & (channel < channels)[None, :]
    row = tl.load(index + pixel, mask=is_pixel, other=0).to(tl.int64) * table_stride
    source = pixel
    if DOUBLES:
        image = pixel // (width * height)
        y = (pixel // width) % height
        source = (image * (height // 2) + y // 2) * (width // 2) + (pixel % width) // 2
    value = tl.load(x + source.to(tl.int64)[:, None] * channels + channel[None, :], mask=there, other=0).to(tl.float32)
    value *= tl.load(table + row[:, None] + (gamma + channel)[None, :], mask=there, other=0).to(tl.float32)
    if HAS_BETA:
        value += tl.load(table + row[:, None] + (beta + channel)[None, :], mask=there, other=0).to(tl.float32)
        value = tl.where(value >= 0, value, value * slope)
    place = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=there)


def modulate(
    x: Tensor, table: Tensor, index: Tensor, *, gamma: int = 0, beta: int | None = None, slope: float = 0.2
) -> Tensor:
    """leaky_relu(x gamma' + beta') N x H x W x C, or x gamma' where beta is None. x: that size, or half of it.

    table: P x columns, of which gamma' and beta' begin at these. index: N x H x W, the row of every pixel.
    """
    batch, height, width = index.shape
    channels = x.shape[-1]
    out = torch.empty(batch, height, width, channels, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(index.numel(), _PIXELS), triton.cdiv(channels, _CHANNELS))
    _modulate_kernel[grid](
        x,
        table,
        index,
        out,
        index.numel(),
        height,
        width,
        channels,
        table.shape[1],
        gamma,
        beta or 0,
        slope,
        DOUBLES=x.shape[1] != height,
        HAS_BETA=beta is not None,
        PIXELS=_PIXELS,
        CHANNELS=_CHANNELS,
    )
    return out


@triton.jit
def _join_kernel(
    left,
    right,
    table,
    index,
    out,
    pixels,
    channels,
    table_stride,
    column,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_pixel = pixel < pixels
    there = is_pixel[:, None] & (channel < channels)[None, :]
    row = tl.load(index + pixel, mask=is_pixel, other=0).to(tl.int64) * table_stride
    place = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(left + place, mask=there, other=0).to(tl.float32)
    value += tl.load(right + place, mask=there, other=0).to(tl.float32)
    value += tl.load(table + row[:, None] + (column + channel)[None, :], mask=there, other=0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=there)


def join(left: Tensor, right: Tensor, table: Tensor, index: Tensor, column: int) -> Tensor:
    """left + right + the row of `table` of every pixel, from `column` on; all N x H x W x C."""
    channels = left.shape[-1]
    out = torch.empty_like(left)
    grid = (triton.cdiv(index.numel(), _PIXELS), triton.cdiv(channels, _CHANNELS))
    _join_kernel[grid](
        left,
        right,
        table,
        index,
        out,
        index.numel(),
        channels,
        table.shape[1],
        column,
        PIXELS=_PIXELS,
        CHANNELS=_CHANNELS,
    )
    return out
