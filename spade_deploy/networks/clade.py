"""The generator of CLADE (Tan et al., "Efficient Semantic Image Synthesis via Class-Adaptive Normalization", 2021).

It has the layer names of the released checkpoints.

It is SPADE's generator with another modulation: gamma and beta of a pixel are a row of a learned table, that of the
pixel's class. They are no convolutions, and depend on nothing around the pixel.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.lookup.regions import region_positions
from spade_deploy.networks.modulation import LevelLookup, TrainingLookup
from spade_deploy.networks.spade import ModulatedBlock, SpadeGenerator, parameter_free_norm
from spade_deploy.spec import BlockSpec, GeneratorSpec


class ClassAffine(nn.Module):
    """x * gamma[class] + beta[class]. SPADE's 1 + gamma is plain gamma here.

    With positions p (CLADE-ICPE) gamma and beta are multiplied with 1 plus a 1 x 1 convolution of p each.
    """

    def __init__(self, classes: int, channels: int, has_positions: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))
        self.dist_conv_w = nn.Conv2d(2, 1, 1) if has_positions else None
        self.dist_conv_b = nn.Conv2d(2, 1, 1) if has_positions else None

    def forward(self, x: Tensor, label: Tensor, position: Tensor | None) -> Tensor:
        """x: N x C x h x w; label: N x h x w class ids; position: N x 2 x h x w."""
        gamma, beta = (functional.embedding(label, table).permute(0, 3, 1, 2) for table in (self.weight, self.bias))
        if self.dist_conv_w is not None and self.dist_conv_b is not None:
            gamma, beta = gamma * (1 + self.dist_conv_w(position)), beta * (1 + self.dist_conv_b(position))
        return x * gamma + beta


class Clade(nn.Module):
    """Class-adaptive normalisation. With an edge map its result has one more channel, a 1 x 1 convolution of it."""

    def __init__(self, spec: GeneratorSpec, channels: int) -> None:
        super().__init__()
        self.num_ids = spec.labels.num_ids
        self.param_free_norm = parameter_free_norm(spec.norm, channels)
        self.class_specified_affine = ClassAffine(self.num_ids, channels, spec.has_positions)
        self.has_positions = spec.has_positions
        self.inst_conv = nn.Conv2d(1, 1, 1) if spec.labels.has_edges else None

    def forward(self, x: Tensor, segmap: Tensor, level: LevelLookup | None = None) -> Tensor:
        """x: N x C x h x w; segmap: N x L x H x W of any size, picked at the nearest pixel. level: None.

        With positions these are the last two of the segmap's channels.
        """
        picked = functional.interpolate(segmap, size=x.shape[2:], mode="nearest")
        label = picked[:, : self.num_ids].argmax(dim=1)
        position = picked[:, -2:] if self.has_positions else None
        modulated: Tensor = self.class_specified_affine(self.param_free_norm(x), label, position)
        if self.inst_conv is None:
            return modulated
        return torch.cat([modulated, self.inst_conv(picked[:, self.num_ids : self.num_ids + 1])], dim=1)


class CladeBlock(ModulatedBlock[Clade]):
    """Residual block of CLADE layers."""

    def __init__(self, spec: GeneratorSpec, block: BlockSpec) -> None:
        super().__init__(spec, block.in_channels, block.out_channels, Clade, appended=int(spec.labels.has_edges))


class CladeGenerator(SpadeGenerator):
    """segmap (and style vector) -> image, as SPADE's generator."""

    block_type: ClassVar[Any] = CladeBlock

    def forward(self, segmap: Tensor, z: Tensor | None = None, lookup: TrainingLookup | None = None) -> Tensor:
        """See `SpadeGenerator.forward`; lookup: None. Positions are found here, on the CPU."""
        if self.spec.has_positions:
            label = segmap[:, : self.spec.labels.num_ids].argmax(dim=1)
            position = torch.from_numpy(region_positions(label.cpu().numpy()))
            segmap = torch.cat([segmap, position.to(segmap)], dim=1)
        return super().forward(segmap, z)
