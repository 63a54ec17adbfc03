"""The steps of the lookup graph that make rows of windows: sums of table rows, and products of hidden rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.dense_model import unfilled
from spade_deploy.export.fold import ConvWeights
from spade_deploy.spec import LabelSpec


class WindowSum(nn.Module):
    """A convolution of a one-hot map, over windows of codes: ... x k*k integers -> ... x C."""

    offsets: Tensor

    def __init__(self, weights: ConvWeights, labels: LabelSpec) -> None:
        super().__init__()
        table, rows = code_table(weights.weight, labels)
        self.table = nn.Parameter(table, requires_grad=False)
        self.bias = nn.Parameter(weights.bias.clone(), requires_grad=False)
        taps = weights.weight.shape[2] * weights.weight.shape[3]
        self.register_buffer("offsets", torch.arange(taps, dtype=torch.int32) * rows, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        summed: Tensor = functional.embedding(codes + self.offsets, self.table).sum(dim=-2) + self.bias
        return summed


class PatternProduct(nn.Module):
    """A convolution of the hidden map, over windows of hidden rows: P x k*k*hidden -> P x C."""

    def __init__(self, weights: ConvWeights) -> None:
        super().__init__()
        self.linear = make_matrix(weights.weight.permute(0, 2, 3, 1).flatten(1), weights.bias)

    def forward(self, windows: Tensor) -> Tensor:
        rows: Tensor = self.linear(windows)
        return rows


def code_table(weight: Tensor, labels: LabelSpec) -> tuple[Tensor, int]:
    """A one-hot convolution's weight, out x L x k x k, as a table of rows; and the number of rows in a block.

    The table has a block for each tap. A block has a row for each code, then a row of zeros for 'outside the image'.
    """
    by_tap = weight.permute(2, 3, 1, 0).flatten(0, 1)  # k*k x L x out
    ids = by_tap[:, : labels.num_ids]
    if labels.has_edges:
        edge = by_tap[:, labels.num_ids :]
        ids = torch.stack([ids, ids + edge], dim=2).flatten(1, 2)  # code 2 * id + edge
    table = functional.pad(ids, (0, 0, 0, 1))
    return table.flatten(0, 1), table.shape[1]


def make_matrix(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen float64 product with a weight of out x in."""
    linear = unfilled(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return linear.requires_grad_(False)
