from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from spade_deploy.errors import ExportError
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_normalized, fold_spade
from spade_deploy.networks.spade import NORM_EPS, Spade
from spade_deploy.spec import NORMS, Architecture, NormType

# float64, 8..16 channels. Measured worst over the cases below: 2.7e-15 (conv), 8.9e-15 (SPADE).
TOLERANCE_FP64 = 1e-12


def run_folded(weights: ConvWeights, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    gamma, beta = nn.functional.conv2d(
        hidden, weights.weight, weights.bias, padding=weights.weight.shape[2] // 2
    ).chunk(2, dim=1)
    return x * gamma + beta


def spectral_conv(kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    conv = spectral_norm(nn.Conv2d(6, 10, kernel, padding=kernel // 2, bias=bias)).double()
    conv.train()
    for _ in range(3):
        conv(torch.randn(1, 6, 5, 5, dtype=torch.float64))
    return conv.eval()


@pytest.mark.parametrize(("kernel", "bias"), [(1, False), (3, True)])
def test_spectral_norm_folds_with_the_stored_vectors(kernel: int, bias: bool) -> None:
    conv = spectral_conv(kernel, bias)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    folded = fold_conv(conv)
    found = nn.functional.conv2d(x, folded.weight, folded.bias, padding=kernel // 2)
    assert (found - conv(x)).abs().max() < TOLERANCE_FP64


def test_a_recomputed_sigma_would_be_seen() -> None:
    # The counter-test: sigma from a converged power iteration is another number than u'Wv of the stored vectors.
    conv = spectral_conv()
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    sigma = torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2)
    wrong = nn.functional.conv2d(x, conv.weight_orig / sigma, conv.bias, padding=1)
    assert (wrong - conv(x)).abs().max() > 1e-6


def test_train_mode_is_refused_and_nothing_changes() -> None:
    conv = spectral_conv().train()
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    with pytest.raises(ExportError, match="train mode"):
        fold_conv(conv)
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())


def test_a_sigma_of_zero_is_refused() -> None:
    conv = spectral_conv()
    conv.weight_u.zero_()
    with pytest.raises(ExportError, match="sigma = 0"):
        fold_conv(conv)


def spade_layer(make_generator: Callable[..., Any], norm: NormType, kernel: int = 3) -> Spade:
    layer: Spade = make_generator(norm=norm, kernel_size=kernel).up_0.norm_s.double()
    if norm is not NormType.INSTANCE:
        # Statistics far from (0, 1), one variance tiny: there the epsilon decides.
        layer.param_free_norm.running_mean.copy_(torch.linspace(-3, 3, len(layer.param_free_norm.running_mean)))
        layer.param_free_norm.running_var.copy_(torch.logspace(-5, 1, len(layer.param_free_norm.running_var)))
    return layer


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("norm", NORMS[Architecture.SPADE])
def test_spade_folds(make_generator: Callable[..., Any], norm: NormType, kernel: int) -> None:
    layer = spade_layer(make_generator, norm, kernel)
    channels = layer.mlp_gamma.out_channels
    x = torch.randn(3, channels, 6, 10, dtype=torch.float64)
    segmap = torch.randn(3, layer.mlp_shared[0].in_channels, 6, 10, dtype=torch.float64)
    hidden = layer.mlp_shared(segmap)
    given = nn.functional.instance_norm(x, eps=NORM_EPS) if norm is NormType.INSTANCE else x
    # Scaled by the largest output: a variance of 1e-5 makes outputs of several hundred.
    expected = layer(x, segmap)
    error = (run_folded(fold_spade(layer), hidden, given) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE_FP64


@pytest.mark.parametrize("mistake", ["no eps", "no shift", "gamma without one"])
def test_wrong_folds_are_seen(make_generator: Callable[..., Any], mistake: str) -> None:
    layer = spade_layer(make_generator, NormType.BATCH)
    right = fold_spade(layer)
    norm = layer.param_free_norm
    eps = 0.0 if mistake == "no eps" else norm.eps
    scale = 1 / torch.sqrt(norm.running_var + eps)
    shift = torch.zeros_like(scale) if mistake == "no shift" else -norm.running_mean * scale
    one = 0.0 if mistake == "gamma without one" else 1.0
    column = (-1, 1, 1, 1)
    gamma, beta = layer.mlp_gamma, layer.mlp_beta
    wrong = ConvWeights(
        torch.cat([scale.view(column) * gamma.weight, beta.weight + shift.view(column) * gamma.weight]),
        torch.cat([scale * (one + gamma.bias), beta.bias + shift * (one + gamma.bias)]),
    )
    x = torch.randn(1, gamma.out_channels, 6, 6, dtype=torch.float64)
    segmap = torch.randn(1, layer.mlp_shared[0].in_channels, 6, 6, dtype=torch.float64)
    hidden, expected = layer.mlp_shared(segmap), layer(x, segmap)
    scaled = expected.abs().max()
    assert (run_folded(wrong, hidden, x) - expected).abs().max() / scaled > 1e-4
    assert (run_folded(right, hidden, x) - expected).abs().max() / scaled < TOLERANCE_FP64


def test_diverged_statistics_are_refused(make_generator: Callable[..., Any]) -> None:
    layer = make_generator().up_0.norm_0
    layer.param_free_norm.running_var[0] = float("nan")
    with pytest.raises(ExportError, match="running statistics"):
        fold_spade(layer)


@pytest.mark.parametrize("part", ["weight_u", "weight_v"])
def test_a_sigma_that_is_no_number_is_refused(part: str) -> None:
    conv = spectral_norm(nn.Conv2d(2, 3, 3)).eval()
    conv.get_buffer(part)[0] = float("nan")
    with pytest.raises(ExportError, match="sigma = nan"):
        fold_conv(conv)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_norm_with_scale_and_offset_folds_into_the_convolution_before_it(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, affine=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    layer = SimpleNamespace(conv=kind(2, 3, 3), norm=norm, scale=torch.randn(3), offset=torch.randn(3), training=False)
    layer.conv.double().eval()
    norm.double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for scale, offset in ((layer.scale.double(), layer.offset.double()), (None, None)):
        layer.scale, layer.offset = scale, offset
        expected = norm(layer.conv(x))
        if scale is not None:
            expected = expected * scale[:, None, None] + offset[:, None, None]
        folded = fold_normalized(layer)  # type: ignore[arg-type]
        apply = nn.functional.conv2d if kind is nn.Conv2d else nn.functional.conv_transpose2d
        assert (apply(x, folded.weight, folded.bias) - expected).abs().max() < TOLERANCE_FP64  # measured 2e-15
