"""Find the windows of label maps with tensor operations of fixed shapes: label maps in, the lookup graph's tables out.

`lookup.tables.extract_patterns` finds the distinct windows on the CPU by sorting. Here nothing is sorted and nothing
waits for the host, so that it runs on a GPU, inside a CUDA graph, and as part of an ONNX graph. The tables have more
rows, and give the same image:

- A window of one code inside the image has the row of that code, which all such windows share.
- Every other window has a row of its own. Their rows follow one another: a window's row is the number of such windows
  before it, a prefix sum of flags. (A k x k window has more than one code where its largest code is not its smallest.)
- There is a fixed number of rows. Windows that find no place are counted in `excess`, which the caller must look at:
  the image is right only where all counts are zero.

Where a level is so small that a row for every pixel costs no more, every pixel has its own and nothing can be missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import ConfigError
from spade_deploy.export.dense_model import edge_map
from spade_deploy.lookup.tables import LATENT_KERNEL, modulated_channels, num_codes
from spade_deploy.spec import GeneratorSpec, GraphKind

CROSSINGS = 27.0
"""How often a line across a label map may cross from one region into another, by default. Over 13 COCO-Stuff maps at
256, 512 and 1024 pixels the most was 24."""
_SUM_ROW = 256
"""Flags that one product sums: with more, their totals would not be exact in TensorFloat-32, which ends at 2048."""
_EDGE_WIDTH = 1.75
"""By how many pixels an edge channel widens the surroundings of a boundary; measured on the same maps."""


@dataclass(frozen=True)
class Capacity:
    """Rows for the windows of more than one code at one level, over the whole batch."""

    codes: int
    """For k x k windows. Where it is the number of pixels, every pixel has its own row."""
    patterns: int
    """For (2k - 1) x (2k - 1) windows; as above."""


def default_capacities(
    spec: GeneratorSpec, batch: int, height: int, width: int, crossings: float = CROSSINGS
) -> dict[int, Capacity]:
    """The capacity of each level by stride, for maps whose lines cross `crossings` boundaries at most.

    A window that reaches r pixels to each side has one code with probability exp(-crossings (2 r) / side), where
    boundaries lie at random; with that one number the shares measured on COCO-Stuff are met within a tenth.
    """
    found = {}
    for stride in modulated_channels(spec):
        pixels = batch * (height // stride) * (width // stride)
        side = math.sqrt(height * width) / stride
        reach = spec.window_kernel - 1
        edges = _EDGE_WIDTH if spec.labels.has_edges else 0.0
        shares = (1 - math.exp(-crossings * (across + edges) / side) for across in (reach, 2 * reach))
        found[stride] = Capacity(*(math.ceil(share * pixels) for share in shares))
    return found


def needed_capacities(spec: GeneratorSpec, label: Tensor, instance: Tensor | None = None) -> dict[int, Capacity]:
    """By stride, how many windows of more than one code these maps have."""
    codes, found = pixel_codes(spec, label, instance), {}
    for stride in modulated_channels(spec):
        picked = codes[:, ::stride, ::stride]
        counts = []
        for kernel in (spec.window_kernel, 2 * spec.window_kernel - 1):
            counts.append(int(_is_mixed(_pad(picked, kernel // 2, num_codes(spec)), kernel).sum()))
        found[stride] = Capacity(*counts)
    return found


class PatternFinder(nn.Module):
    """label (and instance) -> (the tables in the order of `lookup.tables.lookup_tensors` but for the style, excess).

    label: batch x height x width, the ids of the spec. instance: int32 of the same shape, iff the spec has edges.
    excess: int32, two numbers for each level: k x k windows and larger windows that found no place.
    capacities: by stride; `default_capacities` where None. by_products: prefix sums by matrix products, for runtimes
    whose CumSum is slow. Raises ConfigError for sizes that the spec does not take.
    """

    def __init__(
        self,
        spec: GeneratorSpec,
        batch: int,
        height: int,
        width: int,
        capacities: Mapping[int, Capacity] | None = None,
        *,
        by_products: bool = False,
    ) -> None:
        super().__init__()
        if GraphKind.LOOKUP not in spec.graph_kinds:
            raise ConfigError(f"a {spec.architecture} generator has no pattern tables: nothing in it is looked up")
        if spec.noise_channels or spec.has_positions:
            raise ConfigError(
                f"the patterns of {spec.architecture} with noise or positions, which are an image's own, are found"
                " on the CPU"
            )
        for name, size in (("height", height), ("width", width)):
            if not spec.takes_side(size):
                raise ConfigError(f"`{name}`: {size} is not a {spec.side_rule}")
        self.spec, self.shape = spec, (batch, height, width)
        given = capacities or default_capacities(spec, batch, height, width)
        for stride in modulated_channels(spec):
            shape = (batch, height // stride, width // stride)
            level = _Level(num_codes(spec), spec.window_kernel, shape, given[stride], by_products)
            self.add_module(f"level_{stride}", level)

    def forward(self, label: Tensor, instance: Tensor | None = None) -> tuple[Tensor, ...]:
        codes = pixel_codes(self.spec, label, instance)
        tables, excess = self.latent(codes), []
        for stride in modulated_channels(self.spec):
            found = self.get_submodule(f"level_{stride}")(codes[:, ::stride, ::stride])
            tables += found[:3]
            excess += found[3:]
        return (*tables, torch.stack(excess))

    def latent(self, codes: Tensor) -> list[Tensor]:
        """The codes around each pixel of the latent map; nothing for a model with a style vector."""
        if not self.spec.is_dynamic:
            return []
        picked = codes[:, :: self.spec.stride, :: self.spec.stride]
        return [_neighbours(_pad(picked, LATENT_KERNEL // 2, num_codes(self.spec)), LATENT_KERNEL)]


class _Level(nn.Module):
    """The tables of one level: codes N x h x w -> (codes, patterns, index, codes in excess, patterns in excess)."""

    own_patterns: Tensor
    own_index: Tensor

    def __init__(
        self, outside: int, kernel: int, shape: tuple[int, int, int], capacity: Capacity, by_products: bool
    ) -> None:
        super().__init__()
        self.outside, self.kernel, self.border = outside, kernel, kernel // 2
        pixels = math.prod(shape)
        self.is_whole = _pays_no_search(outside, capacity.codes, pixels)
        """Every pixel has its own row of `codes`."""
        self.is_all_own = self.is_whole or _pays_no_search(outside, capacity.patterns, pixels)
        """Every pixel has its own row of `patterns`."""
        self.small = _Rows(outside, kernel, shape, capacity.codes, by_products)
        self.large = _Rows(outside, kernel, shape, capacity.patterns, by_products)
        self.num_codes = pixels if self.is_whole else self.small.count
        every = torch.arange(pixels, dtype=torch.int32).view(shape)
        windows = _neighbours(_pad(every, self.border, pixels), kernel).flatten(0, 2)
        self.register_buffer("own_index", every, persistent=False)
        self.register_buffer("own_patterns", windows, persistent=False)

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        padded = _pad(codes, self.border, self.outside)
        none = torch.zeros((), dtype=torch.int32, device=codes.device)
        if self.is_whole:
            return _neighbours(padded, self.kernel).flatten(0, 2), self.own_patterns, self.own_index, none, none
        small, rows, excess = self.small(_is_mixed(padded, self.kernel), codes, padded)
        around = _pad(small, self.border, self.num_codes)
        if self.is_all_own:
            return rows, _neighbours(around, self.kernel).flatten(0, 2), self.own_index, excess, none
        # A larger window has more than one code where one of its k x k windows has, or where it leaves the image.
        is_mixed = functional.max_pool2d(around.to(torch.float32), self.kernel, 1) >= self.outside
        index, patterns, beyond = self.large(is_mixed, codes, around)
        return rows, patterns, index, excess, beyond


class _Rows(nn.Module):
    """Number the windows of a map: those of one code by their code, each other window by a row of its own."""

    starts: Tensor
    offsets: Tensor
    uniform: Tensor

    def __init__(
        self, outside: int, kernel: int, shape: tuple[int, int, int], capacity: int, by_products: bool
    ) -> None:
        super().__init__()
        self.sums = _PrefixSum() if by_products else None
        images, height, width = shape
        self.outside, self.shape, self.taps = outside, shape, kernel * kernel
        self.capacity = max(capacity, 1)
        self.count = outside + self.capacity
        tall, wide = height + kernel - 1, width + kernel - 1
        positions = torch.arange(images * tall * wide).view(images, tall, wide)
        self.register_buffer("starts", positions[:, :height, :width].flatten(), persistent=False)
        offsets = positions[0, :kernel, :kernel].flatten()
        self.register_buffer("offsets", offsets, persistent=False)
        by_code = torch.arange(outside, dtype=torch.int32)[:, None].expand(outside, self.taps).contiguous()
        self.register_buffer("uniform", by_code, persistent=False)

    def forward(self, is_mixed: Tensor, codes: Tensor, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(The row of every pixel N x h x w, what stands in the rows, how many windows found no place).

        padded: the map of which the rows are windows, with its border.
        """
        flags = is_mixed.flatten()
        before = torch.cumsum(flags, 0, dtype=torch.int32) if self.sums is None else self.sums(flags)
        place = (before - 1).clamp(max=self.capacity)  # one more than there is stands for none
        last = self.count - 1
        row = torch.where(flags, (place + self.outside).clamp(max=last), codes.flatten())
        # torch.where would bring a number from the host, which a CUDA graph does not take.
        target = place.masked_fill(~flags, self.capacity).to(torch.int64)
        first = self.starts.new_zeros(self.capacity + 1).scatter(0, target, self.starts)[: self.capacity]
        picked = (first[:, None] + self.offsets).flatten()
        own = padded.flatten().index_select(0, picked).view(self.capacity, self.taps)
        excess = (before[-1] - self.capacity).clamp(min=0)
        return row.view(self.shape), torch.cat([self.uniform, own]), excess


def pixel_codes(spec: GeneratorSpec, label: Tensor, instance: Tensor | None) -> Tensor:
    """As `lookup.tables.pixel_codes`, with tensors."""
    codes = label.to(torch.int32)
    if not spec.labels.has_edges:
        return codes
    assert instance is not None
    return codes * 2 + edge_map(instance)[:, 0].to(torch.int32)


def _is_mixed(padded: Tensor, kernel: int) -> Tensor:
    """Where a window has more than one value; outside the image there is another."""
    wide = padded.to(torch.float32)  # pools have no integers; codes and rows are far below 2^24
    return functional.max_pool2d(wide, kernel, 1) != -functional.max_pool2d(-wide, kernel, 1)


class _PrefixSum(nn.Module):
    """Flags -> at each, how many are set up to it; int32. Exact for up to 2^24 flags, with TensorFloat-32, too.

    ONNX Runtime's CUDA provider computes a CumSum in a time that grows with the square of its length, and TensorRT
    before 10.8 in a loop. Here flags are summed in rows by a product with a triangle, and so are the rows' totals,
    which are small integers; the totals of those, of which there are few, are summed in float32 one by one.
    """

    triangle: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("triangle", torch.ones(_SUM_ROW, _SUM_ROW).triu(), persistent=False)

    def forward(self, flags: Tensor) -> Tensor:
        within = self._rows(flags.to(torch.float32)) @ self.triangle
        totals = within[:, -1]
        above = self._rows(totals) @ self.triangle
        largest = above[:, -1]
        # Masked and summed, not multiplied: these totals have more digits than TensorFloat-32.
        count = largest.shape[0]
        earlier = torch.ones(count, count, device=flags.device).tril(-1)
        base = (earlier * largest).sum(dim=1, keepdim=True)
        before = (above + base).flatten()[: totals.shape[0]] - totals
        return (within + before[:, None]).flatten()[: flags.shape[0]].to(torch.int32)

    def _rows(self, values: Tensor) -> Tensor:
        return functional.pad(values, (0, -values.shape[0] % _SUM_ROW)).view(-1, _SUM_ROW)


def _pays_no_search(outside: int, capacity: int, pixels: int) -> bool:
    return outside + capacity >= pixels


def _pad(values: Tensor, by: int, with_value: int) -> Tensor:
    # In float32, which holds every code and row: ONNX Runtime's CUDA provider pads no integers.
    wide = functional.pad(values.to(torch.float32), (by, by, by, by), value=float(with_value))
    return wide.to(torch.int32)


def _neighbours(padded: Tensor, kernel: int) -> Tensor:
    """N x h+k-1 x w+k-1 -> the windows N x h x w x k*k, taps row by row."""
    height, width = padded.shape[1] - kernel + 1, padded.shape[2] - kernel + 1
    taps = [padded[:, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
    return torch.stack(taps, dim=3)
