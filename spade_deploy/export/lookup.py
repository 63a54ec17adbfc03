"""The module that is recorded for the lookup graph: pattern tables in, pixels out. It computes what `DeployModel` does.

gamma' and beta' of a pixel depend on nothing but the labels of a (2k - 1) x (2k - 1) window, and a label map has far
fewer distinct windows than pixels. So, at each resolution (`lookup/tables.py` makes the tables):

    hidden row of a k x k window     relu(bias + sum over taps t of table[t, code at t])     one for each row of `codes`
    gamma', beta' of a larger window [hidden rows of its k x k taps] W' + b'                 one for each of `patterns`
    gamma', beta' of a pixel         that row, by `index`

A convolution of a one-hot map is such a sum of table rows; outside the image the one-hot map is zero, a table row of
zeros, and so is the hidden map, a hidden row of zeros. With an edge channel a code is (label, edge), and its table row
is the sum of both.

Rows are gathered with their channels last, so between the 3 x 3 convolutions everything is N x H x W x C: a transpose
of gamma' and beta' would cost more than all products of tables. A feature map is doubled by a broadcast inside the
modulation, so that the map of twice the size is never made. There a map is *in pairs*, N x h x 2 x w x 2 x C, and what
follows elementwise (activation, residual) is done before its axes are merged: then engines make it one step. The
learned shortcut's 1 x 1 convolution is a matrix product, and its beta' goes through it beforehand
(`fold.fold_shortcut`).

Sub-modules carry the trained names as in `DeployModel`, and the units of precision are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import dtype_of, to_outputs
from spade_deploy.export.exact_norm import standardized
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_shortcut, fold_spade
from spade_deploy.export.spade import (
    level_hidden,
    levels,
    make_conv,
    make_linear,
    merged_hidden,
    spade_units,
    trained_block,
)
from spade_deploy.export.window_rows import PatternProduct, WindowSum, make_matrix
from spade_deploy.networks.spade import LEAKY_SLOPE, NORM_EPS, ModulatedBlock, Spade, SpadeBlock, SpadeGenerator, attach
from spade_deploy.spec import BlockSpec, GeneratorSpec, NormType

OUTPUTS_NCHW = ("conv_0", "conv_1", "conv_img")
"""Layers whose values are N x C x H x W in this module, too; all others have their channels last, maybe in pairs."""


class LookupSpade(nn.Module):
    """x gamma' + beta', channels last. Where no batch norm is folded, the caller has normalised x.

    x is the first factor, since engines that walk the graph depth first then finish x before they gather the windows.
    """

    def __init__(self, layer: Spade) -> None:
        super().__init__()
        gamma, beta = _halves(fold_spade(layer))
        self.gamma, self.beta = PatternProduct(gamma), PatternProduct(beta)

    def forward(self, x: Tensor, windows: Tensor, index: Tensor) -> Tensor:
        return x * spread(self.gamma(windows), index) + spread(self.beta(windows), index)


class LookupShortcut(nn.Module):
    """Ws (x gamma' + beta') as Ws (x gamma') + table: the trained `norm_s` and `conv_s` in one."""

    def __init__(self, block: SpadeBlock) -> None:
        super().__init__()
        gamma, beta = fold_shortcut(block.norm_s, block.conv_s)
        self.gamma, self.beta = PatternProduct(gamma), PatternProduct(beta)
        self.projection = make_matrix(fold_conv(block.conv_s).weight.flatten(1), None)

    def forward(self, x: Tensor, windows: Tensor, index: Tensor) -> Tensor:
        projected: Tensor = self.projection(x * spread(self.gamma(windows), index))
        return projected + spread(self.beta(windows), index)


class LookupBlock(nn.Module):
    """A residual block: N x h x w x C -> N x H x W x C', both with channels last; H = 2 h where the block doubles.

    The result of a block that doubles is in pairs.

    hidden: for each of its layers (norm_0, norm_1, norm_s), the hidden rows of its level, (U + 1) x hidden.
    """

    norm_type: ClassVar[Any] = LookupSpade
    """Makes what stands for a trained norm; it takes a map, the windows and the index."""
    shortcut_type: ClassVar[Any] = LookupShortcut
    """Makes what stands for the norm and the convolution of a learned shortcut; it takes the same."""

    def __init__(self, block: ModulatedBlock[Any], spec: BlockSpec, norm: NormType) -> None:
        super().__init__()
        self.doubles = spec.doubles
        self.normalizes = norm is NormType.INSTANCE
        self.norm_0, self.norm_1 = type(self).norm_type(block.norm_0), type(self).norm_type(block.norm_1)
        self.conv_0, self.conv_1 = make_conv(fold_conv(block.conv_0)), make_conv(fold_conv(block.conv_1))
        self.conv_s = type(self).shortcut_type(block) if spec.has_shortcut else None

    def forward(self, x: Tensor, hidden: list[Tensor], patterns: Tensor, index: Tensor) -> Tensor:
        dtype = self.conv_0.weight.dtype
        x, hidden = x.to(dtype), [rows.to(dtype) for rows in hidden]
        x = merged(x)
        batch, height, width, channels = x.shape
        small_index = index
        if (
            self.doubles
        ):  # every value of x stands for 2 x 2 pixels: it gets an axis of size one for the rows and one for the columns
            x = x.view(batch, height, 1, width, 1, channels)
            small_index = index.view(batch, height, 2, width, 2)
        normalized = self._normalize(x)
        shortcut = x
        if self.conv_s is not None:
            shortcut = self.conv_s(normalized, self.windows(2, hidden, patterns, x), small_index)
        y = _convolve(self.conv_0, self.norm_0(normalized, self.windows(0, hidden, patterns, x), small_index))
        y = _convolve(self.conv_1, self.norm_1(self._normalize(y), self.windows(1, hidden, patterns, y), index))
        result: Tensor = shortcut + (y.view(batch, height, 2, width, 2, -1) if self.doubles else y)
        return result

    def windows(self, layer: int, hidden: list[Tensor], patterns: Tensor, x: Tensor) -> Any:
        """What a layer looks its patterns up by: P x k*k*hidden. x: the map that is modulated."""
        return _windows(hidden[layer], patterns, x)

    def _normalize(self, x: Tensor) -> Tensor:
        """Instance norm. It comes before the map is doubled, since a doubled map has the same statistics."""
        return standardized(x, range(1, x.dim() - 1), NORM_EPS) if self.normalizes else x


class LookupModel(nn.Module):
    """Pattern tables (and style) -> (pixels, image).

    Inputs are those of `lookup.tables.lookup_tensors`, in that order, all int32 but the style: latent N x h x w x 9
    (not with a VAE); for each level from the coarsest on codes U x k*k, patterns P x k*k, index N x H/s x W/s; then
    z N x z_dim float32 for a VAE. `DenseModel` says what the outputs, fp16, keep_fp32 and dtype are.
    """

    def __init__(
        self,
        generator: SpadeGenerator,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = generator.spec
        self.fc = self._first_layer(generator)
        units = self._add_blocks(generator)
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        for name in ("fc", *units, "conv_img"):
            half = fp16 and name not in keep_fp32
            self.get_submodule(name).to(torch.float16 if half else dtype)
        self.eval()

    def _first_layer(self, generator: SpadeGenerator) -> nn.Module:
        if self.spec.is_dynamic:
            return WindowSum(fold_conv(generator.fc), self.spec.labels)
        assert isinstance(generator.fc, nn.Linear)
        return _StyleMap(generator.fc, self.spec)

    def _add_blocks(self, generator: SpadeGenerator) -> list[str]:
        """Make all that lies between `fc` and `conv_img`; returns the names of its units."""
        spec = generator.spec
        for stride, names in levels(spec).items():
            weights = merged_hidden([trained_block(generator, name) for name in names])
            self.add_module(f"level_{stride}", self._level(weights))
        for block in spec.blocks:
            attach(self, block.name, LookupBlock(trained_block(generator, block.name), block, spec.norm))
        return spade_units(spec)[1:-1]

    def _level(self, weights: ConvWeights) -> nn.Module:
        """What makes the hidden rows of a level of its codes."""
        return nn.Sequential(WindowSum(weights, self.spec.labels), nn.ReLU())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(inputs)
        z = rest.pop() if self.spec.z_dim is not None else None
        position = rest.pop().permute(0, 2, 3, 1) if self.spec.has_positions else None
        latent = rest.pop(0) if self.spec.is_dynamic else None
        tables = {stride: rest[3 * k : 3 * k + 3] for k, stride in enumerate(levels(self.spec))}
        x = functional.leaky_relu(self._run_blocks(self._start(latent, z), tables, z, position), LEAKY_SLOPE)
        return to_outputs(self.conv_img(merged(x.to(dtype_of(self.conv_img))).permute(0, 3, 1, 2)))

    def _start(self, latent: Tensor | None, z: Tensor | None) -> Tensor:
        """The first layer's map, N x h x w x C, of its codes or of the style."""
        seen = latent if z is None else z.to(dtype_of(self.fc))
        x: Tensor = self.fc(seen)
        return x

    def _run_blocks(
        self, x: Tensor, tables: Mapping[int, Sequence[Tensor]], z: Tensor | None, position: Tensor | None
    ) -> Tensor:
        """The latent map -> the last block's map. tables: codes, patterns and index of each level by its stride.

        position: N x H x W x 2, in CLADE-ICPE.
        """
        hidden: dict[int, list[Tensor]] = {}
        for block in self.spec.blocks:
            codes, patterns, index = tables[block.stride]
            if block.stride not in hidden:
                hidden[block.stride] = self._hidden(block.stride, codes, z)
            count = 3 if block.has_shortcut else 2
            mine, hidden[block.stride] = hidden[block.stride][:count], hidden[block.stride][count:]
            x = self.get_submodule(block.name)(x, mine, patterns, index)
        return x

    def _hidden(self, stride: int, codes: Tensor, z: Tensor | None) -> list[Tensor]:
        """For each layer of a level, its hidden rows and a row of zeros for outside the image: (U + 1) x hidden."""
        hidden = self._rows(f"level_{stride}", codes, z)
        outside = torch.zeros(1, hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        return list(torch.split(torch.cat([hidden, outside]), level_hidden(self.spec, stride), dim=1))

    def _rows(self, level: str, codes: Tensor, z: Tensor | None) -> Tensor:
        rows: Tensor = self.get_submodule(level)(codes)
        return rows


class _StyleMap(nn.Module):
    """The VAE variant's first layer: N x z_dim -> N x h x w x C."""

    def __init__(self, layer: nn.Linear, spec: GeneratorSpec) -> None:
        super().__init__()
        self.linear = make_linear(layer)
        self.shape = (spec.latent_channels, spec.latent_height, spec.latent_width)

    def forward(self, z: Tensor) -> Tensor:
        flat: Tensor = self.linear(z)
        return flat.view(-1, *self.shape).permute(0, 2, 3, 1)


def _halves(weights: ConvWeights) -> tuple[ConvWeights, ConvWeights]:
    first, second = (ConvWeights(*pair) for pair in zip(weights.weight.chunk(2), weights.bias.chunk(2), strict=True))
    return first, second


def _windows(hidden: Tensor, patterns: Tensor, x: Tensor) -> Tensor:
    """The hidden rows of every pattern: (U + 1) x hidden rows, P x k*k of their numbers -> P x k*k*hidden.

    x: the map that they modulate. They depend on it, by a zero that is added, so that no engine gathers them before x
    is there. ONNX Runtime begins with what depends on no map, and so held the windows and rows of all levels at once.
    """
    zero = x.flatten()[:1].to(patterns.dtype) * 0
    return functional.embedding(patterns + zero, hidden).flatten(1)


def spread(rows: Tensor, index: Tensor) -> Tensor:
    """P x C rows -> index's shape x C."""
    return functional.embedding(index, rows)


def merged(x: Tensor) -> Tensor:
    """A map in pairs, N x h x 2 x w x 2 x C, as N x 2h x 2w x C; one with four axes stays as it is."""
    return x.flatten(3, 4).flatten(1, 2) if x.dim() == 6 else x


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """leaky_relu and a 3 x 3 convolution: a map with its channels last, maybe in pairs -> N x H x W x C'."""
    y: Tensor = conv(merged(functional.leaky_relu(x, LEAKY_SLOPE)).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)
