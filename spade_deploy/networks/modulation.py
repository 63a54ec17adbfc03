"""Lookup in training: gamma and beta are computed once for each distinct window of labels, with the same gradients.

gamma and beta of a pixel depend on nothing but the labels of the (2k - 1) x (2k - 1) window around it, and a batch of
label maps has fewer distinct windows than pixels. `lookup/tables.py` finds them, once a batch; then, at each
resolution,

    hidden row of a k x k window    relu(bias + the weight's rows at the window's inputs that are 1)
    gamma, beta of a larger window  [hidden rows of its k x k taps] W + b, a matrix product
    gamma, beta of a pixel          the row of its window, gathered

The gradient of a gather is a sum over the pixels that took the row. A `Gather` keeps those pixels sorted by row, so
that each sum runs over neighbours: this is the fastest of PyTorch's ways to add on a CPU, and its result does not
depend on the order of threads. Rows are gathered with their channels last, as a channels_last feature map lies in
memory.

Whether this is faster than convolutions depends on the labels and the machine: if every pixel of a map has a window of
its own, nothing is gained. `training_lookup` leaves out levels with too many windows; there gamma and beta are computed
by convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import InputRefusedError
from spade_deploy.lookup.tables import extract_patterns, num_codes
from spade_deploy.lookup.windows import LevelPatterns
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec

MAX_SHARE = 0.5
"""The largest share of distinct windows among a level's pixels: beyond it, convolutions are as fast."""


@dataclass(frozen=True)
class Gather:
    """Which of R rows each of M places takes, and which places took each row."""

    index: Tensor
    """The row that each place takes: M integers in 0..R-1."""

    order: Tensor
    """The M places sorted by their rows, those of row 0 first."""

    offsets: Tensor
    """Where the places of each row begin in `order`: R integers."""

    @classmethod
    def of(cls, index: NDArray[Any], rows: int) -> Gather:
        flat = np.ascontiguousarray(index.reshape(-1))
        ends = np.cumsum(np.bincount(flat, minlength=rows))
        offsets = np.concatenate([[0], ends[:-1]])
        order = np.argsort(flat, kind="stable")
        return cls(*(torch.from_numpy(array.astype(np.int64)) for array in (flat, order, offsets)))

    def to(self, device: torch.device) -> Gather:
        return Gather(*(tensor.to(device, non_blocking=True) for tensor in (self.index, self.order, self.offsets)))

    def rows(self, table: Tensor) -> Tensor:
        """R x C -> M x C."""
        return table.index_select(0, self.index)

    def sums(self, values: Tensor) -> Tensor:
        """M x C -> R x C: for each row, the sum over the places that took it. Half precision is added in float32."""
        return functional.embedding_bag(self.order, values, self.offsets, mode="sum")


@dataclass(frozen=True)
class LevelLookup:
    """The distinct windows of one resolution, U small and P large ones."""

    inputs: Tensor
    """For each small window, the rows that it adds up of the one-hot convolution's weight, which is taken as a matrix
    k*k*L x hidden. The rows of window 0 come first."""

    starts: Tensor
    """Where the rows of each small window begin in `inputs`: U integers."""

    taps: Gather
    """The k*k small windows of each large one; row U stands for a place outside the image."""

    pixels: Gather
    """The large window of each pixel."""

    @classmethod
    def of(cls, labels: LabelSpec, level: LevelPatterns, outside: int) -> LevelLookup:
        """The windows of a level; `outside` is the code of a place outside the image."""
        inputs, starts = _ones(labels, level.codes, outside)
        return cls(
            torch.from_numpy(inputs),
            torch.from_numpy(starts),
            Gather.of(level.patterns, len(level.codes) + 1),
            Gather.of(level.index, len(level.patterns)),
        )

    def to(self, device: torch.device) -> LevelLookup:
        return LevelLookup(
            self.inputs.to(device, non_blocking=True),
            self.starts.to(device, non_blocking=True),
            self.taps.to(device),
            self.pixels.to(device),
        )


@dataclass(frozen=True)
class TrainingLookup:
    """The distinct windows of a batch of label maps."""

    levels: Mapping[int, LevelLookup]
    """The windows of each level by its stride. For a level that is missing, gamma and beta come from convolutions."""

    def to(self, device: torch.device) -> TrainingLookup:
        return TrainingLookup({stride: level.to(device) for stride, level in self.levels.items()})


def training_lookup(
    spec: GeneratorSpec, label: Tensor, instance: Tensor | None = None, *, max_share: float = MAX_SHARE
) -> TrainingLookup:
    """The distinct windows of a batch's label and instance maps N x H x W. They are found on the CPU and stay there.

    max_share: a level with more windows than this share of its pixels is left out; 1.0 leaves none out.
    Raises InputRefusedError for sizes that are no multiple of the spec's stride and ids that the spec does not know,
    and for other architectures than SPADE.
    """
    if spec.architecture is not Architecture.SPADE:
        raise InputRefusedError(f"the modulation of {spec.architecture} is no convolution of the labels alone")
    maps = [None if values is None else values.cpu().numpy() for values in (label, instance)]
    assert maps[0] is not None
    tables = extract_patterns(spec, maps[0], maps[1] if spec.labels.has_edges else None)
    assert tables is not None  # no share was set at which it gives up
    return TrainingLookup(
        {
            stride: LevelLookup.of(spec.labels, level, num_codes(spec))
            for stride, level in tables.levels.items()
            if len(level.patterns) <= max_share * level.index.size
        }
    )


def modulate(normalized: Tensor, shared: nn.Conv2d, gamma: nn.Conv2d, beta: nn.Conv2d, level: LevelLookup) -> Tensor:
    """normalized * (1 + gamma) + beta, N x C x h x w, as the convolutions of the one-hot map would compute it.

    shared, gamma, beta: the convolutions of a SPADE layer; their weights are used, and they never run.
    """
    table = shared.weight.permute(2, 3, 1, 0).flatten(0, 2)  # k*k*L x hidden
    hidden = functional.embedding_bag(level.inputs, table, level.starts, mode="sum") + _bias(shared)
    hidden = functional.relu(hidden).to(_matrix_dtype(hidden))
    outside = hidden.new_zeros(1, hidden.shape[1])
    windows = _take(torch.cat([hidden, outside]), level.taps).view(-1, gamma.weight[0].numel())
    weight = torch.cat([gamma.weight, beta.weight]).permute(0, 2, 3, 1).flatten(1)
    bias = torch.cat([_bias(gamma) + 1, _bias(beta)])  # the 1 of 1 + gamma
    rows = functional.linear(windows, weight, bias)
    dtype = torch.promote_types(normalized.dtype, rows.dtype)
    scale, shift = rows.to(dtype).chunk(2, dim=1)
    count, channels, height, width = normalized.shape
    flat = normalized.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
    modulated: Tensor = _Modulation.apply(flat, scale, shift, level.pixels)  # type: ignore[no-untyped-call]
    return modulated.view(count, height, width, channels).permute(0, 3, 1, 2)


class _Take(torch.autograd.Function):
    """R x C -> M x C: the rows that a `Gather` takes from a table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return gather.rows(table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.gather.sums(grad.contiguous()), None


class _Modulation(torch.autograd.Function):
    """x * scale[pixel] + shift[pixel], where scale and shift are tables of rows.

    The gathered rows are not kept for the backward pass: they are gathered again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, pixels: Gather) -> Tensor:
        scale = scale.contiguous()
        ctx.save_for_backward(x, scale)
        ctx.pixels = pixels
        return pixels.rows(shift.contiguous()).addcmul_(x, pixels.rows(scale))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        grad = grad.contiguous()
        grad_shift = ctx.pixels.sums(grad)
        grad_scale = ctx.pixels.sums(grad * x)
        return ctx.pixels.rows(scale).mul_(grad), grad_scale, grad_shift, None


def _take(table: Tensor, gather: Gather) -> Tensor:
    taken: Tensor = _Take.apply(table, gather)  # type: ignore[no-untyped-call]
    return taken


def _ones(labels: LabelSpec, codes: NDArray[np.int32], outside: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inputs of the one-hot convolution that are 1 in each window, and where the inputs of each window begin.

    An input has the number tap * num_channels + channel. A tap outside the image has no input that is 1, a tap on an
    edge has two.
    """
    taps = np.arange(codes.shape[1], dtype=np.int64) * labels.num_channels
    is_inside = codes != outside
    if not labels.has_edges:
        inputs, is_one = codes + taps, is_inside
    else:
        edge = np.broadcast_to(taps + labels.num_ids, codes.shape)
        inputs = np.stack([codes // 2 + taps, edge], axis=2).reshape(len(codes), -1)
        is_one = np.stack([is_inside, is_inside & (codes % 2 == 1)], axis=2).reshape(len(codes), -1)
    ends = np.cumsum(is_one.sum(axis=1))
    return inputs[is_one].astype(np.int64), np.concatenate([[0], ends[:-1]]).astype(np.int64)


def _matrix_dtype(values: Tensor) -> torch.dtype:
    """The type that a matrix product of these values computes in: their own type, or that of mixed precision if on."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None  # as SPADE's convolutions are built
    return convolution.bias
