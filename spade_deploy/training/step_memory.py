"""The memory of a training step, estimated from shapes alone.

A whole step runs on tensors without data, and what is alive at every moment is added up. That takes seconds, and works
for a network that this machine could never train.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spade_deploy.networks.build import build_generator
from spade_deploy.training.config import Amp, Modulation, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.distillation.learner import make_learner
from spade_deploy.training.perceptual import PerceptualLoss, VggFeatures

PROCESS_BYTES = 365 << 20
"""The memory that Python and PyTorch themselves take in a process on a CPU."""
CPU_EXCESS = 1.15
"""The factor from the memory of the tensors to that of a process on a CPU: the allocator leaves gaps, and convolutions
need workspace. For six networks of 0.04 to 1.8 GiB, on Linux, the estimate was within 5 %."""


@dataclass(frozen=True)
class StepMemory:
    """The most memory that a training step holds at any moment, by the shapes of its tensors."""

    weights: int
    """Bytes of all networks, an averaged generator and VGG included."""

    learning: int
    """Bytes of the gradients and of Adam's moments."""

    activations: int
    """Bytes of the tensors that are kept for the backward pass, and of those in that pass, at the worst moment."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.learning + self.activations


def estimate_memory(setup: Setup) -> StepMemory:
    """The memory of a training step by the shapes of its tensors: nothing is computed, no memory is taken.

    Workspace of convolutions and gaps of the allocator are not included. float16 is counted as bfloat16, which has the
    same size. Compiled networks are counted as if they were not compiled, and modulation by lookup as if it were dense.
    """
    config = replace(
        setup.train,
        perceptual_file=None,
        amp=Amp.OFF if setup.train.amp is Amp.OFF else Amp.BF16,
        modulation=Modulation.DENSE,
        compile=False,
        deterministic=False,
    )
    ledger = _LiveStorage()
    with torch.random.fork_rng(devices=[]), _modules_stay(), FakeTensorMode(), ledger:
        teacher = None if config.distill is None else build_generator(config.distill.teacher.generator)
        learner = make_learner(replace(setup, train=config), torch.device("cpu"), teacher=teacher)
        if setup.train.uses_perceptual:
            learner.perceptual = PerceptualLoss(VggFeatures("VGG19"))
        weights = ledger.live
        batch = _without_data(setup)
        for number in (1, 2):  # the peak is in the second step, since Adam has no moments during the first one
            ledger.peak = 0
            with suppress(DataDependentOutputException):  # a step ends by reading the losses, which have no data
                learner.step(batch, 1.0)
            if learner.steps_done != number:
                raise RuntimeError("the step without data ended early: it asked for a value before the losses")
        learned = ledger.live - weights
        return StepMemory(weights, learned, max(0, ledger.peak - weights - learned))


def cpu_bytes(memory: StepMemory) -> int:
    """The memory of a process whose training step on a CPU needs `memory`."""
    return PROCESS_BYTES + round(CPU_EXCESS * memory.total)


@contextmanager
def _modules_stay() -> Iterator[None]:
    """A block in which `Module.to` does nothing.

    PyTorch 2.13 fails to move modules without data, and sizes are the same on every device.
    """
    move = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *args, **kwargs: self  # type: ignore
    try:
        yield
    finally:
        torch.nn.Module.to = move  # type: ignore[method-assign]


class _LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations return and that are still alive; a storage that dies is subtracted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._enter(value)
        self.peak = max(self.peak, self.live)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._leave, key, storage.nbytes())

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _without_data(setup: Setup) -> Batch:
    spec, count = setup.generator, setup.train.batch_size
    shape = (count, spec.height, spec.width)
    label = torch.zeros(shape, dtype=getattr(torch, spec.labels.id_type))
    instance = torch.zeros(shape, dtype=torch.int32) if spec.labels.has_edges else None
    return Batch(label, instance, torch.zeros(count, 3, spec.height, spec.width), ("",) * count)
