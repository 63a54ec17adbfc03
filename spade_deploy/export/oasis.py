"""The modules that are recorded for OASIS, dense and lookup. The trained module stays untouched.

The dense graph is SPADE's, whose convolutions see the noise as constant maps. In the lookup graph the noise costs
nothing a pixel: it is one vector z an image, so that in a convolution of [noise, one-hot] a tap inside the image adds

    W[t] [z, one-hot] = W_z[t] z + table[t, code at t]

where the first term is the same for every code. So W_z[t] z is added to the table's rows when the graph runs, and
the rows for 'outside the image' stay zeros: there the padding is zero for the noise as well. Every image of a batch has
a table of its own, and a code says which (`lookup/tables.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import dtype_of
from spade_deploy.export.fold import ConvWeights, fold_conv
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.spade import DeployModel
from spade_deploy.export.window_rows import code_table
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.spec import LabelSpec


class DeployOasis(DeployModel):
    """OASIS's dense graph. Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`."""


class NoisyWindowSum(nn.Module):
    """A convolution of [noise, one-hot], over windows of codes: ... x k*k integers and z, N x Z -> ... x C."""

    offsets: Tensor

    def __init__(self, weights: ConvWeights, labels: LabelSpec, noise: int) -> None:
        super().__init__()
        table, rows = code_table(weights.weight[:, noise:], labels)
        taps, outputs = table.shape[0] // rows, table.shape[1]
        self.table = nn.Parameter(table.view(taps, rows, outputs), requires_grad=False)
        of_noise = weights.weight[:, :noise].permute(2, 3, 0, 1).flatten(0, 2)  # k*k*C x Z
        self.noise = nn.Linear(noise, taps * outputs, bias=False, dtype=torch.float64).requires_grad_(False)
        self.noise.weight.data.copy_(of_noise)
        self.bias = nn.Parameter(weights.bias.clone(), requires_grad=False)
        inside = torch.ones(1, 1, rows, 1, dtype=torch.float64)
        inside[:, :, -1] = 0
        self.is_inside = nn.Parameter(inside, requires_grad=False)
        self.register_buffer("offsets", torch.arange(taps, dtype=torch.int32) * rows, persistent=False)

    def forward(self, codes: Tensor, z: Tensor) -> Tensor:
        taps, _, outputs = self.table.shape
        of_noise = self.noise(z).view(-1, taps, 1, outputs)
        tables = (of_noise * self.is_inside + self.table).flatten(0, 2)
        summed: Tensor = functional.embedding(codes + self.offsets, tables).sum(dim=-2) + self.bias
        return summed


class NoisyRows(nn.Module):
    """The hidden rows of a level: U x k*k codes and z, N x Z -> U x C."""

    def __init__(self, weights: ConvWeights, labels: LabelSpec, noise: int) -> None:
        super().__init__()
        self.windows = NoisyWindowSum(weights, labels, noise)

    def forward(self, codes: Tensor, z: Tensor) -> Tensor:
        return functional.relu(self.windows(codes, z))


class LookupOasis(LookupModel):
    """OASIS's lookup graph. Its inputs are those of `LookupModel`, and the noise, N x Z float32, at the end."""

    def _first_layer(self, generator: SpadeGenerator) -> nn.Module:
        weights = fold_conv(generator.fc)
        noise = self.spec.noise_channels
        return NoisyWindowSum(weights, self.spec.labels, noise) if noise else super()._first_layer(generator)

    def _level(self, weights: ConvWeights) -> nn.Module:
        noise = self.spec.noise_channels
        return NoisyRows(weights, self.spec.labels, noise) if noise else super()._level(weights)

    def _start(self, latent: Tensor | None, z: Tensor | None) -> Tensor:
        if z is None:
            return super()._start(latent, z)
        x: Tensor = self.fc(latent, z.to(dtype_of(self.fc)))
        return x

    def _rows(self, level: str, codes: Tensor, z: Tensor | None) -> Tensor:
        if z is None:
            return super()._rows(level, codes, z)
        unit = self.get_submodule(level)
        rows: Tensor = unit(codes, z.to(dtype_of(unit)))
        return rows
