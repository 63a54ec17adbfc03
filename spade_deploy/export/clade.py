"""The modules that are recorded for CLADE, dense and lookup. The trained module stays untouched.

They differ from `networks/clade.py` in these ways, all exact up to float rounding: spectral norm is folded, batch norm
is folded into the tables (`fold.py`), and the segmap is made inside the graph. gamma' and beta' of a pixel are gathered
by its label, in both graphs. CLADE-ICPE's positions p scale gamma and beta at every pixel. There

    (x s + t) gamma (1 + wg p) + beta (1 + wb p)

is written out, s and t being those of the batch norm, which has no single table to fold into.

The lookup graph keeps its channels last and never makes the map of twice the size, as
`lookup.py` says; its windows are single pixels, so that its tables hold the codes of the map itself. With an edge
channel a code is (label, edge), and what a norm appends is a column of its table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import DenseModel, dtype_of, instance_norm
from spade_deploy.export.fold import fold_clade, fold_conv, norm_scale_shift, unfolded_clade
from spade_deploy.export.lookup import LookupBlock, LookupModel, spread
from spade_deploy.export.spade import make_conv, make_first_layer
from spade_deploy.export.window_rows import make_matrix
from spade_deploy.networks.clade import Clade, CladeBlock, CladeGenerator
from spade_deploy.networks.spade import LEAKY_SLOPE, SpadeGenerator
from spade_deploy.spec import GeneratorSpec


class PositionScale(nn.Module):
    """Positions -> what gamma and beta are multiplied with: 1 plus a weighted sum of the two, plus a bias, each."""

    def __init__(self, layer: Clade) -> None:
        super().__init__()
        affine = layer.class_specified_affine
        gamma, beta = (fold_conv(affine.get_submodule(name)) for name in ("dist_conv_w", "dist_conv_b"))
        self.gamma_weight, self.gamma_bias = _frozen(gamma.weight.view(1, 2)), _frozen(gamma.bias + 1)
        self.beta_weight, self.beta_bias = _frozen(beta.weight.view(1, 2)), _frozen(beta.bias + 1)
        scale, shift = norm_scale_shift(layer.param_free_norm)
        self.scale, self.shift = _frozen(scale), _frozen(shift)

    def normalized(self, x: Tensor, axis: int) -> Tensor:
        """x with the batch norm. axis: that of the channels."""
        shape = (-1, 1, 1) if axis == 1 else (-1,)
        normalized: Tensor = x * self.scale.view(*shape) + self.shift.view(*shape)
        return normalized

    def factors(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """N x h x w x 2 positions -> what gamma, and what beta, is multiplied with, N x h x w x 1."""
        return (
            functional.linear(position, self.gamma_weight, self.gamma_bias),
            functional.linear(position, self.beta_weight, self.beta_bias),
        )


class DeployClade(nn.Module):
    """x gamma'[label] + beta'[label], and with an edge map a channel of that map times a number plus another.

    With positions, N x h x w x 2, gamma and beta are scaled, and the batch norm is not folded.
    """

    def __init__(self, layer: Clade) -> None:
        super().__init__()
        self.positions = PositionScale(layer) if layer.has_positions else None
        gamma, beta = unfolded_clade(layer) if layer.has_positions else fold_clade(layer)
        self.gamma, self.beta = _frozen(gamma), _frozen(beta)
        self.normalizes = isinstance(layer.param_free_norm, nn.InstanceNorm2d)
        self.has_edges = layer.inst_conv is not None
        if layer.inst_conv is not None:
            edge = fold_conv(layer.inst_conv)
            self.edge_weight, self.edge_bias = _frozen(edge.weight.view(1)), _frozen(edge.bias)

    def forward(self, x: Tensor, label: Tensor, edges: Tensor | None, position: Tensor | None) -> Tensor:
        if self.normalizes:
            x = instance_norm(x)
        gamma, beta = (functional.embedding(label, table).permute(0, 3, 1, 2) for table in (self.gamma, self.beta))
        if self.positions is not None:
            assert position is not None  # an input of this graph
            of_gamma, of_beta = (each.permute(0, 3, 1, 2) for each in self.positions.factors(position))
            x, gamma, beta = self.positions.normalized(x, axis=1), gamma * of_gamma, beta * of_beta
        modulated = x * gamma + beta
        if edges is None:
            return modulated
        return torch.cat([modulated, edges * self.edge_weight + self.edge_bias], dim=1)


class DeployCladeBlock(nn.Module):
    """A residual block that reads the label map and the edge map at its own resolution."""

    def __init__(self, block: CladeBlock) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = DeployClade(block.norm_0), DeployClade(block.norm_1)
        self.conv_0, self.conv_1 = make_conv(fold_conv(block.conv_0)), make_conv(fold_conv(block.conv_1))
        self.has_shortcut = block.has_shortcut
        if block.has_shortcut:
            self.norm_s = DeployClade(block.norm_s)
            self.conv_s = make_conv(fold_conv(block.conv_s), bias=False)

    def forward(self, x: Tensor, label: Tensor, edges: Tensor | None, position: Tensor | None) -> Tensor:
        dtype = self.conv_0.weight.dtype
        x = x.to(dtype)
        edges = None if edges is None else edges.to(dtype)
        seen = (label, edges, None if position is None else position.to(dtype))
        shortcut = self.conv_s(self.norm_s(x, *seen)) if self.has_shortcut else x
        y = self.conv_0(functional.leaky_relu(self.norm_0(x, *seen), LEAKY_SLOPE))
        y = self.conv_1(functional.leaky_relu(self.norm_1(y, *seen), LEAKY_SLOPE))
        result: Tensor = shortcut + y
        return result


class DeployCladeModel(DenseModel):
    """CLADE's dense graph. Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`."""

    def __init__(
        self,
        generator: CladeGenerator,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = generator.spec
        super().__init__(spec)
        self.fc = make_first_layer(generator)
        for block in spec.blocks:
            self.add_module(block.name, DeployCladeBlock(_trained_block(generator, block.name)))
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        self.set_types(clade_units(spec), fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        spec, dtype = self.spec, dtype_of(self.fc)
        position = None
        if spec.has_positions:
            assert edges is not None  # the positions are its last channels
            position = edges[:, -2:].permute(0, 2, 3, 1)
            edges = edges[:, :1] if spec.labels.has_edges else None
        if z is not None:
            flat: Tensor = self.fc(z.to(dtype))
            x = flat.view(-1, spec.latent_channels, spec.latent_height, spec.latent_width)
        else:
            x = self.fc(self.segmap(spec.stride, label, edges).to(dtype))
        ids = label.to(torch.int32)
        for block in spec.blocks:
            if block.doubles:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            step = block.stride
            picked = None if edges is None else edges[:, :, ::step, ::step]
            here = None if position is None else position[:, ::step, ::step]
            x = self.get_submodule(block.name)(x, ids[:, ::step, ::step], picked, here)
        logits: Tensor = self.conv_img(functional.leaky_relu(x, LEAKY_SLOPE).to(dtype_of(self.conv_img)))
        return logits


def _looked_up(
    layer: LookupClade | LookupCladeShortcut, x: Tensor, seen: tuple[Tensor, Tensor | None], index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x as it is modulated, and gamma and beta of every pixel."""
    codes, position = seen
    gamma, beta = (spread(functional.embedding(codes, table), index) for table in (layer.gamma, layer.beta))
    if layer.positions is None:
        return x, gamma, beta
    assert position is not None  # an input of this graph
    of_gamma, of_beta = layer.positions.factors(position.view(*index.shape, 2))
    return layer.positions.normalized(x, axis=-1), gamma * of_gamma, beta * of_beta


class LookupClade(nn.Module):
    """x gamma'[code] + beta'[code], channels last, and with an edge map a channel of its own for each code."""

    def __init__(self, layer: Clade) -> None:
        super().__init__()
        self.positions = PositionScale(layer) if layer.has_positions else None
        tables = unfolded_clade(layer) if layer.has_positions else fold_clade(layer)
        gamma, beta = (_by_code(layer, table) for table in tables)
        self.gamma, self.beta = _frozen(gamma), _frozen(beta)
        self.has_edges = layer.inst_conv is not None
        if self.has_edges:
            self.appended = _frozen(_appended(layer))

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor | None], index: Tensor) -> Tensor:
        """seen: the code of each pattern, P, and the position of each pixel, N x H x W x 2, if positions are seen."""
        codes, _ = seen
        x, gamma, beta = _looked_up(self, x, seen, index)
        modulated = x * gamma + beta
        if not self.has_edges:
            return modulated
        return torch.cat([modulated, spread(functional.embedding(codes, self.appended), index)], dim=-1)


class LookupCladeShortcut(nn.Module):
    """Ws [x gamma' + beta', appended] as Ws (x gamma') + table: the trained `norm_s` and `conv_s` in one.

    With positions, which scale beta and not what is appended, the latter has a table of its own.
    """

    def __init__(self, block: CladeBlock) -> None:
        super().__init__()
        layer, weight = block.norm_s, fold_conv(block.conv_s).weight.flatten(1)
        self.positions = PositionScale(layer) if layer.has_positions else None
        tables = unfolded_clade(layer) if layer.has_positions else fold_clade(layer)
        gamma, beta = (_by_code(layer, table) for table in tables)
        channels = gamma.shape[1]
        rows, self.appended = beta @ weight[:, :channels].t(), None
        if layer.inst_conv is not None:
            appended = _appended(layer) @ weight[:, channels:].t()
            if layer.has_positions:
                self.appended = _frozen(appended)
            else:
                rows = rows + appended
        self.gamma, self.beta = _frozen(gamma), _frozen(rows)
        self.projection = make_matrix(weight[:, :channels], None)

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor | None], index: Tensor) -> Tensor:
        codes, _ = seen
        x, gamma, beta = _looked_up(self, x, seen, index)
        projected: Tensor = self.projection(x * gamma) + beta
        return (
            projected
            if self.appended is None
            else projected + spread(functional.embedding(codes, self.appended), index)
        )


class LookupCladeBlock(LookupBlock):
    """A residual block whose norms look up the code of each pattern, which is a pixel of the map.

    hidden holds the position of each pixel, N x H x W x 2, where positions are seen, and is empty otherwise.
    """

    norm_type: ClassVar[Any] = LookupClade
    shortcut_type: ClassVar[Any] = LookupCladeShortcut

    def windows(self, layer: int, hidden: list[Tensor], patterns: Tensor, x: Tensor) -> Any:
        """The codes of the patterns, P integers, and the positions."""
        return patterns, hidden[0] if hidden else None


class LookupCladeModel(LookupModel):
    """CLADE's lookup graph. Its inputs are those of `LookupModel`, with windows of one pixel."""

    def _add_blocks(self, generator: SpadeGenerator) -> list[str]:
        spec = generator.spec
        for block in spec.blocks:
            self.add_module(block.name, LookupCladeBlock(_trained_block(generator, block.name), block, spec.norm))
        return clade_units(spec)[1:-1]

    def _run_blocks(
        self, x: Tensor, tables: Mapping[int, Sequence[Tensor]], z: Tensor | None, position: Tensor | None
    ) -> Tensor:
        for block in self.spec.blocks:
            codes, patterns, index = tables[block.stride]
            of_patterns = functional.embedding(patterns.flatten(), codes).flatten()
            step = block.stride
            here = [] if position is None else [position[:, ::step, ::step]]
            x = self.get_submodule(block.name)(x, here, of_patterns, index)
        return x


def clade_units(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    return ["fc", *(block.name for block in spec.blocks), "conv_img"]


def _trained_block(generator: SpadeGenerator, name: str) -> CladeBlock:
    block = generator.get_submodule(name)
    assert isinstance(block, CladeBlock)
    return block


def _by_code(layer: Clade, table: Tensor) -> Tensor:
    """A table of rows by class -> by code: with an edge map every class has two codes, without an edge and with one."""
    return table if layer.inst_conv is None else table.repeat_interleave(2, dim=0)


def _appended(layer: Clade) -> Tensor:
    """What a norm appends, by code: codes x 1."""
    assert layer.inst_conv is not None
    edge = fold_conv(layer.inst_conv)
    both = torch.stack([edge.bias, edge.bias + edge.weight.view(1)])
    return both.repeat(layer.num_ids, 1)


def _frozen(values: Tensor) -> Any:
    return nn.Parameter(values.clone(), requires_grad=False)
