"""Watch the values of the dense graph in a lookup model, so that the ranges of both SPADE graphs take one pass.

Both graphs compute the same hidden rows, gamma', beta' and feature maps; the lookup graph computes each row once. Only
the learned shortcut differs: the dense graph computes Ws (x gamma' + beta'), the lookup graph Ws (x gamma') + Ws beta'.
So beta' and the sum inside the brackets are computed here, too. The weights differ as well; both models' are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.build import ExportedModel
from spade_deploy.export.lookup import LookupModel, LookupShortcut, spread
from spade_deploy.export.spade import DeployModel, levels
from spade_deploy.spec import Architecture


def has_all_values(lookup: ExportedModel, dense: ExportedModel) -> bool:
    """Whether inside `dense_values` the lookup model computes all values of the dense model: only in SPADE."""
    is_spade = lookup.spec.architecture is Architecture.SPADE
    return is_spade and isinstance(lookup, LookupModel) and isinstance(dense, DeployModel)


@contextmanager
def dense_values(lookup: ExportedModel, dense: ExportedModel) -> Iterator[None]:
    """Inside, the learned shortcuts of `lookup` also compute what those of `dense` do. The results stay as they are."""
    changed: list[LookupShortcut] = []
    try:
        for block in lookup.spec.blocks:
            if block.has_shortcut:
                shortcut = lookup.get_submodule(f"{block.name}.conv_s")
                modulation = dense.get_submodule(f"{block.name}.norm_s.modulation")
                assert isinstance(shortcut, LookupShortcut)
                assert isinstance(modulation, nn.Conv2d)
                shortcut.forward = partial(_both, shortcut, modulation)  # type: ignore[method-assign]
                changed.append(shortcut)
        yield
    finally:
        for shortcut in changed:
            del shortcut.forward


def one_hot_readers(lookup: ExportedModel) -> list[str]:
    """The units that read a map of zeros and ones in the dense graph, and integers in the lookup graph."""
    first = ["fc"] if lookup.spec.is_dynamic else []
    return [*first, *(f"level_{stride}" for stride in levels(lookup.spec))]


def _both(shortcut: LookupShortcut, modulation: nn.Conv2d, x: Tensor, windows: Tensor, index: Tensor) -> Tensor:
    """`LookupShortcut.forward`, with the two values that only the dense graph has."""
    modulated = x * spread(shortcut.gamma(windows), index)
    assert modulation.bias is not None
    weight, bias = modulation.weight.chunk(2)[1], modulation.bias.chunk(2)[1]
    beta = functional.linear(windows, weight.permute(0, 2, 3, 1).flatten(1), bias)
    modulated + spread(beta, index)  # watched by whoever watches operators
    projected: Tensor = shortcut.projection(modulated)
    return projected + spread(shortcut.beta(windows), index)
