"""A student whose sub-networks share their weights: the once-for-all part of the search for widths.

Idea: Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020. The teacher's
channels are put in the order of their importance. A narrower student is then the leading part of every tensor: a slice.
In each step one slice learns from the teacher's images, and its gradients are added to the part of the shared weights
that it is. Before a slice is judged, its batch-norm statistics are estimated anew, since those of the whole student, or
of another slice, are not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.distillation.features import FeatureTaps, relative_error
from spade_deploy.training.distillation.pruning import (
    channel_order,
    improve_vectors,
    leading,
    output_groups,
    pruned_student,
)
from spade_deploy.training.ema import Inputs, estimate_statistics

RATE = 1e-3
"""The learning rate of the shared weights."""
BETAS = (0.0, 0.9)
"""Those of Adam, as in the paper's training."""


@dataclass(frozen=True)
class Wanted:
    """Inputs, and what the teacher makes of them."""

    inputs: Inputs
    """A segmap, and z or None."""
    image: Tensor
    """N x 3 x H x W in [-1, 1]."""
    features: tuple[Tensor, ...]
    """The outputs of the teacher's residual blocks; none without the loss that compares them."""


@torch.no_grad()
def wanted_of(teacher: Generator, inputs: Inputs, *, with_features: bool = False) -> Wanted:
    """What a teacher in eval mode makes of inputs."""
    taps = FeatureTaps(teacher)
    with taps.collecting() as found:
        image = teacher(*inputs)
    taps.remove()
    return Wanted(inputs, image, tuple(found) if with_features else ())


def narrowed(shared: Generator, spec: GeneratorSpec) -> Generator:
    """The slice of `spec`, which is no wider in any level: the leading part of every tensor of `shared`, as a copy.

    It is in eval mode. Spectral norm's vectors are fitted to its own weights.
    """
    student = build_generator(spec)
    whole = shared.state_dict()
    student.load_state_dict({name: _part(whole[name], tensor) for name, tensor in student.state_dict().items()})
    for name, module in student.named_modules():
        if hasattr(module, "weight_u") and whole[f"{name}.weight_orig"].shape != module.weight_orig.shape:
            improve_vectors(module)
    return student.to(next(shared.parameters()).device).eval()


class SharedStudent:
    """The widest student, whose channels are the teacher's in the order of their importance, and its optimiser.

    weight_l1, weight_features: of the losses; features are compared with those of the teacher's channels that the
    student's began as.
    """

    def __init__(self, teacher: Generator, spec: GeneratorSpec, *, weight_l1: float, weight_features: float) -> None:
        self._order = channel_order(teacher)
        self.module = pruned_student(teacher, spec, leading(self._order, spec)).requires_grad_(True)
        self._weights = (weight_l1, weight_features)
        self._optimizer = torch.optim.Adam(self.module.parameters(), RATE, BETAS)

    def step(self, spec: GeneratorSpec, wanted: Wanted) -> float:
        """Let the slice of `spec` learn one step. Returns the L1 distance of its image, before the step."""
        student = narrowed(self.module, spec).train()
        taps = FeatureTaps(student)
        with taps.collecting() as found:
            image = student(*wanted.inputs)
        distance = functional.l1_loss(image, wanted.image)
        loss = self._weights[0] * distance
        if wanted.features:
            loss = loss + self._weights[1] * self._feature_loss(spec, found, wanted.features)
        loss.backward()  # type: ignore[no-untyped-call]
        self._take_gradients(student)
        self._optimizer.step()
        return float(distance.detach())

    def _take_gradients(self, student: Generator) -> None:
        """Add a slice's gradients to the part of the shared weights that it is; all others are zero."""
        self._optimizer.zero_grad(set_to_none=False)
        for name, parameter in student.named_parameters():
            own = self.module.get_parameter(name)
            if own.grad is None:
                own.grad = torch.zeros_like(own)
            if parameter.grad is not None:
                _part(own.grad, parameter).add_(parameter.grad)

    def _feature_loss(self, spec: GeneratorSpec, own: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        kept = leading(self._order, spec)
        errors = [
            relative_error(one, whole[:, kept[group].to(whole.device)])
            for group, one, whole in zip(output_groups(spec).values(), own, other, strict=True)
        ]
        return torch.stack(errors).mean()


def with_own_statistics(student: Generator, batches: Sequence[Inputs]) -> Generator:
    """The same student, in eval mode, with batch-norm statistics that are its own."""
    estimate_statistics(student, batches)
    return student


@torch.no_grad()
def distance(student: Generator, judged: Sequence[Wanted]) -> float:
    """The mean absolute difference from the teacher's images, of a range of 2, over all batches."""
    errors = [functional.l1_loss(student(*one.inputs), one.image, reduction="none").mean((1, 2, 3)) for one in judged]
    return float(torch.cat(errors).double().mean())


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """The leading part of a tensor that has the shape of another one."""
    return whole[tuple(slice(0, size) for size in like.shape)]
