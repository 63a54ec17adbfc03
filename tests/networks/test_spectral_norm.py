"""Our spectral norm against PyTorch's: values, vectors, gradients, keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm
from torch.nn.utils import spectral_norm as torch_spectral_norm

from spade_deploy.networks import spectral_norm as spectral
from spade_deploy.networks.spectral_norm import spectral_norm


def pair(layer: nn.Module, channels_last: bool) -> tuple[nn.Module, nn.Module]:
    """The layer with PyTorch's spectral norm and with ours, of the same state."""
    torch.manual_seed(0)
    theirs, ours = torch_spectral_norm(copy.deepcopy(layer)), spectral_norm(copy.deepcopy(layer))
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.double()
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return theirs, ours


def passed(module: nn.Module, x: Tensor, passes: int = 3) -> list[Tensor]:
    """The output, the gradients and the vectors after a few passes, two of which share a backward pass."""
    for _ in range(passes - 2):
        module(x)
    y = module(x)
    (y.square().mean() + 0.5 * module(2 * x).abs().mean()).backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [y.detach(), *gradients, *module.buffers()]


LAYERS = {
    "3 x 3": nn.Conv2d(6, 5, 3, padding=1),
    "1 x 1 without bias": nn.Conv2d(6, 5, 1, bias=False),
    "4 x 4 with a stride": nn.Conv2d(6, 5, 4, stride=2, padding=2),
    "transposed": nn.ConvTranspose2d(6, 5, 3),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_values_vectors_and_gradients_are_those_of_pytorch(name: str, channels_last: bool) -> None:
    theirs, ours = pair(LAYERS[name], channels_last)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for expected, found in zip(passed(theirs, x), passed(ours, x), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)  # measured: 2.2e-15
    theirs.eval()
    ours.eval()
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-13)


def test_a_forgotten_term_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(LAYERS["3 x 3"], channels_last=True)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(spectral, "_in_order_of_memory", lambda v, weight: v)
    differences = [(a - b).abs().max().item() for a, b in zip(passed(theirs, x), passed(ours, x), strict=True)]
    assert max(differences) > 1e-3


def test_keys_and_removal_are_pytorchs() -> None:
    theirs, ours = pair(LAYERS["3 x 3"], channels_last=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    ours.eval()
    expected = ours(x)
    remove_spectral_norm(ours)
    assert set(ours.state_dict()) == {"weight", "bias"}
    assert torch.allclose(ours(x), expected, rtol=0, atol=1e-13)


def test_mixed_precision_leaves_the_vectors_in_float32() -> None:
    _, exact = pair(LAYERS["3 x 3"], channels_last=True)
    half = copy.deepcopy(exact).float()
    x = torch.randn(1, 6, 8, 8)
    exact(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        half(x)
    for wide, narrow in zip(exact.buffers(), half.buffers(), strict=True):
        assert torch.allclose(wide, narrow.double(), rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3
