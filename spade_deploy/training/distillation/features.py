"""The distance of a student's features from its teacher's.

A student has fewer channels than its teacher. A 1 x 1 convolution, which learns with the student, makes as many of them
as the teacher has. The distance of a residual block's output is the squared error of what it makes, divided by the
teacher's mean square, so that it is 0 for equal features and 1 for a map that makes zeros:

    mean over blocks and samples of   sum |M s - t|^2 / sum |t|^2

Each sample is divided by its own mean square: so the mean is the same however a batch is shared among processes, or
split into parts.

Channels of a pruned student begin as copies of the teacher's: there the map begins as the choice of these channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spade_deploy.networks.build import Generator
from spade_deploy.networks.discriminator import at_least_float32
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.distillation.pruning import Chosen, blocks_of, output_groups

_LEAST = 1e-12
"""What the teacher's mean square is at least: features that are all zero have no scale."""


class FeatureTaps:
    """Collects the outputs of a generator's residual blocks while it runs inside `collecting`."""

    def __init__(self, generator: Generator) -> None:
        self._found: list[Tensor] | None = None
        self._hooks = [block.register_forward_hook(self._keep) for block in blocks_of(generator).values()]

    def remove(self) -> None:
        """Leave the generator as it was."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """A block in which outputs are added to the list that it is given."""
        self._found = []
        try:
            yield self._found
        finally:
            self._found = None

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._found is not None:
            self._found.append(output)


class FeatureMaps(nn.Module):
    """The 1 x 1 convolutions from a student's features to its teacher's, one for each residual block."""

    def __init__(self, student: GeneratorSpec, teacher: GeneratorSpec) -> None:
        super().__init__()
        self._groups = output_groups(student)
        self.maps = nn.ModuleList(
            nn.Conv2d(own.out_channels, other.out_channels, 1, bias=False)
            for own, other in zip(student.blocks, teacher.blocks, strict=True)
        )

    @torch.no_grad()
    def begin_with(self, chosen: Chosen) -> None:
        """Begin as the choice of the teacher's channels that the student's are copies of."""
        for group, one in zip(self._groups.values(), self.maps, strict=True):
            weight = one.get_parameter("weight")
            weight.zero_()
            channels = chosen[group].to(weight.device)
            weight[channels, torch.arange(len(channels), device=weight.device), 0, 0] = 1.0

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The outputs of the blocks, N x C x h x w each. Returns the mean of the relative squared errors, a scalar."""
        errors = [
            relative_error(at_least_float32(one(own)), at_least_float32(other))
            for one, own, other in zip(self.maps, student, teacher, strict=True)
        ]
        return torch.stack(errors).mean()


def relative_error(mapped: Tensor, wanted: Tensor) -> Tensor:
    """The squared error of each sample divided by the mean square of what is wanted of it; the mean, a scalar."""
    error, scale = (part.square().flatten(1).mean(1) for part in (mapped - wanted, wanted))
    return (error / scale.clamp_min(_LEAST)).mean()
