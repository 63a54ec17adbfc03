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

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from spade_deploy.export.dense_model import dtype_of, to_outputs
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_shortcut, fold_spade
from spade_deploy.export.spade import (
    levels,
    make_conv,
    make_linear,
    merged_hidden,
    spade_units,
    trained_block,
)
from spade_deploy.networks.spade import LEAKY_SLOPE, NORM_EPS, Spade, SpadeBlock, SpadeGenerator
from spade_deploy.spec import BlockSpec, GeneratorSpec, LabelSpec, NormType

OUTPUTS_NCHW = ("conv_0", "conv_1", "conv_img")
"""Layers whose values are N x C x H x W in this module, too; all others have their channels last, maybe in pairs."""


class WindowSum(nn.Module):
    """A convolution of a one-hot map, over windows of codes: ... x k*k integers -> ... x C."""

    offsets: Tensor

    def __init__(self, weights: ConvWeights, labels: LabelSpec) -> None:
        super().__init__()
        table, rows = _code_table(weights.weight, labels)
        self.table = nn.Parameter(table, requires_grad=False)
        self.bias = nn.Parameter(weights.bias.clone(), requires_grad=False)
        taps = weights.weight.shape[2] * weights.weight.shape[3]
        self.register_buffer("offsets", torch.arange(taps, dtype=torch.int32) * rows, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        summed: Tensor = functional.embedding(codes + self.offsets, self.table).sum(dim=-2) + self.bias
        return summed


class PatternProduct(nn.Module):
    """A convolution of the hidden map, over windows of hidden rows: P x k*k*hidden -> P x C."""

    def __init__(self, weights: ConvWeights) -> None:
        super().__init__()
        self.linear = _matrix(weights.weight.permute(0, 2, 3, 1).flatten(1), weights.bias)

    def forward(self, windows: Tensor) -> Tensor:
        rows: Tensor = self.linear(windows)
        return rows


class LookupSpade(nn.Module):
    """x gamma' + beta', channels last. Where no batch norm is folded, the caller has normalised x.

    x is the first factor, since engines that walk the graph depth first then finish x before they gather the windows.
    """

    def __init__(self, layer: Spade) -> None:
        super().__init__()
        gamma, beta = _halves(fold_spade(layer))
        self.gamma, self.beta = PatternProduct(gamma), PatternProduct(beta)

    def forward(self, x: Tensor, windows: Tensor, index: Tensor) -> Tensor:
        return x * _spread(self.gamma(windows), index) + _spread(self.beta(windows), index)


class LookupShortcut(nn.Module):
    """Ws (x gamma' + beta') as Ws (x gamma') + table: the trained `norm_s` and `conv_s` in one."""

    def __init__(self, block: SpadeBlock) -> None:
        super().__init__()
        gamma, beta = fold_shortcut(block.norm_s, block.conv_s)
        self.gamma, self.beta = PatternProduct(gamma), PatternProduct(beta)
        self.projection = _matrix(fold_conv(block.conv_s).weight.flatten(1), None)

    def forward(self, x: Tensor, windows: Tensor, index: Tensor) -> Tensor:
        projected: Tensor = self.projection(x * _spread(self.gamma(windows), index))
        return projected + _spread(self.beta(windows), index)


class LookupBlock(nn.Module):
    """A residual block: N x h x w x C -> N x H x W x C', both with channels last; H = 2 h where the block doubles.

    The result of a block that doubles is in pairs.

    hidden: for each of its layers (norm_0, norm_1, norm_s), the hidden rows of its level, (U + 1) x hidden.
    """

    def __init__(self, block: SpadeBlock, spec: BlockSpec, norm: NormType) -> None:
        super().__init__()
        self.doubles = spec.doubles
        self.normalizes = norm is NormType.INSTANCE
        self.norm_0, self.norm_1 = LookupSpade(block.norm_0), LookupSpade(block.norm_1)
        self.conv_0, self.conv_1 = make_conv(fold_conv(block.conv_0)), make_conv(fold_conv(block.conv_1))
        self.conv_s = LookupShortcut(block) if spec.has_shortcut else None

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
            shortcut = self.conv_s(normalized, _windows(hidden[2], patterns, x), small_index)
        y = _convolve(self.conv_0, self.norm_0(normalized, _windows(hidden[0], patterns, x), small_index))
        y = _convolve(self.conv_1, self.norm_1(self._normalize(y), _windows(hidden[1], patterns, y), index))
        result: Tensor = shortcut + (y.view(batch, height, 2, width, 2, -1) if self.doubles else y)
        return result

    def _normalize(self, x: Tensor) -> Tensor:
        """Instance norm. It comes before the map is doubled, since a doubled map has the same statistics."""
        if not self.normalizes:
            return x
        # The sums of squares of a half-precision map overflow: the statistics are always float32.
        wide = x.float() if x.dtype is torch.float16 else x
        axes = list(range(1, x.dim() - 1))
        centred = wide - wide.mean(dim=axes, keepdim=True)
        normalized = centred * torch.rsqrt((centred * centred).mean(dim=axes, keepdim=True) + NORM_EPS)
        return normalized.to(x.dtype)


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
        spec = self.spec = generator.spec
        if spec.z_dim is None:
            self.fc: nn.Module = WindowSum(fold_conv(generator.fc), spec.labels)
        else:
            assert isinstance(generator.fc, nn.Linear)
            self.fc = _StyleMap(generator.fc, spec)
        for stride, names in levels(spec).items():
            weights = merged_hidden([trained_block(generator, name) for name in names])
            self.add_module(f"level_{stride}", nn.Sequential(WindowSum(weights, spec.labels), nn.ReLU()))
        for block in spec.blocks:
            self.add_module(block.name, LookupBlock(trained_block(generator, block.name), block, spec.norm))
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        for name in spade_units(spec):
            half = fp16 and name not in keep_fp32
            self.get_submodule(name).to(torch.float16 if half else dtype)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(inputs)
        x: Tensor | None = self.fc(rest.pop(0)) if self.spec.z_dim is None else None
        tables = {stride: rest[3 * k : 3 * k + 3] for k, stride in enumerate(levels(self.spec))}
        x = x if x is not None else self.fc(rest[-1].to(dtype_of(self.fc)))
        hidden: dict[int, list[Tensor]] = {}
        for block in self.spec.blocks:
            codes, patterns, index = tables[block.stride]
            if block.stride not in hidden:
                hidden[block.stride] = self._hidden(block.stride, codes)
            count = 3 if block.has_shortcut else 2
            mine, hidden[block.stride] = hidden[block.stride][:count], hidden[block.stride][count:]
            x = self.get_submodule(block.name)(x, mine, patterns, index)
        x = functional.leaky_relu(x, LEAKY_SLOPE).to(dtype_of(self.conv_img))
        return to_outputs(self.conv_img(merged(x).permute(0, 3, 1, 2)))

    def _hidden(self, stride: int, codes: Tensor) -> list[Tensor]:
        """For each layer of a level, its hidden rows and a row of zeros for outside the image: (U + 1) x hidden."""
        hidden = self.get_submodule(f"level_{stride}")(codes)
        outside = torch.zeros(1, hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        return list(torch.split(torch.cat([hidden, outside]), self.spec.hidden_channels, dim=1))


class _StyleMap(nn.Module):
    """The VAE variant's first layer: N x z_dim -> N x h x w x C."""

    def __init__(self, layer: nn.Linear, spec: GeneratorSpec) -> None:
        super().__init__()
        self.linear = make_linear(layer)
        self.shape = (16 * spec.base_channels, spec.latent_height, spec.latent_width)

    def forward(self, z: Tensor) -> Tensor:
        flat: Tensor = self.linear(z)
        return flat.view(-1, *self.shape).permute(0, 2, 3, 1)


def _code_table(weight: Tensor, labels: LabelSpec) -> tuple[Tensor, int]:
    """A one-hot convolution's weight, out x L x k x k, as a table of rows; and the number of rows in a block.

    The table has a block for each tap. A block has a row for each code, then a row of zeros for 'outside the image'.
    """
    by_tap = weight.permute(2, 3, 1, 0).flatten(0, 1)  # k*k x L x out
    ids = by_tap[:, : labels.num_ids]
    if labels.has_edges:
        edge = by_tap[:, labels.num_ids :]
        ids = torch.stack([ids, ids + edge], dim=2).flatten(1, 2)  # code 2 * id + edge
    table = functional.pad(ids, (0, 0, 0, 1))
    return table.flatten(0, 1), table.shape[1]


def _halves(weights: ConvWeights) -> tuple[ConvWeights, ConvWeights]:
    first, second = (ConvWeights(*pair) for pair in zip(weights.weight.chunk(2), weights.bias.chunk(2), strict=True))
    return first, second


def _matrix(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return linear.requires_grad_(False)


def _windows(hidden: Tensor, patterns: Tensor, x: Tensor) -> Tensor:
    """The hidden rows of every pattern: (U + 1) x hidden rows, P x k*k of their numbers -> P x k*k*hidden.

    x: the map that they modulate. They depend on it, by a zero that is added, so that no engine gathers them before x
    is there. ONNX Runtime begins with what depends on no map, and so held the windows and rows of all levels at once.
    """
    zero = x.flatten()[:1].to(patterns.dtype) * 0
    return functional.embedding(patterns + zero, hidden).flatten(1)


def _spread(rows: Tensor, index: Tensor) -> Tensor:
    """P x C rows -> index's shape x C."""
    return functional.embedding(index, rows)


def merged(x: Tensor) -> Tensor:
    """A map in pairs, N x h x 2 x w x 2 x C, as N x 2h x 2w x C; one with four axes stays as it is."""
    return x.flatten(3, 4).flatten(1, 2) if x.dim() == 6 else x


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """leaky_relu and a 3 x 3 convolution: a map with its channels last, maybe in pairs -> N x H x W x C'."""
    y: Tensor = conv(merged(functional.leaky_relu(x, LEAKY_SLOPE)).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)
