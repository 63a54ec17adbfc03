"""A dense SPADE model that computes hidden maps, gamma and beta for distinct windows alone, to be watched in less time.

They have the same values as the whole maps, so the ranges are the same, too. What reads them gets whole maps, which are
gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.build import ExportedModel
from spade_deploy.export.spade import DeployBlock, DeployModel, levels
from spade_deploy.networks.modulation import LevelLookup, training_lookup
from spade_deploy.spec import Architecture


@contextmanager
def distinct_windows(model: ExportedModel, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Inside, a dense SPADE model on these inputs computes as the module says; other models are left as they are.

    inputs: those of the model, in its order. A level of many windows is left as it is, too.
    """
    changed: list[nn.Module] = []

    def change(convolution: nn.Module, forward: Callable[..., Tensor]) -> None:
        convolution.forward = forward
        changed.append(convolution)

    try:
        if isinstance(model, DeployModel) and model.spec.architecture is Architecture.SPADE:
            label = inputs[0]
            tables = training_lookup(model.spec, label, inputs[1] if model.spec.labels.has_edges else None)
            for stride, names in levels(model.spec).items():
                level = tables.levels.get(stride)
                if level is None:
                    continue
                level = level.to(next(model.parameters()).device)
                merged = model.get_submodule(f"level_{stride}.0")
                assert isinstance(merged, nn.Conv2d)
                change(merged, partial(_clone, _hidden_rows(merged, level)))
                shape = (len(label), label.shape[1] // stride, label.shape[2] // stride)
                for layer in (layer for name in names for layer in _modulations(model, name)):
                    change(layer, partial(_gathered, layer, level, shape))
        yield
    finally:
        for convolution in changed:
            del convolution.forward


def _modulations(model: DeployModel, name: str) -> list[nn.Conv2d]:
    block = model.get_submodule(name)
    assert isinstance(block, DeployBlock)
    layers = [block.norm_0, block.norm_1, *([block.norm_s] if block.has_shortcut else [])]
    return [layer.modulation for layer in layers]


def _hidden_rows(convolution: nn.Conv2d, level: LevelLookup) -> Tensor:
    """What a convolution of the one-hot map gives for each of U windows, as a map 1 x C x 1 x U."""
    assert convolution.bias is not None
    with torch.no_grad():
        table = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
        rows = functional.embedding_bag(level.inputs, table, level.starts, mode="sum") + convolution.bias
    return rows.t()[None, :, None]


def _clone(rows: Tensor, _: Tensor) -> Tensor:
    """The rows as a new tensor: whoever watches a model sees what operators make."""
    return rows.clone()


def _gathered(convolution: nn.Conv2d, level: LevelLookup, shape: tuple[int, int, int], hidden: Tensor) -> Tensor:
    """What a convolution of the hidden map gives for each distinct window, gathered: N x C x h x w."""
    rows = hidden[0, :, 0].t()
    outside = rows.new_zeros(1, rows.shape[1])
    windows = level.taps.rows(torch.cat([rows, outside])).view(-1, convolution.weight[0].numel())
    found = functional.linear(windows, convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias)
    return level.pixels.rows(found).view(*shape, -1).permute(0, 3, 1, 2)
