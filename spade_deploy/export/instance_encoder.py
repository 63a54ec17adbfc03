"""The encoder of instance features as the module that is recorded. `encoder.py` writes its file and proves it equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.fold import fold_conv
from spade_deploy.export.pix2pixhd import deploy_normalized, make_like
from spade_deploy.networks.instance_encoder import InstanceEncoder
from spade_deploy.networks.pix2pixhd import NormalizedConv


class DeployInstanceEncoder(nn.Module):
    """Pixels in, features out; batch norm is folded, and instance norm written out, as in the generator's graph."""

    def __init__(self, encoder: InstanceEncoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for name in encoder.layers:
            trained = encoder.get_submodule(name)
            assert isinstance(trained, NormalizedConv)
            self.layers.append(deploy_normalized(trained).float())
        self.conv_img = make_like(encoder.conv_img, fold_conv(encoder.conv_img), bias=True).float()

    def forward(self, photo: Tensor) -> Tensor:
        """photo: N x H x W x 3 uint8 RGB. Returns N x FEATURE_CHANNELS x H x W float32."""
        x = to_image(photo)
        for layer in self.layers:
            x = functional.relu(layer(x))
        return torch.tanh(self.conv_img(x))


def to_image(photo: Tensor) -> Tensor:
    """Pixels, N x H x W x 3 uint8 -> N x 3 x H x W float32 in [-1, 1], as training has them."""
    return photo.permute(0, 3, 1, 2).float() / 127.5 - 1
