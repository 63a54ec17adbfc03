"""The encoder of instance features of pix2pixHD (Wang et al., CVPR 2018, section 3.4; `netE`): it sees a photo.

It is built as the global generator without residual blocks. Its features are averaged over each instance before the
generator sees them, which is no part of the network (`artifact/features.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.pix2pixhd import NormalizedConv, doubling_conv, halving_conv, mirrored_conv
from spade_deploy.spec import FEATURE_CHANNELS, PIX2PIXHD_EDGE_KERNEL, GeneratorSpec

FIRST = "conv_in.conv.weight"
"""The weights of the first convolution, one output for each base channel."""


class InstanceEncoder(nn.Module):
    """photo -> features of each pixel.

    spec: that of its generator, whose norm it has. base_channels: the width of the first and the last features; the
    paper's code has 16. halvings: how often it halves the photo, and doubles it again; at most as often as the
    generator, so that it runs every size that the generator does.
    """

    def __init__(self, spec: GeneratorSpec, base_channels: int, halvings: int) -> None:
        super().__init__()
        self.spec, self.base_channels, self.halvings = spec, base_channels, halvings
        self.conv_in = NormalizedConv(spec, mirrored_conv(3, base_channels, PIX2PIXHD_EDGE_KERNEL, bias=False))
        for index in range(halvings):
            self.add_module(f"down_{index}", NormalizedConv(spec, halving_conv(base_channels << index)))
        for index in range(halvings):
            self.add_module(f"up_{index}", NormalizedConv(spec, doubling_conv(base_channels << (halvings - index))))
        self.conv_img = mirrored_conv(base_channels, FEATURE_CHANNELS, PIX2PIXHD_EDGE_KERNEL, bias=True)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers in the order they run, each followed by ReLU; after them comes `conv_img`."""
        return ("conv_in", *(f"{way}_{index}" for way in ("down", "up") for index in range(self.halvings)))

    def forward(self, photo: Tensor) -> Tensor:
        """photo: N x 3 x H x W RGB in [-1, 1]. Returns N x FEATURE_CHANNELS x H x W in [-1, 1]."""
        x = photo
        for name in self.layers:
            x = functional.relu(self.get_submodule(name)(x))
        return torch.tanh(self.conv_img(x))


def instance_encoder_like(spec: GeneratorSpec, tensors: Mapping[str, Tensor]) -> InstanceEncoder:
    """The encoder of a generator that the names and shapes of `tensors` ask for, with PyTorch's initial weights.

    Raises KeyError where there is no first convolution.
    """
    halvings = sum(name.startswith("down_") and name.endswith(".conv.weight") for name in tensors)
    return InstanceEncoder(spec, len(tensors[FIRST]), halvings)
