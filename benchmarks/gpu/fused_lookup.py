"""The lookup module and its finder with the kernels of `triton_kernels.py`, in fewer passes over memory.

`FusedLookup` takes the weights of an export's lookup module. gamma' and beta' of a layer are one product; the gathers
of both, the modulation and the leaky ReLU are one kernel. `FusedFinder` takes the place of `PatternFinder`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpu import triton_kernels as kernels
from spade_deploy.errors import ConfigError
from spade_deploy.export.dense_model import dtype_of, edge_map, to_outputs
from spade_deploy.export.lookup import LookupBlock, LookupModel
from spade_deploy.export.pattern_finder import PatternFinder, pixel_codes
from spade_deploy.export.spade import DeployModel, levels
from spade_deploy.lookup.tables import modulated_channels, num_codes
from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.spec import NormType


class FusedLookup(nn.Module):
    """`LookupModel` for batch norm, without a style. gathers: the windows of hidden rows are never made."""

    def __init__(self, lookup: LookupModel, *, gathers: bool = False) -> None:
        super().__init__()
        spec = self.spec = lookup.spec
        if spec.norm is NormType.INSTANCE or spec.z_dim is not None:
            raise ConfigError("the fused lookup is written for batch norm and without a style vector")
        self.fc, self.conv_img = lookup.fc, lookup.conv_img
        self.hidden = nn.ModuleDict({str(stride): _part(lookup, f"level_{stride}")[0] for stride in levels(spec)})
        self.blocks = nn.ModuleList(
            FusedBlock(lookup.get_submodule(block.name), block.hidden_channels, gathers) for block in spec.blocks
        )

    def forward(self, latent: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor]:
        by_stride = {stride: tables[3 * k : 3 * k + 3] for k, stride in enumerate(levels(self.spec))}
        x, hidden, column = self.fc(latent), {}, dict.fromkeys(by_stride, 0)
        for block, spec in zip(self.blocks, self.spec.blocks, strict=True):
            codes, patterns, index = by_stride[spec.stride]
            if spec.stride not in hidden:
                hidden[spec.stride] = self.hidden_rows(spec.stride, codes)
            x, column[spec.stride] = block(x, hidden[spec.stride], column[spec.stride], patterns, index)
        x = functional.leaky_relu(x, LEAKY_SLOPE).to(dtype_of(self.conv_img))
        return to_outputs(self.conv_img(x.permute(0, 3, 1, 2)))

    def hidden_rows(self, stride: int, codes: Tensor) -> Tensor:
        summed = _part(self.hidden, str(stride))
        return kernels.hidden_rows(codes, summed.table, summed.bias)


def _part(module: nn.Module, name: str) -> Any:
    """A submodule whose own attributes are used: `get_submodule` knows it as a plain module."""
    return module.get_submodule(name)


class FusedBlock(nn.Module):
    """A `LookupBlock`."""

    def __init__(self, block: Any, hidden_channels: int, gathers: bool) -> None:
        super().__init__()
        assert isinstance(block, LookupBlock)
        self.doubles, self.width, self.gathers = block.doubles, hidden_channels, gathers
        self.conv_0, self.conv_1 = block.conv_0, block.conv_1
        self.table_0, self.table_1 = both_tables(block.norm_0), both_tables(block.norm_1)
        self.table_s = both_tables(block.conv_s) if block.conv_s is not None else None
        self.projection = block.conv_s.projection if block.conv_s is not None else None

    def forward(self, x: Tensor, hidden: Tensor, column: int, patterns: Tensor, index: Tensor) -> tuple[Tensor, int]:
        dtype = self.conv_0.weight.dtype
        x, hidden = x.to(dtype).contiguous(), hidden.to(dtype)
        tables = [
            self._product(layer, hidden, column + number * self.width, patterns)
            for number, layer in enumerate(filter(None, (self.table_0, self.table_1, self.table_s)))
        ]
        channels = x.shape[-1]
        y = self._convolve(self.conv_0, kernels.modulate(x, tables[0], index, beta=channels, slope=LEAKY_SLOPE))
        y = self._convolve(self.conv_1, kernels.modulate(y, tables[1], index, beta=y.shape[-1], slope=LEAKY_SLOPE))
        column += len(tables) * self.width
        if self.projection is not None:
            projected = self.projection(kernels.modulate(x, tables[2], index))
            return kernels.join(projected, y, tables[2], index, channels), column
        if self.doubles:
            x = x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        return x + y, column

    def _product(self, layer: nn.Linear, hidden: Tensor, column: int, patterns: Tensor) -> Tensor:
        if self.gathers:
            return kernels.gathered_product(hidden, patterns, column, layer.weight, layer.bias)
        part = hidden[:, column : column + self.width].contiguous()
        rows: Tensor = layer(functional.embedding(patterns, part).flatten(1))
        return rows

    def _convolve(self, conv: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = conv(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).contiguous()


def both_tables(layer: Any) -> nn.Linear:
    """gamma' and beta' of a layer as one product."""
    gamma, beta = layer.gamma.linear, layer.beta.linear
    weight = torch.cat([gamma.weight, beta.weight])
    both = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device)
    both.weight.data.copy_(weight)
    both.bias.data.copy_(torch.cat([gamma.bias, beta.bias]))
    return both.requires_grad_(False)


class FusedFinder(nn.Module):
    """A `PatternFinder` of two kernels a level. Its tables are its own memory: the next run overwrites them."""

    def __init__(self, finder: PatternFinder) -> None:
        super().__init__()
        self.finder, self.spec = finder, finder.spec
        strides = list(modulated_channels(self.spec))
        parts = [_part(finder, f"level_{stride}") for stride in strides]
        device = parts[0].own_index.device
        self.capacity = torch.tensor(
            [rows for part in parts for rows in (part.small.capacity, part.large.capacity)],
            dtype=torch.int32,
            device=device,
        )
        self.counters = torch.zeros_like(self.capacity)
        self.buffers_of = {}
        for stride, part in zip(strides, parts, strict=True):
            rows = part.small.uniform.new_zeros(part.num_codes, part.small.taps)
            patterns = part.large.uniform.new_zeros(part.large.count, part.large.taps)
            if not part.is_whole:
                rows[: part.outside] = part.small.uniform
            patterns[: part.outside] = part.large.uniform
            if part.is_all_own:
                patterns = part.own_patterns.clone()
            self.buffers_of[stride] = (rows, patterns, torch.empty_like(part.own_index), part.own_index.clone())

    def forward(self, label: Tensor, instance: Tensor | None = None) -> tuple[Tensor, ...]:
        codes = self.codes(label, instance)
        by_stride, excess = self.tables(codes, tuple(self.buffers_of))
        return (*self.finder.latent(codes), *(table for tables in by_stride.values() for table in tables), excess)

    def codes(self, label: Tensor, instance: Tensor | None) -> Tensor:
        return pixel_codes(self.spec, label, instance).contiguous()

    def tables(
        self, codes: Tensor, strides: Collection[int]
    ) -> tuple[dict[int, tuple[Tensor, Tensor, Tensor]], Tensor]:
        """(codes, patterns and index of these levels, what found no place at each of all levels)."""
        self.counters.zero_()
        outside, found = num_codes(self.spec), {}
        for number, (stride, (rows, patterns, small, index)) in enumerate(self.buffers_of.items()):
            if stride not in strides:
                continue
            part = _part(self.finder, f"level_{stride}")
            shared = {"kernel": part.kernel, "outside": outside}
            first, second = self.counters[2 * number : 2 * number + 1], self.counters[2 * number + 1 : 2 * number + 2]
            kernels.find_windows(codes, rows, small, first, border=outside, of_rows=False, own=part.is_whole, **shared)
            if not part.is_whole:
                kernels.find_windows(
                    small, patterns, index, second, border=len(rows), of_rows=True, own=part.is_all_own, **shared
                )
            found[stride] = (rows, patterns, index)
        return found, (self.counters - self.capacity).clamp(min=0)


class Hybrid(nn.Module):
    """label (and instance) -> (pixels, image, excess): lookup at some strides, convolutions at all others.

    A coarse level has a row for almost every pixel: there a convolution computes the same without tables.
    """

    def __init__(
        self, finder: FusedFinder, lookup: LookupModel, dense: DeployModel, strides: Collection[int], *, gathers: bool
    ) -> None:
        super().__init__()
        self.finder, self.dense, self.strides = finder, dense, tuple(strides)
        self.fused = FusedLookup(lookup, gathers=gathers)

    def forward(self, label: Tensor, instance: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        ids, edges = label.float(), None if instance is None else edge_map(instance)
        tables, excess = self.finder.tables(self.finder.codes(label, instance), self.strides)
        x, maps = self.dense._latent(ids, edges, None), {}
        rows, column = {}, dict.fromkeys(self.strides, 0)
        for block, spec in zip(self.fused.blocks, self.fused.spec.blocks, strict=True):
            stride = spec.stride
            if stride in self.strides:
                codes, patterns, index = tables[stride]
                if stride not in rows:
                    rows[stride] = self.fused.hidden_rows(stride, codes)
                wide = x.permute(0, 2, 3, 1)
                wide, column[stride] = block(wide, rows[stride], column[stride], patterns, index)
                x = wide.permute(0, 3, 1, 2)
                continue
            if stride not in maps:
                maps[stride] = self.dense._hidden(stride, ids, edges, None)
            if spec.doubles:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            count = 3 if spec.has_shortcut else 2
            mine, maps[stride] = maps[stride][:count], maps[stride][count:]
            x = self.dense.get_submodule(spec.name)(x, mine)
        last = self.dense.conv_img
        return *to_outputs(last(functional.leaky_relu(x, LEAKY_SLOPE).to(dtype_of(last)))), excess
