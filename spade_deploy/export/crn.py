"""The module that is recorded for the cascaded refinement network. The trained module stays untouched.

Nothing folds: the network has no spectral norm, and layer norm depends on its input. Layer norm is written out with
float32 statistics, since its mean runs over a whole sample, the largest sum of all networks here, and the runtimes' own
operator is made for one channel. The segmap is made inside the graph. Every unit and every named value has the name of
the trained layer that computes it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import DenseModel, dtype_of
from spade_deploy.export.exact_norm import standardized
from spade_deploy.export.fold import fold_conv
from spade_deploy.export.spade import make_conv
from spade_deploy.networks.crn import (
    CascadedRefinementNetwork,
    RefinementModule,
    doubled,
    module_widths,
    pyramid,
)
from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.spec import GeneratorSpec


class DeployLayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + offset, mean and variance over all features of a sample."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.scale = nn.Parameter(norm.weight.detach().double().view(-1, 1, 1).clone(), requires_grad=False)
        self.offset = nn.Parameter(norm.bias.detach().double().view(-1, 1, 1).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return standardized(x, (1, 2, 3), self.eps) * self.scale + self.offset


class DeployRefinement(nn.Module):
    """The module that is recorded for a `RefinementModule`."""

    def __init__(self, module: RefinementModule) -> None:
        super().__init__()
        self.conv_0 = make_conv(fold_conv(module.conv_0), bias=False)
        self.conv_1 = make_conv(fold_conv(module.conv_1), bias=False)
        self.norm_0, self.norm_1 = DeployLayerNorm(module.norm_0), DeployLayerNorm(module.norm_1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.norm_0(self.conv_0(x)), LEAKY_SLOPE)
        return functional.leaky_relu(self.norm_1(self.conv_1(x)), LEAKY_SLOPE)


class DeployCascade(DenseModel):
    """The cascaded refinement network. Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`."""

    def __init__(
        self,
        generator: CascadedRefinementNetwork,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(generator.spec)
        for name in module_widths(generator.spec):
            module = generator.get_submodule(name)
            assert isinstance(module, RefinementModule)
            self.add_module(name, DeployRefinement(module))
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        self.set_types(crn_units(generator.spec), fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        seen = pyramid(self.segmap(1, label, edges), self.spec.doublings)
        x: Tensor | None = None
        for name in module_widths(self.spec):
            unit = self.get_submodule(name)
            dtype = dtype_of(unit)
            here = seen.pop().to(dtype)
            # The features are doubled, then cast: `precision.py` watches a unit's inputs as they are cast.
            x = unit(here if x is None else torch.cat([doubled(x).to(dtype), here], dim=1))
        assert x is not None  # there is at least one module
        logits: Tensor = self.conv_img(x.to(dtype_of(self.conv_img)))
        return logits


def crn_units(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    return [*module_widths(spec), "conv_img"]


def crn_stages(spec: GeneratorSpec) -> list[str]:
    """Values that the deploy model and the trained generator both compute, in the order they are computed."""
    stages = []
    for name in module_widths(spec):
        stages += [*(f"{name}.{part}" for part in ("conv_0", "norm_0", "conv_1", "norm_1")), name]
    return [*stages, "conv_img"]
