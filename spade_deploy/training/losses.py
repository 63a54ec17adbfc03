"""The losses. Each is a mean over samples and pixels, so that its weight does not depend on the batch or the size.

The adversarial losses, with d the discriminator's scores, real those of photos and fake those of generated images:

| mode | generator | discriminator, real | discriminator, fake | source |
|---|---|---|---|---|
| hinge | -E[d] | E[max(0, 1 - d)] | E[max(0, 1 + d)] | Lim and Ye, "Geometric GAN", 2017 |
| ls | E[(d - 1)^2] | E[(d - 1)^2] | E[d^2] | Mao et al., "Least Squares GANs", ICCV 2017, without its halves |
| original | E[softplus(-d)] | E[softplus(-d)] | E[softplus(d)] | Goodfellow et al., GANs, 2014; d is a logit |
| wgan | -E[d] | -E[d] | E[d] | Arjovsky et al., "Wasserstein GAN", ICML 2017 |

A Wasserstein critic must be bounded in slope, else its loss falls without end. As in the 2019 code there is no clipping
and no gradient penalty: only the spectral norm of the discriminator's inner convolutions bounds it, and its first and
last convolutions have none. Watch the discriminator's loss in such a run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spade_deploy.networks.discriminator import Features, at_least_float32
from spade_deploy.training.config import GanMode


def generator_loss(mode: GanMode, fake: Features) -> Tensor:
    """The generator's adversarial loss, the mean over the scales; it falls as images are scored like photos."""
    return torch.stack([_wants_to_pass(mode, scale[-1]) for scale in fake]).mean()


def discriminator_losses(mode: GanMode, fake: Features, real: Features) -> tuple[Tensor, Tensor]:
    """The discriminator's losses on photos and on generated images, each the mean over the scales."""
    return (
        torch.stack([_calls_real(mode, scale[-1]) for scale in real]).mean(),
        torch.stack([_calls_fake(mode, scale[-1]) for scale in fake]).mean(),
    )


def _wants_to_pass(mode: GanMode, score: Tensor) -> Tensor:
    # Only the discriminator has the hinge: beyond its margin the generator would get no gradient.
    return -score.mean() if mode is GanMode.HINGE else _calls_real(mode, score)


def _calls_real(mode: GanMode, score: Tensor) -> Tensor:
    match mode:
        case GanMode.HINGE:
            return functional.relu(1 - score).mean()
        case GanMode.LS:
            return (score - 1).square().mean()
        case GanMode.ORIGINAL:
            return functional.softplus(-score).mean()
        case GanMode.WGAN:
            return -score.mean()


def _calls_fake(mode: GanMode, score: Tensor) -> Tensor:
    match mode:
        case GanMode.HINGE:
            return functional.relu(1 + score).mean()
        case GanMode.LS:
            return score.square().mean()
        case GanMode.ORIGINAL:
            return functional.softplus(score).mean()
        case GanMode.WGAN:
            return score.mean()


def feature_matching(fake: Features, real: Features) -> Tensor:
    """L1 between the discriminator's features of fake and real images: the sum over layers, the mean over scales.

    The scores do not count. The real features are a target: no gradient flows through them.
    """
    per_scale = [
        torch.stack([functional.l1_loss(f, r.detach()) for f, r in zip(fakes[:-1], reals[:-1], strict=True)]).sum()
        for fakes, reals in zip(fake, real, strict=True)
    ]
    return torch.stack(per_scale).mean()


def pixel_l1(fake: Tensor, real: Tensor) -> Tensor:
    """The mean absolute difference of the pixels: at most 2, since images are in [-1, 1]."""
    return functional.l1_loss(fake, real)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of the styles, in nats: summed over the dimensions, the mean over the batch.

        1/2 sum over dimensions (mu^2 + exp(logvar) - 1 - logvar)

    mu, logvar: N x z_dim. That is the divergence of one photo's style, which the paper weighs with 0.05 (Kingma and
    Welling, "Auto-Encoding Variational Bayes", appendix B). The 2019 code sums over the samples of a GPU too, and
    takes the mean over the GPUs: its 0.05 with the recommended 4 samples a GPU weighs as much as 0.2 here.
    """
    mu, logvar = at_least_float32(mu), at_least_float32(logvar)  # exp leaves half precision's range early
    per_sample = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1)
    return per_sample.mean()
