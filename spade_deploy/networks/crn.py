"""The cascaded refinement network (Chen and Koltun, "Photographic Image Synthesis with Cascaded Refinement Networks",
ICCV 2017), a baseline that SPADE's paper compares with.

It has one module for each resolution, from the coarsest up, and each module sees the segmap again at its own
resolution. Ours ends in tanh where the published one is linear, so that every architecture keeps the same contract.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.spade import LEAKY_SLOPE, NORM_EPS
from spade_deploy.spec import GeneratorSpec


class RefinementModule(nn.Module):
    """Figure 3 of the paper: concat(features, segmap) -> two of 3x3 convolution, layer norm, leaky relu."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm_0 = layer_norm(out_channels)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm_1 = layer_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.norm_0(self.conv_0(x)), LEAKY_SLOPE)
        return functional.leaky_relu(self.norm_1(self.conv_1(x)), LEAKY_SLOPE)


class CascadedRefinementNetwork(nn.Module):
    """segmap -> image. Section 3 of the paper."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        width = 0
        for name, out in module_widths(spec).items():
            self.add_module(name, RefinementModule(width + spec.labels.num_channels, out))
            width = out
        self.conv_img = nn.Conv2d(width, 3, 1)

    def forward(self, segmap: Tensor, z: Tensor | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W multiples of the stride. z: None. Returns N x 3 x H x W in [-1, 1]."""
        if z is not None:
            raise ValueError("the cascaded refinement network takes no style vector")
        seen = pyramid(segmap, self.spec.doublings)
        x = self.get_submodule("refine_0")(seen.pop())
        for name in list(module_widths(self.spec))[1:]:
            x = self.get_submodule(name)(torch.cat([doubled(x), seen.pop()], dim=1))
        return torch.tanh(self.conv_img(x))


def module_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The modules in the order they run, each with the number of feature maps that it puts out."""
    return {f"refine_{index}": width for index, width in enumerate(spec.refinement_widths)}


def pyramid(segmap: Tensor, halvings: int) -> list[Tensor]:
    """The segmap, and `halvings` smaller ones, each half the size of the one before, by averages of 2 x 2 pixels."""
    levels = [segmap]
    for _ in range(halvings):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


def doubled(x: Tensor) -> Tensor:
    """N x C x h x w -> N x C x 2h x 2w, bilinear between the centres of the pixels."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def layer_norm(channels: int) -> nn.GroupNorm:
    """Layer norm over all features of a sample, with a scale and an offset a channel: group norm of a single group."""
    return nn.GroupNorm(1, channels, eps=NORM_EPS)
