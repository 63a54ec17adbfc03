"""The exponential moving average of the generator, which is smoother than any single step. It is what gets deployed.

Weights are averaged (Polyak; with a decay as in Karras et al., "Progressive Growing of GANs", 2018). The decay grows to
its value: were it constant, the first weights, which mean nothing, would still be a fifth of the average after 1.5 / (1
- decay) steps, and the images would be pale. Statistics are not averaged, since the mean of batch-norm statistics
belongs to no network. Instead they are estimated on the averaged weights before these are used, on the same batches
each time; that also moves spectral norm's u and v to the averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.spec import GeneratorSpec, NormType

Inputs = tuple[Tensor, Tensor | None]
"""A generator's input: a segmap, and z or None."""


class GeneratorAverage:
    """The averaged generator, `module`, in eval mode. It begins with the weights that `trained` has now."""

    def __init__(self, trained: Generator, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = _twin(trained.spec)
        self.module.to(next(trained.parameters()).device)
        self.module.load_state_dict(trained.state_dict())
        self.module.eval().requires_grad_(False)
        self._is_stale = True

    @torch.no_grad()
    def update(self, trained: Generator) -> None:
        """average <- d average + (1 - d) trained for each parameter; d = min(decay, (1 + n) / (10 + n)) in update n."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged = [parameter.data for parameter in self.module.parameters()]
        torch._foreach_lerp_(averaged, [parameter.data for parameter in trained.parameters()], 1 - decay)
        self._is_stale = True

    @torch.no_grad()
    def copy_statistics(self, trained: Generator) -> None:
        """Copy the statistics of the trained generator, if there are no batches to estimate them on."""
        for own, other in zip(self.module.buffers(), trained.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def estimate_statistics(self, batches: Sequence[Inputs]) -> None:
        """Set every batch norm's statistics to their mean over `batches`, unless no weight has changed since.

        Nothing runs for a network without buffers, such as CRN: it has neither statistics nor spectral norm's vectors.
        """
        if not self._is_stale or next(self.module.buffers(), None) is None:
            return
        estimate_statistics(self.module, batches)
        self._is_stale = False


@torch.no_grad()
def estimate_statistics(module: Generator, batches: Sequence[Inputs]) -> None:
    """Set every batch norm's statistics to their mean over `batches`. The generator is in eval mode afterwards."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    module.train()
    try:
        for segmap, z in batches:
            module(segmap, z)
    finally:
        module.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _twin(spec: GeneratorSpec) -> Generator:
    """A generator of the same spec whose batch norm never waits for peers, since only one process estimates."""
    module = build_generator(replace(spec, norm=NormType.BATCH) if spec.norm is NormType.SYNC_BATCH else spec)
    module.spec = spec
    return module
