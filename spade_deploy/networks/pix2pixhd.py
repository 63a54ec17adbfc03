"""The global generator of pix2pixHD (Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with
Conditional GANs", CVPR 2018), a baseline that SPADE's paper compares with.

Its segmap goes in once, at the front, and every normalisation after that washes some of it out. With batch norm and
spectral norm it is the stronger baseline of SPADE's paper, pix2pixHD++.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.spade import parameter_free_norm
from spade_deploy.networks.spectral_norm import spectral_norm
from spade_deploy.spec import PIX2PIXHD_BLOCKS, PIX2PIXHD_EDGE_KERNEL, PIX2PIXHD_HALVINGS, GeneratorSpec, NormType

BLOCK_NAMES = tuple(f"block_{index}" for index in range(PIX2PIXHD_BLOCKS))
"""The residual blocks at the coarsest resolution."""


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
    """segmap -> image. G1 in figure 3 of the paper: front end, residual blocks, transposed convolutions."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        first = mirrored_conv(spec.labels.num_channels, spec.base_channels, PIX2PIXHD_EDGE_KERNEL, bias=False)
        self.conv_in = NormalizedConv(spec, first)
        for name, width in down_widths(spec).items():
            halving = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
            self.add_module(name, NormalizedConv(spec, halving))
        for name in BLOCK_NAMES:
            self.add_module(name, ResidualBlock(spec, spec.base_channels << PIX2PIXHD_HALVINGS))
        for name, width in up_widths(spec).items():
            doubling = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
            self.add_module(name, NormalizedConv(spec, doubling))
        self.conv_img = mirrored_conv(spec.base_channels, 3, PIX2PIXHD_EDGE_KERNEL, bias=True)

    def forward(self, segmap: Tensor, z: Tensor | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W multiples of 16 from 32 on. z: None. Returns N x 3 x H x W in [-1, 1]."""
        if z is not None:
            raise ValueError("the global generator takes no style vector")
        x = functional.relu(self.conv_in(segmap))
        for name in down_widths(self.spec):
            x = functional.relu(self.get_submodule(name)(x))
        for name in BLOCK_NAMES:
            x = self.get_submodule(name)(x)
        for name in up_widths(self.spec):
            x = functional.relu(self.get_submodule(name)(x))
        return torch.tanh(self.conv_img(x))


def down_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The halving convolutions in the order they run, with their input channels; they have twice as many outputs."""
    return {f"down_{index}": spec.base_channels << index for index in range(PIX2PIXHD_HALVINGS)}


def up_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The doubling convolutions in the order they run, with their input channels; they have half as many outputs."""
    return {f"up_{index}": spec.base_channels << (PIX2PIXHD_HALVINGS - index) for index in range(PIX2PIXHD_HALVINGS)}


def mirrored_conv(in_channels: int, out_channels: int, kernel: int, *, bias: bool) -> nn.Conv2d:
    """A convolution that keeps the size of its input, which it pads with its mirror image."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)
