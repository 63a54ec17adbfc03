"""Losses against values worked out by hand."""

import pytest
import torch

from spade_deploy.training.losses import feature_matching, hinge_fake, hinge_generator, hinge_real, pixel_l1


def scores(*scales: list[float]) -> list[list[torch.Tensor]]:
    return [[torch.zeros(1), torch.tensor(values)] for values in scales]


def test_hinge_losses() -> None:
    features = scores([2.0, 0.0], [-3.0, 1.0])
    assert hinge_real(features).item() == pytest.approx(((0 + 1) / 2 + (4 + 0) / 2) / 2)
    assert hinge_fake(features).item() == pytest.approx(((3 + 1) / 2 + (0 + 2) / 2) / 2)
    assert hinge_generator(features).item() == pytest.approx((-1.0 + 1.0) / 2)
    assert hinge_generator(scores([1.0], [2.0, 4.0])).item() == pytest.approx(-(1 + 3) / 2)


def test_the_hinge_stops_pulling_beyond_its_margin() -> None:
    score = torch.tensor([5.0, 0.5], requires_grad=True)
    hinge_real([[score]]).backward()
    assert score.grad is not None
    assert score.grad.tolist() == [0.0, -0.5]


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
