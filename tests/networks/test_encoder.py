"""The style encoder: its shape by the published facts, its function written again, and the styles drawn from it."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional

from spade_deploy.networks.encoder import LAYERS, PHOTO_SIZE, StyleEncoder, reparameterize
from spade_deploy.networks.spade import initialize
from tests.support.exactness import rounding_limit


def small_encoder(seed: int = 0) -> StyleEncoder:
    torch.manual_seed(seed)
    encoder = StyleEncoder(3, 2)
    initialize(encoder, 1.0)
    encoder.train()
    with torch.no_grad():
        for _ in range(3):  # settles the power iteration
            encoder(torch.rand(1, 3, 32, 64) * 2 - 1)
    return encoder.eval()


def smooth_photos(count: int, height: int, width: int) -> torch.Tensor:
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1) * 2 - 1


def test_parameters_of_the_papers_encoder() -> None:
    """Six 3 x 3 convolutions without bias to 8 x 64 channels at 4 x 4, two linear layers 8192 -> 256: 10.5 million."""
    with torch.device("meta"):
        encoder = StyleEncoder(256)
    widths = [3, 64, 128, 256, 512, 512, 512]
    convolutions = sum(9 * a * b for a, b in itertools.pairwise(widths))
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == convolutions + 2 * (8192 * 256 + 256) == 10_463_424
    assert encoder.fc_mu.in_features == 8192


def test_keys() -> None:
    parts = ("weight_orig", "weight_u", "weight_v")
    expected = {f"layer{number}.0.{part}" for number in range(1, 7) for part in parts}
    expected |= {f"{name}.{part}" for name in ("fc_mu", "fc_var") for part in ("weight", "bias")}
    assert set(StyleEncoder(3, 2).state_dict()) == expected


@pytest.mark.parametrize("size", [(256, 256), (32, 64), (300, 100)])
def test_the_encoder_written_out(size: tuple[int, int]) -> None:
    """Resize, then six times convolution, instance norm by its definition and leaky ReLU, then the linear layers."""
    encoder = small_encoder().double()
    state = encoder.state_dict()
    photo = smooth_photos(2, *size).double()
    x = photo
    if size != (PHOTO_SIZE, PHOTO_SIZE):
        x = functional.interpolate(photo, size=(256, 256), mode="bilinear", align_corners=False)
    for name in LAYERS:
        weight, u, v = (state[f"{name}.0.weight_{part}"] for part in ("orig", "u", "v"))
        x = functional.conv2d(x, weight / (u @ weight.flatten(1) @ v), stride=2, padding=1)
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        x = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
        x = torch.where(x > 0, x, 0.2 * x)
    assert x.shape[1:] == (16, 4, 4)
    found = encoder(photo)
    for name, output in zip(("fc_mu", "fc_var"), found, strict=True):
        expected = x.flatten(1) @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        # Over six seeds measured 9e-15 at most, of values up to 3.
        assert (output - expected).abs().max() < 1e-12
    assert (found[0] - found[1]).abs().max() > 0.1, "the two linear layers differ"


def test_a_photo_of_another_size_is_resized_and_not_cropped() -> None:
    encoder = small_encoder()
    photo = smooth_photos(1, 256, 256)
    larger = functional.interpolate(photo, size=(512, 512), mode="bilinear", align_corners=False)
    moved = torch.roll(photo, 64, dims=3)
    with torch.no_grad():
        mu, same, other = (encoder(x)[0] for x in (photo, larger, moved))
    # The same picture: over four seeds 0.0114 apart at most; moved by a quarter of its width: 1.8 at least.
    assert (mu - same).abs().max() < 0.03
    assert (mu - other).abs().max() > 1


def test_a_photo_is_encoded_alike_whatever_is_beside_it() -> None:
    """To the last digits in float64; in float32 batches take other kernels, whose rounding is this machine's."""
    encoder = small_encoder()
    photos = smooth_photos(3, 32, 64)
    wide = copy.deepcopy(encoder).double()
    with torch.no_grad():
        exact, alone = wide(photos.double()), [wide(photo[None].double()) for photo in photos]
        together = encoder(photos)
    for index in range(2):
        # Measured 5e-15, of values up to 3.
        assert (exact[index] - torch.cat([one[index] for one in alone])).abs().max() < 1e-12

        def compute(x: torch.Tensor, index: int = index) -> torch.Tensor:
            return torch.cat([encoder(photo[None])[index] for photo in x])

        limit = rounding_limit(compute, photos, exact[index])
        assert (together[index] - exact[index]).abs().max() < limit


def normal(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_gradients_reach_every_parameter() -> None:
    encoder = small_encoder().train()
    mu, logvar = encoder(smooth_photos(2, 32, 64))
    style = reparameterize(mu, logvar, normal(mu.shape))
    style.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_styles_have_the_mean_and_the_deviation_that_were_asked_for() -> None:
    mu, logvar = torch.tensor([[1.0, -2.0]]).repeat(20_000, 1), torch.tensor([[0.0, 2.0]]).repeat(20_000, 1)
    style = reparameterize(mu, logvar, normal(mu.shape))
    # 20,000 draws: a standard error of e/141 = 0.02 in the mean.
    assert torch.allclose(style.mean(dim=0), torch.tensor([1.0, -2.0]), atol=0.08)
    assert torch.allclose(style.std(dim=0), torch.tensor([1.0, 2.718]), rtol=0.03)
