"""The module that is recorded for the generators of pix2pixHD. The trained module stays untouched.

It differs from `networks/pix2pixhd.py` in these ways, which are exact up to float rounding: spectral norm is folded,
batch norm is folded into the convolution before it (`fold.py`), and the segmap is made inside the graph. Instance norm
stays, with float32 statistics. Every unit and every named value has the name of the trained layer that computes it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import DenseModel, dtype_of, instance_norm, unfilled
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_normalized
from spade_deploy.networks.pix2pixhd import (
    GlobalGenerator,
    NormalizedConv,
    ResidualBlock,
    block_names,
    down_widths,
    enhancer_names,
    run_layers,
    up_widths,
)
from spade_deploy.spec import GeneratorSpec


class DeployInstanceConv(nn.Module):
    """instance_norm(conv(x))."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(self.conv(x))


class DeployResidualBlock(nn.Module):
    """x + conv_1(relu(conv_0(x))), each with its norm."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = deploy_normalized(block.conv_0), deploy_normalized(block.conv_1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_1(functional.relu(self.conv_0(x)))
        return y


class DeployGlobal(DenseModel):
    """The global generator, with its enhancer if it has one.

    Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`.
    """

    def __init__(
        self,
        generator: GlobalGenerator,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(generator.spec)
        for name in pix2pixhd_units(generator.spec)[:-1]:
            trained = generator.get_submodule(name)
            if isinstance(trained, ResidualBlock):
                self.add_module(name, DeployResidualBlock(trained))
            else:
                assert isinstance(trained, NormalizedConv)
                self.add_module(name, deploy_normalized(trained))
        self.conv_img = make_like(generator.conv_img, fold_conv(generator.conv_img), bias=True)
        self.set_types(pix2pixhd_units(generator.spec), fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            unit = self.get_submodule(name)
            found: Tensor = unit(x.to(dtype_of(unit)))
            return found

        segmap = self.segmap(1, label, edges)
        if dtype_of(self.get_submodule("conv_in")) is torch.float64:
            segmap = segmap.double()  # the means of an enhancer's smaller map are no float32 numbers
        x = run_layers(self.spec, segmap, layer)
        logits: Tensor = self.conv_img(x.to(dtype_of(self.conv_img)))
        return logits


def pix2pixhd_units(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    enhancer = ["enhancer_in", "enhancer_down", *enhancer_names(spec), "enhancer_up"] if spec.enhancer_blocks else []
    return ["conv_in", *down_widths(spec), *block_names(spec), *up_widths(spec), *enhancer, "conv_img"]


def pix2pixhd_stages(spec: GeneratorSpec) -> list[str]:
    """Values that the deploy model and the trained generator both compute, in the order they are computed."""
    stages, blocks = [], {*block_names(spec), *enhancer_names(spec)}
    for name in pix2pixhd_units(spec):
        stages += [f"{name}.conv_0", f"{name}.conv_1", name] if name in blocks else [name]
    return stages


def deploy_normalized(layer: NormalizedConv) -> nn.Module:
    """One convolution where the norm folds into it; otherwise the convolution and the norm."""
    if isinstance(layer.norm, nn.InstanceNorm2d):
        return DeployInstanceConv(make_like(layer.conv, fold_conv(layer.conv), bias=False))
    return make_like(layer.conv, fold_normalized(layer), bias=True)


def make_like(
    conv: nn.Conv2d | nn.ConvTranspose2d, weights: ConvWeights, *, bias: bool
) -> nn.Conv2d | nn.ConvTranspose2d:
    """A frozen float64 convolution of the same kind, stride and padding with other weights."""
    padding = conv.padding if not isinstance(conv.padding, str) else 0
    made: nn.Conv2d | nn.ConvTranspose2d
    if isinstance(conv, nn.ConvTranspose2d):
        made = unfilled(
            nn.ConvTranspose2d,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            conv.output_padding,
            bias=bias,
            dtype=torch.float64,
        )
    else:
        made = unfilled(
            nn.Conv2d,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            padding_mode=conv.padding_mode,
            bias=bias,
            dtype=torch.float64,
        )
    made.weight.data.copy_(weights.weight)
    if made.bias is not None:
        made.bias.data.copy_(weights.bias)
    return made.requires_grad_(False)
