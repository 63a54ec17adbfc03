"""Folds: the weights change, the function stays.

Spectral norm (Miyato et al., 2018; SPADE, pix2pixHD), as PyTorch stores it: the layer's weight is W / sigma with
sigma = u' mat(W) v, where u and v are *stored*. In eval mode PyTorch runs no power iteration, so neither does the fold.
mat(W) has a row for each output channel, which a transposed convolution has on its second axis.

Batch norm into the convolution before it (pix2pixHD). In eval mode, with s = 1 / sqrt(var + eps), t = -mean s and the
learned scale g and offset o,

    ((W * x + b) s + t) g + o  =  (s g W) * x + [(b s + t) g + o]

where s g scales the output channels of W. Padding acts on x and stays exact, of whatever kind it is.
Instance norm (pix2pixHD) and layer norm (the cascaded refinement network) depend on x and cannot fold.

Batch norm into gamma and beta (SPADE). In eval mode, with s = 1 / sqrt(var + eps) and t = -mean s, a SPADE layer is

    (x s + t) (1 + gamma) + beta  =  x [s (1 + gamma)] + [beta + t (1 + gamma)]  =  x gamma' + beta'

and, gamma and beta being convolutions of the same hidden map h (gamma = Wg * h + bg, beta = Wb * h + bb),

    gamma' = (s Wg) * h + s (1 + bg)          beta' = (Wb + t Wg) * h + bb + t (1 + bg)

so the normalisation disappears. Zero padding stays exact: padding acts on h, which is unchanged.
Instance norm depends on x and cannot fold: there gamma' = Wg * h + 1 + bg and beta' = beta.

The learned shortcut (SPADE) has no activation between its SPADE layer and its 1 x 1 convolution Ws, so beta' passes
through it:

    Ws (x gamma' + beta')  =  Ws (x gamma') + (Ws beta')

and Ws beta' is again a convolution of h, with as many channels as the block's output, which are fewer.

Batch norm into the tables of CLADE, whose gamma (used as it is) and beta are rows of tables, one for each class:

    (x s + t) gamma + beta  =  x [s gamma] + [beta + t gamma]

All folds are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spade_deploy.errors import ExportError
from spade_deploy.networks.clade import Clade
from spade_deploy.networks.pix2pixhd import NormalizedConv
from spade_deploy.networks.spade import Spade


@dataclass(frozen=True)
class ConvWeights:
    """The weights of a convolution in float64."""

    weight: Tensor
    """Its shape is out x in x k x k; that of a transposed convolution is in x out x k x k."""

    bias: Tensor
    """One number for each output channel."""


def fold_conv(conv: nn.Module) -> ConvWeights:
    """A convolution with its spectral norm, if it has one, folded into the weight; a missing bias becomes zeros.

    Raises ExportError in train mode (PyTorch would run a power iteration and change the weight), and where sigma
    is zero or not finite.
    """
    _require_eval(conv)
    if hasattr(conv, "weight_orig"):
        original = _double(conv.weight_orig)
        u, v = _double(conv.weight_u), _double(conv.weight_v)
        by_output = original.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else original
        sigma = torch.dot(u, by_output.flatten(1) @ v)
        if not torch.isfinite(sigma) or sigma == 0:
            raise ExportError(
                f"spectral norm: the stored u and v give sigma = {float(sigma)}, which cannot be divided by",
                hint="the checkpoint is damaged, or was saved before a training step: train it or import it again",
            )
        weight = original / sigma
    else:
        weight = _double(conv.weight)
    outputs = weight.shape[1 if isinstance(conv, nn.ConvTranspose2d) else 0]
    bias = torch.zeros(outputs, dtype=torch.float64) if conv.bias is None else _double(conv.bias)
    return ConvWeights(weight, bias)


def fold_normalized(layer: NormalizedConv) -> ConvWeights:
    """A convolution and the batch norm after it as one convolution. Raises ExportError for any other norm."""
    _require_eval(layer)
    conv, (scale, shift) = fold_conv(layer.conv), _statistics(layer.norm)
    if layer.scale is not None and layer.offset is not None:
        factor, offset = _double(layer.scale), _double(layer.offset)
        scale, shift = scale * factor, shift * factor + offset
    outputs = (1, -1, 1, 1) if isinstance(layer.conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return ConvWeights(conv.weight * scale.view(outputs), conv.bias * scale + shift)


def fold_spade(layer: Spade) -> ConvWeights:
    """One convolution h -> [gamma' | beta'] (2 C x hidden x k x k), with the batch norm, if any, folded in."""
    _require_eval(layer)
    gamma, beta = fold_conv(layer.mlp_gamma), fold_conv(layer.mlp_beta)
    norm = layer.param_free_norm
    if isinstance(norm, nn.InstanceNorm2d):
        return ConvWeights(torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias + 1, beta.bias]))
    scale, shift = _statistics(norm)
    column = (-1, 1, 1, 1)
    return ConvWeights(
        torch.cat([scale.view(column) * gamma.weight, beta.weight + shift.view(column) * gamma.weight]),
        torch.cat([scale * (1 + gamma.bias), beta.bias + shift * (1 + gamma.bias)]),
    )


def fold_shortcut(layer: Spade, conv_s: nn.Module) -> tuple[ConvWeights, ConvWeights]:
    """(gamma', Ws beta') of a learned shortcut: C x hidden x k x k and out x hidden x k x k."""
    modulation, projection = fold_spade(layer), fold_conv(conv_s).weight.flatten(1)
    gamma_weight, beta_weight = modulation.weight.chunk(2)
    gamma_bias, beta_bias = modulation.bias.chunk(2)
    beta = ConvWeights(torch.einsum("oc,chij->ohij", projection, beta_weight), projection @ beta_bias)
    return ConvWeights(gamma_weight, gamma_bias), beta


def fold_clade(layer: Clade) -> tuple[Tensor, Tensor]:
    """(gamma', beta'), classes x C each, float64, with the batch norm, if any, folded in."""
    _require_eval(layer)
    affine, norm = layer.class_specified_affine, layer.param_free_norm
    gamma, beta = _double(affine.weight), _double(affine.bias)
    if isinstance(norm, nn.InstanceNorm2d):
        return gamma, beta
    scale, shift = _statistics(norm)
    return scale * gamma, beta + shift * gamma


def unfolded_clade(layer: Clade) -> tuple[Tensor, Tensor]:
    """(gamma, beta), classes x C each, float64, as they were trained."""
    _require_eval(layer)
    affine = layer.class_specified_affine
    return _double(affine.weight), _double(affine.bias)


def norm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(s, t), C each, float64, such that the norm is x s + t; 1 and 0 for instance norm, which depends on x."""
    if isinstance(norm, nn.InstanceNorm2d):
        return torch.ones(norm.num_features, dtype=torch.float64), torch.zeros(norm.num_features, dtype=torch.float64)
    return _statistics(norm)


def batch_norm_scale_shift(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """(s, t), C each, float64, such that the norm in eval mode is x s + t. Raises ExportError on bad statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = _double(norm.running_mean), _double(norm.running_var)
    if not (torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all()):
        raise ExportError(
            "batch norm: the running statistics hold values that are negative or not finite",
            hint="the checkpoint comes from a training run that diverged: take an earlier one",
        )
    scale = torch.rsqrt(variance + norm.eps)
    return scale, -mean * scale


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.running_mean is None or norm.affine:
        raise ExportError(f"batch norm: {type(norm).__name__} has no running statistics, or has weights of its own")
    return batch_norm_scale_shift(norm)


def _require_eval(module: nn.Module) -> None:
    if module.training:
        raise ExportError(f"folding {type(module).__name__} in train mode would change it; call .eval() first")


def _double(tensor: object) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.detach().cpu().double()
