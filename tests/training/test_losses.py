"""Losses against values worked out by hand, and against PyTorch's own distributions in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as kl_of

from spade_deploy.training.config import GanMode
from spade_deploy.training.losses import (
    discriminator_losses,
    feature_matching,
    generator_loss,
    kl_divergence,
    pixel_l1,
)

Scores = list[list[Tensor]]


def scores(*scales: list[float]) -> Scores:
    """Features of a discriminator: a layer that no adversarial loss may look at, then the scores."""
    return [[torch.full((1,), math.nan), torch.tensor(values, dtype=torch.float64)] for values in scales]


FAKE, REAL = scores([2.0, 0.0], [-3.0, 1.0]), scores([0.5, -1.5], [4.0, -0.25])


def log_probability(score: Tensor, is_real: float) -> Tensor:
    """Of the answer 'photo' or 'generated' from a judge whose logit is `score`."""
    return Bernoulli(logits=score).log_prob(torch.tensor(is_real, dtype=torch.float64))


# Of one map of scores: what the generator, and the discriminator on photos and on generated images, should minimise.
FORMULAS: dict[GanMode, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    GanMode.HINGE: (lambda d: -d, lambda d: torch.clamp_min(1 - d, 0), lambda d: torch.clamp_min(1 + d, 0)),
    GanMode.LS: (lambda d: (d - 1) ** 2, lambda d: (d - 1) ** 2, lambda d: d**2),
    GanMode.ORIGINAL: (
        lambda d: -log_probability(d, 1),
        lambda d: -log_probability(d, 1),
        lambda d: -log_probability(d, 0),
    ),
    GanMode.WGAN: (lambda d: -d, lambda d: -d, lambda d: d),
}


def mean_of_scales(formula: Callable[[Tensor], Tensor], features: Scores) -> float:
    return sum(formula(scale[-1]).mean().item() for scale in features) / len(features)


@pytest.mark.parametrize("mode", GanMode)
def test_the_adversarial_losses_are_their_formulas(mode: GanMode) -> None:
    generator, on_real, on_fake = FORMULAS[mode]
    assert generator_loss(mode, FAKE).item() == pytest.approx(mean_of_scales(generator, FAKE), rel=1e-12)
    real, fake = discriminator_losses(mode, FAKE, REAL)
    assert real.item() == pytest.approx(mean_of_scales(on_real, REAL), rel=1e-12)
    assert fake.item() == pytest.approx(mean_of_scales(on_fake, FAKE), rel=1e-12)


def test_every_mode_is_another_loss() -> None:
    """Else the test above could not tell a mode from the one beside it; hinge and wgan share the generator's alone."""
    found = {mode: discriminator_losses(mode, FAKE, REAL) for mode in GanMode}
    assert len({round(real.item(), 9) for real, _ in found.values()}) == len(GanMode)
    assert len({round(fake.item(), 9) for _, fake in found.values()}) == len(GanMode)


def test_the_hinge_by_hand() -> None:
    real, fake = discriminator_losses(GanMode.HINGE, FAKE, FAKE)
    assert real.item() == ((0 + 1) / 2 + (4 + 0) / 2) / 2
    assert fake.item() == ((3 + 1) / 2 + (0 + 2) / 2) / 2
    assert generator_loss(GanMode.HINGE, FAKE).item() == (-1.0 + 1.0) / 2


@pytest.mark.parametrize("count", [1, 5])
def test_scales_weigh_alike_whatever_their_size(count: int) -> None:
    features = scores([1.0] * count, [3.0])
    assert generator_loss(GanMode.WGAN, features).item() == -2.0
    assert discriminator_losses(GanMode.WGAN, features, features)[1].item() == 2.0


@pytest.mark.parametrize("mode", GanMode)
def test_a_better_fake_lowers_the_generators_loss(mode: GanMode) -> None:
    """Better: judged more like a photo, as this discriminator judges photos (1, say)."""
    values = [generator_loss(mode, scores([score])).item() for score in (-4.0, -1.0, 0.0, 0.9)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("mode", GanMode)
def test_a_better_judgement_lowers_the_discriminators_losses(mode: GanMode) -> None:
    wrong, right = scores([0.9]), scores([-0.1])
    as_wrong, as_right = (discriminator_losses(mode, fake, scores([0.2]))[1] for fake in (wrong, right))
    assert as_right < as_wrong
    low, high = (discriminator_losses(mode, wrong, real)[0] for real in (scores([-0.5]), scores([0.9])))
    assert high < low


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", GanMode)
def test_gradients_are_finite_and_pull_the_right_way(mode: GanMode, dtype: torch.dtype) -> None:
    """Scores far beyond what training meets: log(sigmoid) written out would be infinite here."""
    far = torch.tensor([-120.0, -2.0, 0.5, 120.0], dtype=dtype)
    score = far.clone().requires_grad_()
    generator_loss(mode, [[score]]).backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()
    assert score.grad[1] < 0, "a fake that is judged badly is pulled up"
    fake, real = far.clone().requires_grad_(), far.clone().requires_grad_()
    torch.stack(discriminator_losses(mode, [[fake]], [[real]])).sum().backward()
    assert fake.grad is not None
    assert real.grad is not None
    assert fake.grad.isfinite().all()
    assert real.grad.isfinite().all()
    assert fake.grad[2] > 0 > real.grad[1]


def test_the_hinge_stops_pulling_beyond_its_margin() -> None:
    score = torch.tensor([5.0, 0.5], requires_grad=True)
    discriminator_losses(GanMode.HINGE, [[score.detach()]], [[score]])[0].backward()
    assert score.grad is not None
    assert score.grad.tolist() == [0.0, -0.5]
    beyond = torch.tensor([5.0], requires_grad=True)
    generator_loss(GanMode.HINGE, [[beyond]]).backward()
    assert beyond.grad is not None
    assert beyond.grad.tolist() == [-1.0], "the generator is pulled on: its loss has no margin"


def test_feature_matching_sums_layers_leaves_out_the_score_and_averages_scales() -> None:
    fake = [[torch.zeros(4), torch.zeros(2, 2), torch.tensor([9.0])], [torch.zeros(4), torch.zeros(1), torch.zeros(1)]]
    real = [[torch.ones(4), 2 * torch.ones(2, 2), torch.zeros(1)], [torch.ones(4) * 4, torch.ones(1), torch.ones(1)]]
    assert feature_matching(fake, real).item() == pytest.approx(((1 + 2) + (4 + 1)) / 2)


def test_feature_matching_pulls_the_fake_alone() -> None:
    fake, real = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    feature_matching([[fake, fake]], [[real, real]]).backward()
    assert fake.grad is not None
    assert real.grad is None


def test_pixel_l1() -> None:
    assert pixel_l1(torch.full((1, 3, 2, 2), -1.0), torch.ones(1, 3, 2, 2)).item() == 2.0


@pytest.mark.parametrize(("batch", "z_dim"), [(1, 256), (5, 3)])
def test_kl_is_the_divergence_of_torchs_normals_and_a_mean_over_the_batch(batch: int, z_dim: int) -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, batch, z_dim, dtype=torch.float64)
    one = Normal(mu, torch.exp(0.5 * logvar))
    expected = kl_of(one, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(dim=1).mean().item()
    found = kl_divergence(mu, logvar).item()
    # Computed in float32: measured 6e-8.
    assert found == pytest.approx(expected, rel=1e-6)
    twice = kl_divergence(mu.repeat(2, 1), logvar.repeat(2, 1)).item()
    assert twice == pytest.approx(found, rel=1e-6), "a larger batch weighs no more"
    assert kl_divergence(mu, -logvar).item() != pytest.approx(expected, rel=1e-3)


def test_kl_is_zero_at_the_prior_alone_and_pulls_towards_it() -> None:
    mu, logvar = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    assert kl_divergence(mu, logvar).item() == 0
    off_mu, off_logvar = (
        torch.tensor([[2.0, -1.0]], requires_grad=True),
        torch.tensor([[1.0, -1.0]], requires_grad=True),
    )
    loss = kl_divergence(off_mu, off_logvar)
    loss.backward()
    assert loss.item() > 0
    assert off_mu.grad is not None
    assert off_logvar.grad is not None
    assert off_mu.grad.sign().tolist() == [[1.0, -1.0]]
    assert off_logvar.grad.sign().tolist() == [[1.0, -1.0]]


def test_kl_of_half_precision_stays_finite() -> None:
    mu, logvar = torch.full((1, 2), 300.0, dtype=torch.float16), torch.full((1, 2), 12.0, dtype=torch.float16)
    assert (mu.square() + logvar.exp()).isinf().all(), "half precision itself cannot hold it"
    assert kl_divergence(mu, logvar).item() == pytest.approx(300.0**2 + math.exp(12) - 13, rel=1e-6)
