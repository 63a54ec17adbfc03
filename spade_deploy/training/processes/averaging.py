"""Networks whose gradients are averaged over the processes that train together."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spade_deploy.training.processes.world import World

_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters


def parallel(network: nn.Module, world: World) -> nn.Module:
    """The network, wrapped so that its backward pass gives every process the mean of all processes' gradients.

    Buffers are not sent: batch norm synchronises its own statistics, and spectral norm's vectors follow from weights,
    which are equal.
    """
    if world.size == 1:
        return network
    # PyTorch 2.13 renamed the option, and warns of its old name.
    name = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _DDP_OPTIONS)
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(network, **options)


@contextmanager
def without_averaging(networks: Iterable[nn.Module]) -> Iterator[None]:
    """A block in which backward passes do not average gradients; a later backward pass averages their sum."""
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield
