"""The multi-scale PatchGAN discriminator (Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with
Conditional GANs", CVPR 2018, section 3.2; spectral instance norm as in SPADE, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.networks.spectral_norm import spectral_norm
from spade_deploy.spec import DiscriminatorSpec

Features = list[list[Tensor]]
"""Outputs of every layer of every scale; the last of a scale is its map of realness scores, N x 1 x h x w."""

KERNEL_SIZE = 4
PADDING = 2
MAX_WIDENING = 8


class PatchDiscriminator(nn.Module):
    """One scale: strided 4x4 convolutions down to a map of scores, each of one patch."""

    def __init__(self, spec: DiscriminatorSpec, in_channels: int) -> None:
        super().__init__()
        width = spec.base_channels
        self.layers = nn.ModuleList(
            [nn.Sequential(_convolution(in_channels, width, stride=2), nn.LeakyReLU(LEAKY_SLOPE))]
        )
        for index in range(1, spec.layers):
            wider = min(2 * width, MAX_WIDENING * spec.base_channels)
            stride = 1 if index == spec.layers - 1 else 2
            self.layers.append(
                nn.Sequential(
                    # It has no bias, which the instance norm would remove again.
                    spectral_norm(_convolution(width, wider, stride=stride, bias=False)),
                    nn.InstanceNorm2d(wider),
                    nn.LeakyReLU(LEAKY_SLOPE),
                )
            )
            width = wider
        self.layers.append(_convolution(width, 1, stride=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: N x C x H x W. Returns the output of each layer."""
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators of the same shape on the image and on halved copies of it."""

    def __init__(self, spec: DiscriminatorSpec, segmap_channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.scales = nn.ModuleList(PatchDiscriminator(spec, segmap_channels + 3) for _ in range(spec.scales))

    def forward(self, segmap: Tensor, image: Tensor) -> Features:
        """segmap: N x L x H x W, image: N x 3 x H x W in [-1, 1]. Returns the features, finest scale first."""
        x = torch.cat([segmap, image], dim=1)
        features: Features = []
        for index, scale in enumerate(self.scales):
            if index:
                x = functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            features.append(scale(x))
        return features

    def compare(self, segmap: Tensor, fake: Tensor, real: Tensor) -> tuple[Features, Features]:
        """Features of fake and of real images of the same label maps.

        Both go through in one batch, so that both see the same spectral norm: each forward pass in train mode changes
        its u and v.
        """
        both = self(torch.cat([segmap, segmap]), torch.cat([fake, real]))
        for scale in both:
            scale[-1] = at_least_float32(scale[-1])  # half precision would round a mean of scores
        count = fake.shape[0]
        fakes = [[feature[:count] for feature in scale] for scale in both]
        reals = [[feature[count:] for feature in scale] for scale in both]
        return fakes, reals


class Comparison(nn.Module):
    """A discriminator's `compare` as a forward pass, since DistributedDataParallel only knows forward passes."""

    def __init__(self, discriminator: MultiscaleDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, segmap: Tensor, fake: Tensor, real: Tensor) -> tuple[Features, Features]:
        return self.discriminator.compare(segmap, fake, real)


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values become float32; others stay as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _convolution(in_channels: int, out_channels: int, *, stride: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, KERNEL_SIZE, stride=stride, padding=PADDING, bias=bias)
