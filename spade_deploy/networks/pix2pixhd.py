"""The generators of pix2pixHD (Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with
Conditional GANs", CVPR 2018), a baseline that SPADE's paper compares with.

Its segmap goes in once, at the front, and every normalisation after that washes some of it out. With batch norm and
spectral norm it is the stronger baseline of SPADE's paper, pix2pixHD++.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.spade import parameter_free_norm
from spade_deploy.networks.spectral_norm import spectral_norm
from spade_deploy.spec import FEATURE_CHANNELS, PIX2PIXHD_EDGE_KERNEL, GeneratorSpec, NormType


class NormalizedConv(nn.Module):
    """norm(conv(x)); batch norm has a learned scale and offset for each channel, as published.

    The convolution has no bias, which the norm would take away again.
    """

    def __init__(self, spec: GeneratorSpec, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = spectral_norm(conv) if spec.spectral_norm else conv
        self.norm = parameter_free_norm(spec.norm, conv.out_channels)
        is_affine = spec.norm is not NormType.INSTANCE
        self.scale = nn.Parameter(torch.ones(conv.out_channels)) if is_affine else None
        self.offset = nn.Parameter(torch.zeros(conv.out_channels)) if is_affine else None

    def forward(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.norm(self.conv(x))
        if self.scale is None or self.offset is None:
            return normalized
        return normalized * self.scale[:, None, None] + self.offset[:, None, None]


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))): He et al. 2016 without an activation after the sum."""

    def __init__(self, spec: GeneratorSpec, channels: int) -> None:
        super().__init__()
        self.conv_0 = NormalizedConv(spec, mirrored_conv(channels, channels, 3, bias=False))
        self.conv_1 = NormalizedConv(spec, mirrored_conv(channels, channels, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_1(functional.relu(self.conv_0(x)))
        return y


class GlobalGenerator(nn.Module):
    """segmap -> image. G1 in figure 3 of the paper: front end, residual blocks, transposed convolutions.

    With an enhancer, G2 of that figure, it sees the segmap at half its size. Instead of its last convolution, its
    features are added to those that the enhancer's front end makes of the full segmap.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.labels.num_channels + (FEATURE_CHANNELS if spec.has_features else 0)
        base = spec.base_channels
        widest = global_width(spec) << spec.halvings
        first = mirrored_conv(channels, global_width(spec), PIX2PIXHD_EDGE_KERNEL, bias=False)
        self.conv_in = NormalizedConv(spec, first)
        for name, width in down_widths(spec).items():
            self.add_module(name, NormalizedConv(spec, halving_conv(width)))
        for name in block_names(spec):
            self.add_module(name, ResidualBlock(spec, widest))
        for name, width in up_widths(spec).items():
            self.add_module(name, NormalizedConv(spec, doubling_conv(width)))
        if spec.enhancer_blocks:
            entrance = mirrored_conv(channels, base, PIX2PIXHD_EDGE_KERNEL, bias=False)
            self.enhancer_in = NormalizedConv(spec, entrance)
            self.enhancer_down = NormalizedConv(spec, halving_conv(base))
            for name in enhancer_names(spec):
                self.add_module(name, ResidualBlock(spec, 2 * base))
            self.enhancer_up = NormalizedConv(spec, doubling_conv(2 * base))
        self.conv_img = mirrored_conv(base, 3, PIX2PIXHD_EDGE_KERNEL, bias=True)

    def forward(self, segmap: Tensor, z: Tensor | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W as `spec.side_rule` says. z: None. Returns N x 3 x H x W in [-1, 1].

        For a model with instance features the segmap has them as its last channels; where it lacks them they are zeros.
        """
        if z is not None:
            raise ValueError("the global generator takes no style vector")
        if self.spec.has_features and segmap.shape[1] == self.spec.labels.num_channels:
            segmap = functional.pad(segmap, (0, 0, 0, 0, 0, FEATURE_CHANNELS))
        x = run_layers(self.spec, segmap, lambda name, x: self.get_submodule(name)(x))
        return torch.tanh(self.conv_img(x))


def run_layers(spec: GeneratorSpec, segmap: Tensor, layer: Callable[[str, Tensor], Tensor]) -> Tensor:
    """What the last convolution sees. layer: what the layer of a name makes of its input."""
    x = functional.relu(layer("conv_in", half_size(segmap) if spec.enhancer_blocks else segmap))
    for name in down_widths(spec):
        x = functional.relu(layer(name, x))
    for name in block_names(spec):
        x = layer(name, x)
    for name in up_widths(spec):
        x = functional.relu(layer(name, x))
    if not spec.enhancer_blocks:
        return x
    fine = functional.relu(layer("enhancer_down", functional.relu(layer("enhancer_in", segmap))))
    x = x.to(fine.dtype) + fine
    for name in enhancer_names(spec):
        x = layer(name, x)
    return functional.relu(layer("enhancer_up", x))


def half_size(segmap: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels around every second pixel, of those that are inside the map."""
    return functional.avg_pool2d(segmap, 3, stride=2, padding=1, count_include_pad=False)


def global_width(spec: GeneratorSpec) -> int:
    """The width of the global generator's first and last features: twice as wide with an enhancer."""
    return spec.base_channels * (2 if spec.enhancer_blocks else 1)


def block_names(spec: GeneratorSpec) -> tuple[str, ...]:
    """The residual blocks at the coarsest resolution."""
    return tuple(f"block_{index}" for index in range(spec.residual_blocks))


def enhancer_names(spec: GeneratorSpec) -> tuple[str, ...]:
    """The residual blocks of the enhancer; none without one."""
    return tuple(f"enhancer_block_{index}" for index in range(spec.enhancer_blocks))


def down_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The halving convolutions in the order they run, with their input channels; they have twice as many outputs."""
    return {f"down_{index}": global_width(spec) << index for index in range(spec.halvings)}


def up_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The doubling convolutions in the order they run, with their input channels; they have half as many outputs."""
    return {f"up_{index}": global_width(spec) << (spec.halvings - index) for index in range(spec.halvings)}


def halving_conv(width: int) -> nn.Conv2d:
    """A convolution from `width` channels to twice as many, at half the size."""
    return nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)


def doubling_conv(width: int) -> nn.ConvTranspose2d:
    """A transposed convolution from `width` channels to half as many, at twice the size."""
    return nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=False)


def mirrored_conv(in_channels: int, out_channels: int, kernel: int, *, bias: bool) -> nn.Conv2d:
    """A convolution that keeps the size of its input, which it pads with its mirror image."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)
