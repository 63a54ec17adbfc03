"""The adversarial and the pixel losses. Each is a mean, so that its weight does not depend on the image's size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spade_deploy.training.discriminator import Features


def hinge_generator(fake: Features) -> Tensor:
    """-E[D(fake)], the mean over the scales (Lim and Ye, "Geometric GAN", 2017)."""
    return torch.stack([-scale[-1].mean() for scale in fake]).mean()


def hinge_real(real: Features) -> Tensor:
    """E[max(0, 1 - D(real))], the discriminator's loss on photos, the mean over the scales."""
    return torch.stack([functional.relu(1 - scale[-1]).mean() for scale in real]).mean()


def hinge_fake(fake: Features) -> Tensor:
    """E[max(0, 1 + D(fake))], the discriminator's loss on generated images, the mean over the scales."""
    return torch.stack([functional.relu(1 + scale[-1]).mean() for scale in fake]).mean()


def feature_matching(fake: Features, real: Features) -> Tensor:
    """L1 between the discriminator's features of fake and real, all but the score: summed over layers, mean of scales.

    The real features are a target: no gradient flows through them.
    """
    per_scale = [
        torch.stack([functional.l1_loss(f, r.detach()) for f, r in zip(fakes[:-1], reals[:-1], strict=True)]).sum()
        for fakes, reals in zip(fake, real, strict=True)
    ]
    return torch.stack(per_scale).mean()


def pixel_l1(fake: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of the pixels; images in [-1, 1], so 2 at most."""
    return functional.l1_loss(fake, real)
