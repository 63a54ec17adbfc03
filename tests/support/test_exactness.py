"""The limits of float32 that come from the machine: what they let pass, and what they must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.exactness import in_each_way, rounding_limit


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 3, 3, padding=1),
    ]
    return nn.Sequential(*layers).requires_grad_(False)


def test_another_order_of_summation_is_within_the_limit_and_another_function_is_not() -> None:
    plain, x = network(), torch.randn(2, 3, 24, 24)
    exact = network().double()(x.double())
    limit = rounding_limit(plain, x, exact)
    for found in in_each_way(plain, x):
        assert (found - exact).abs().max() <= limit
    # The same sums with the channels turned round.
    turned = network()
    turned[2].weight.data = turned[2].weight.data.flip(1)  # type: ignore[index, union-attr, operator]
    turned[0].weight.data, turned[0].bias.data = turned[0].weight.data.flip(0), turned[0].bias.data.flip(0)  # type: ignore[index, union-attr, operator]
    assert (turned(x) - exact).abs().max() <= limit
    half = network().bfloat16()(x.bfloat16()).float()
    assert (half - exact).abs().max() > 100 * limit
    wrong = network()
    wrong[2].weight.data *= 1 + 1e-4  # type: ignore[index, union-attr, operator]
    assert (wrong(x) - exact).abs().max() > limit


def test_the_limit_follows_the_machine_and_never_becomes_that_of_half_precision() -> None:
    x = torch.ones(1, 1, 4, 4)
    exact = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    perfect, rough = rounding_limit(lambda x: x, x, exact), rounding_limit(lambda x: x + 3e-5, x, exact)
    assert 0 < perfect < 1e-6
    assert rough > 4 * 2.9e-5
    with pytest.raises(AssertionError, match="no float32 is"):
        rounding_limit(lambda x: x.bfloat16().float() * 1.004, x, exact)
