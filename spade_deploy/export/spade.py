"""The module that is recorded for SPADE: label ids in, pixels out, all folded. The trained module stays untouched.

It differs from `networks/spade.py` in these ways, all exact up to float rounding:
- spectral and batch norm are folded (`fold.py`);
- gamma and beta of a layer are one convolution, and the `mlp_shared` of all layers at one resolution are one;
- the label map is picked at a stride before the one-hot, instead of resizing the segmap: nearest resizing at an
  integer ratio *is* a strided pick;
- one-hot and edge map are made inside the graph (`dense_model.py`).

Sub-modules carry the names of the trained ones (`up_0`, `up_0.norm_1`, `up_0.conv_s`), and each computes what its
namesake computes, so that values of the graph can be compared with the reference one by one.
A *unit* is a part that has a precision of its own: `fc`, a level of hidden maps, a block, or `conv_img`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import DenseModel, dtype_of, instance_norm, unfilled
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_spade
from spade_deploy.networks.spade import (
    LEAKY_SLOPE,
    Spade,
    SpadeBlock,
    SpadeGenerator,
    attach,
)
from spade_deploy.spec import GeneratorSpec, NormType


class DeploySpade(nn.Module):
    """x gamma' + beta' (batch norm folded), or instance_norm(x) gamma' + beta'."""

    def __init__(self, layer: Spade, norm: NormType) -> None:
        super().__init__()
        self.modulation = make_conv(fold_spade(layer))
        self.normalizes = norm is NormType.INSTANCE

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        gamma, beta = self.modulation(hidden).chunk(2, dim=1)
        if self.normalizes:
            x = instance_norm(x)
        modulated: Tensor = x * gamma + beta
        return modulated


class DeployBlock(nn.Module):
    """A residual block that reads hidden maps, in the order norm_0, norm_1, norm_s, instead of a segmap."""

    def __init__(self, block: SpadeBlock, norm: NormType) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = DeploySpade(block.norm_0, norm), DeploySpade(block.norm_1, norm)
        self.conv_0, self.conv_1 = make_conv(fold_conv(block.conv_0)), make_conv(fold_conv(block.conv_1))
        self.has_shortcut = block.has_shortcut
        if block.has_shortcut:
            self.norm_s = DeploySpade(block.norm_s, norm)
            self.conv_s = make_conv(fold_conv(block.conv_s), bias=False)

    def forward(self, x: Tensor, hidden: list[Tensor]) -> Tensor:
        dtype = self.conv_0.weight.dtype
        x = x.to(dtype)
        hidden = [part.to(dtype) for part in hidden]
        shortcut = self.conv_s(self.norm_s(x, hidden[2])) if self.has_shortcut else x
        y = self.conv_0(functional.leaky_relu(self.norm_0(x, hidden[0]), LEAKY_SLOPE))
        y = self.conv_1(functional.leaky_relu(self.norm_1(y, hidden[1]), LEAKY_SLOPE))
        result: Tensor = shortcut + y
        return result


class DeployModel(DenseModel):
    """SPADE. Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`."""

    def __init__(
        self,
        generator: SpadeGenerator,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spec = generator.spec
        super().__init__(spec)
        self.fc = make_first_layer(generator)
        for stride, names in levels(spec).items():
            blocks = [trained_block(generator, name) for name in names]
            self.add_module(f"level_{stride}", nn.Sequential(make_conv(merged_hidden(blocks)), nn.ReLU()))
        for block in spec.blocks:
            attach(self, block.name, DeployBlock(trained_block(generator, block.name), spec.norm))
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        self.set_types(spade_units(spec), fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        x = self._latent(label, edges, z)
        hidden: dict[int, list[Tensor]] = {}
        for block in self.spec.blocks:
            stride = block.stride
            if stride not in hidden:
                hidden[stride] = self._hidden(stride, label, edges, z)
            if block.doubles:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            count = 3 if block.has_shortcut else 2
            mine, hidden[stride] = hidden[stride][:count], hidden[stride][count:]
            x = self.get_submodule(block.name)(x, mine)
        # The cast is the last step before a unit begins, since `precision.py` watches a unit's inputs as they are cast.
        logits: Tensor = self.conv_img(functional.leaky_relu(x, LEAKY_SLOPE).to(dtype_of(self.conv_img)))
        return logits

    def _latent(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        spec, dtype = self.spec, dtype_of(self.fc)
        if not spec.is_dynamic:
            assert z is not None  # an input of this graph
            flat: Tensor = self.fc(z.to(dtype))
            return flat.view(-1, spec.latent_channels, spec.latent_height, spec.latent_width)
        latent: Tensor = self.fc(self._seen(spec.stride, label, edges, z).to(dtype))
        return latent

    def _seen(self, stride: int, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        """What the first layer and the modulation see: the segmap, and in OASIS before it the noise at every pixel."""
        segmap = self.segmap(stride, label, edges)
        if not self.spec.noise_channels:
            return segmap
        assert z is not None  # an input of this graph
        return torch.cat([segmap[:, :1] * 0 + z.to(segmap.dtype)[:, :, None, None], segmap], dim=1)

    def _hidden(self, stride: int, label: Tensor, edges: Tensor | None, z: Tensor | None) -> list[Tensor]:
        level = self.get_submodule(f"level_{stride}")
        maps = level(self._seen(stride, label, edges, z).to(dtype_of(level)))
        return list(maps.split(level_hidden(self.spec, stride), dim=1))


def levels(spec: GeneratorSpec) -> dict[int, list[str]]:
    """stride -> the blocks that run at it, in order."""
    by_stride: dict[int, list[str]] = {}
    for block in spec.blocks:
        by_stride.setdefault(block.stride, []).append(block.name)
    return by_stride


def level_hidden(spec: GeneratorSpec, stride: int) -> int:
    """The hidden channels of each layer that runs at a stride: all blocks there are of one level."""
    return next(block.hidden_channels for block in spec.blocks if block.stride == stride)


def spade_units(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    names = ["fc"]
    for stride, blocks in levels(spec).items():
        names += [f"level_{stride}", *blocks]
    return [*names, "conv_img"]


def spade_stages(spec: GeneratorSpec) -> list[str]:
    """Values that the deploy model and the trained generator both compute, in the order they are computed."""
    stages = ["fc"]
    for block in spec.blocks:
        shortcut = ["norm_s", "conv_s"] if block.has_shortcut else []
        stages += [f"{block.name}.{part}" for part in (*shortcut, "norm_0", "conv_0", "norm_1", "conv_1")]
        stages.append(block.name)
    return [*stages, "conv_img"]


def merged_hidden(blocks: Iterable[SpadeBlock]) -> ConvWeights:
    """The `mlp_shared` of all layers of these blocks as one convolution, in the order they run."""
    layers = [layer for block in blocks for layer in _spade_layers(block)]
    parts = [fold_conv(layer.mlp_shared[0]) for layer in layers]
    return ConvWeights(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))


def _spade_layers(block: SpadeBlock) -> list[Spade]:
    return [block.norm_0, block.norm_1, *([block.norm_s] if block.has_shortcut else [])]


def make_conv(weights: ConvWeights, *, bias: bool = True) -> nn.Conv2d:
    """A frozen float64 convolution of stride 1 that keeps the size of its input."""
    out_channels, in_channels, size, _ = weights.weight.shape
    conv = unfilled(nn.Conv2d, in_channels, out_channels, size, padding=size // 2, bias=bias, dtype=torch.float64)
    conv.weight.data.copy_(weights.weight)
    if conv.bias is not None:
        conv.bias.data.copy_(weights.bias)
    return conv.requires_grad_(False)


def make_first_layer(generator: SpadeGenerator) -> nn.Module:
    """`fc`, of the segmap or of the style vector, folded."""
    if generator.spec.is_dynamic:
        return make_conv(fold_conv(generator.fc))
    assert isinstance(generator.fc, nn.Linear)
    return make_linear(generator.fc)


def make_linear(layer: nn.Linear) -> nn.Linear:
    """A frozen float64 copy."""
    copy = unfilled(nn.Linear, layer.in_features, layer.out_features, dtype=torch.float64)
    copy.load_state_dict(layer.state_dict())
    return copy.requires_grad_(False)


def trained_block(generator: SpadeGenerator, name: str) -> SpadeBlock:
    """The trained block of that name."""
    block = generator.get_submodule(name)
    assert isinstance(block, SpadeBlock)
    return block
