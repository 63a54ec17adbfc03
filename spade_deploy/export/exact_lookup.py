"""The modulations of a float64 reference by lookup: a fraction of the work, with tables that are proved on these maps.

In float64, gamma and beta by lookup are those of the convolutions but for the last digits (`networks/modulation.py`).
The tables of distinct windows come from `lookup/tables.py`, as those of a lookup graph do: a fault there would spoil
the reference, too, and so widen the tolerance for that very fault. Therefore a small SPADE layer whose weights are
whole numbers is computed both ways, at every pixel of every level. float64 adds such numbers exactly, so that any
difference shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.modulation import LevelLookup, TrainingLookup, modulate, training_lookup
from spade_deploy.spec import Architecture, GeneratorSpec

_WEIGHT = 1000
"""The largest weight of the small layer. Its results stay below 2^53, so that float64 holds each of them exactly."""
_HIDDEN = 16


def exact_lookup(spec: GeneratorSpec, label: Tensor, instance: Tensor | None, segmap: Tensor) -> TrainingLookup | None:
    """The proved tables of these maps; None where a model has no modulations, or where a level fails the proof.

    label, instance: N x H x W integers. segmap: N x L x H x W float64, of the same maps. A level with so many windows
    that convolutions are as fast is left out.
    """
    if spec.architecture is not Architecture.SPADE:  # CLADE has no convolutions there, and OASIS's see noise, too
        return None
    tables = training_lookup(spec, label, instance)
    proved = all(_is_right(spec, segmap, stride, level) for stride, level in tables.levels.items())
    return tables if proved else None


def _is_right(spec: GeneratorSpec, segmap: Tensor, stride: int, level: LevelLookup) -> bool:
    """Whether the lookup of a level gives what convolutions give, exactly and at every pixel."""
    size = (segmap.shape[2] // stride, segmap.shape[3] // stride)
    picked = functional.interpolate(segmap, size=size, mode="nearest")
    random = torch.Generator().manual_seed(stride)
    shared = _whole_numbers(segmap.shape[1], _HIDDEN, spec.kernel_size, random)
    gamma, beta = (_whole_numbers(_HIDDEN, 1, spec.kernel_size, random) for _ in range(2))
    x = torch.randint(1, 4, (len(segmap), 1, *size), generator=random, dtype=torch.float64)
    hidden = functional.relu(shared(picked))
    expected = x * (1 + gamma(hidden)) + beta(hidden)
    return torch.equal(modulate(x, shared, gamma, beta, level), expected)


def _whole_numbers(inputs: int, outputs: int, kernel: int, random: torch.Generator) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, dtype=torch.float64).requires_grad_(False)
    for values in (layer.weight, layer.bias):
        assert values is not None
        values.copy_(torch.randint(-_WEIGHT, _WEIGHT + 1, values.shape, generator=random))
    return layer
