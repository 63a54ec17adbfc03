"""The style encoder of the VAE (Park et al., CVPR 2019, section 3 and appendix A): it finds the style of a photo.

Layer names are those of the released code (`layer1.0` is a convolution, `layer1.1` its norm; `fc_mu`, `fc_var`), so
that weights of either load by name. This module is the reference that the exported encoder is proved equal to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.networks.spectral_norm import spectral_norm

PHOTO_SIZE = 256
"""Height and width in pixels of the encoder's input; a photo of any size and aspect is resized to it."""
WIDTHS = (1, 2, 4, 8, 8, 8)
"""Output channels of the layers, in base channels; each halves the map."""
LAYERS = tuple(f"layer{number}" for number in range(1, len(WIDTHS) + 1))
LAST_SIZE = PHOTO_SIZE >> len(WIDTHS)


class StyleEncoder(nn.Module):
    """photo -> mean and log variance of its style; appendix A of the paper.

    z_dim, base_channels: those of the generator that takes the style. The paper's 256 and 64 make 10.46 M parameters.
    """

    def __init__(self, z_dim: int, base_channels: int = 64) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.base_channels = base_channels
        channels = 3
        for name, width in zip(LAYERS, WIDTHS, strict=True):
            wider = width * base_channels
            # It has no bias, which the instance norm would remove again.
            convolution = spectral_norm(nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False))
            self.add_module(name, nn.Sequential(convolution, nn.InstanceNorm2d(wider)))
            channels = wider
        self.fc_mu = nn.Linear(channels * LAST_SIZE**2, z_dim)
        self.fc_var = nn.Linear(channels * LAST_SIZE**2, z_dim)

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor]:
        """photo: N x 3 x H x W RGB in [-1, 1], of any size. Returns (mu, logvar), N x z_dim each."""
        x = photo
        if x.shape[2:] != (PHOTO_SIZE, PHOTO_SIZE):
            x = functional.interpolate(x, size=(PHOTO_SIZE, PHOTO_SIZE), mode="bilinear", align_corners=False)
        for name in LAYERS:
            x = functional.leaky_relu(self.get_submodule(name)(x), LEAKY_SLOPE)
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_var(x)


def reparameterize(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A style of N(mu, exp(logvar)) through which gradients reach both: mu + exp(logvar / 2) noise.

    mu, logvar, noise: N x z_dim; noise is standard normal.
    """
    return mu + torch.exp(0.5 * logvar) * noise
