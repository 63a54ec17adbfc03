"""What a run will need, before it starts: memory, and seconds a step and in all. Nothing of a run is written.

Memory is foreseen from shapes alone: a whole training step is run on tensors without data, and what lives at every
moment is added up. That takes seconds and works for a network that this machine could never train. Where it says that
a step fits, a few real steps are then made on made-up label maps, in a process of their own, and timed; the memory
which that process took is the figure, and the foreseen one stands beside it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spade_deploy.errors import SpadeError, TrainingError
from spade_deploy.labels.files import label_dtype, synthetic_label_maps
from spade_deploy.training.config import Amp, Modulation, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.loop import choose_device, peak_memory_bytes
from spade_deploy.training.perceptual import PerceptualLoss, VggFeatures
from spade_deploy.training.shortage import shortage
from spade_deploy.training.steps import Learner

PROCESS_BYTES = 365 << 20
CPU_EXCESS = 1.15
"""On a CPU a process takes PROCESS_BYTES for Python and PyTorch, and this much of what its tensors need: the system's
allocator leaves gaps, convolutions want workspace. Six networks of 0.04 to 1.8 GiB were foreseen to 5 %, on Linux."""
SAFE_SHARE = 0.9
"""Of the free memory: what is foreseen to need more is not tried."""
CHILD_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Memory:
    """The most memory that a training step holds, as its tensors' shapes say; in bytes.

    weights: of all networks, an averaged generator and VGG included. learning: gradients and Adam's moments.
    activations: what is kept for the backward pass, and what it makes, at the worst moment.
    """

    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.learning + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a run needs. memory_bytes: of a training process on `device`, the most at any moment.

    is_measured: whether real steps were made; else memory follows from the shapes, and nothing is known of time.
    foreseen: the shapes' memory, without the process itself. free_bytes: of the device, None where nothing tells.
    seconds_per_step: the median of the timed steps. steps: of the whole run, None where its length is not known.
    """

    device: str
    memory_bytes: int
    is_measured: bool
    foreseen: Memory
    free_bytes: int | None
    seconds_per_step: float | None
    steps: int | None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of all steps of the run, without loading, checkpoints and sample pictures."""
        if self.seconds_per_step is None or self.steps is None:
            return None
        return self.seconds_per_step * self.steps

    @property
    def fits(self) -> bool | None:
        """Whether the device has that much memory free; None where nothing tells."""
        return None if self.free_bytes is None else self.memory_bytes <= self.free_bytes


def estimate(
    setup: Setup,
    device: torch.device,
    *,
    steps_timed: int = 2,
    steps_per_epoch: int | None = None,
    processes: int = 1,
) -> Estimate:
    """Memory and time of the run that `setup` describes, on one of `processes` like this one.

    steps_timed: after a first one that does not count; 0 makes no real step. steps_per_epoch: of the data, without
    which the length of a run that is given in epochs is not known. Raises TrainingError where a step fails for another
    reason than memory, ConfigError for an impossible device.
    """
    setup = per_process(setup, processes)
    choose_device(str(device))
    try:
        foreseen = foresee(setup)
    except ValueError as error:  # PyTorch's, such as batch norm's on a single pixel
        raise TrainingError(f"--estimate: a step failed: {error}") from error
    expected = foreseen.total if device.type == "cuda" else cpu_bytes(foreseen)
    free = free_bytes(device)
    config = setup.train
    steps = config.steps if steps_per_epoch is None else config.total_steps(steps_per_epoch)
    notes: tuple[str, ...] = () if steps is not None else ("how long the run is depends on the number of samples",)
    if config.modulation is Modulation.LOOKUP:
        notes += ("memory is foreseen for dense modulation; how much less lookup needs depends on the label maps",)
    unknown = Estimate(str(device), expected, False, foreseen, free, None, steps, notes)
    if steps_timed < 1:
        return unknown
    if free is not None and expected > SAFE_SHARE * free:
        return replace(unknown, notes=(*notes, f"not tried: {_gib(expected)} is foreseen, {_gib(free)} is free"))
    found = _measured(setup, device, steps_timed)
    if found is None:
        return replace(unknown, notes=(*notes, "a real step ran out of memory"))
    return replace(
        unknown,
        memory_bytes=found["peak_bytes"],
        is_measured=True,
        seconds_per_step=statistics.median(found["seconds"]),
        notes=(*notes, f"measured in {len(found['seconds'])} steps on made-up label maps"),
    )


def per_process(setup: Setup, processes: int) -> Setup:
    """The setup with the samples that one of several processes learns from."""
    config = setup.train
    share = max(config.accumulate, config.batch_size // processes)
    return setup if processes == 1 else replace(setup, train=replace(config, batch_size=share))


def foresee(setup: Setup) -> Memory:
    """The memory of a training step from the shapes of its tensors: nothing is computed, no memory is taken.

    Convolutions' workspace and what an allocator leaves unused come on top.
    float16 is counted as bfloat16, which has its size; compiled networks as they are when not compiled; label maps by
    patterns (modulation lookup) as dense ones.
    """
    config = replace(
        setup.train,
        perceptual_file=None,
        amp=Amp.OFF if setup.train.amp is Amp.OFF else Amp.BF16,
        modulation=Modulation.DENSE,
        compile=False,
        deterministic=False,
    )
    ledger = _Ledger()
    with torch.random.fork_rng(devices=[]), _modules_stay(), FakeTensorMode(), ledger:
        learner = Learner(replace(setup, train=config), torch.device("cpu"))
        if setup.train.uses_perceptual:
            learner.perceptual = PerceptualLoss(VggFeatures("VGG19"))
        weights = ledger.live
        batch = _without_data(setup)
        for number in (1, 2):  # the peak is the second step's: in the first one's passes there are no moments yet
            ledger.peak = 0
            with suppress(DataDependentOutputException):  # at its end the losses as numbers, which there are none of
                learner.step(batch, 1.0)
            if learner.steps_done != number:
                raise RuntimeError("the step without data ended early: some value was asked for before the losses")
        learned = ledger.live - weights
        return Memory(weights, learned, max(0, ledger.peak - weights - learned))


def cpu_bytes(foreseen: Memory) -> int:
    """What a process needs that trains on a CPU."""
    return PROCESS_BYTES + round(CPU_EXCESS * foreseen.total)


def free_bytes(device: torch.device) -> int | None:
    """Memory of the device that can still be taken; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


@contextmanager
def _modules_stay() -> Iterator[None]:
    """Modules without data cannot be moved (PyTorch 2.13 fails), and need not: sizes are the same everywhere."""
    move = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *args, **kwargs: self  # type: ignore
    try:
        yield
    finally:
        torch.nn.Module.to = move  # type: ignore[method-assign]


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that live, by what operations return; each is taken off when it dies."""

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


def _made_up(setup: Setup, seed: int) -> Batch:
    """Voronoi regions, and photos of noise."""
    spec, count = setup.generator, setup.train.batch_size
    ids, regions = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed)
    instance = torch.from_numpy(regions.copy()) if spec.labels.has_edges else None
    photo = torch.rand(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(torch.from_numpy(ids.astype(label_dtype(spec.labels))), instance, photo, ("",) * count)


def _measured(setup: Setup, device: torch.device, steps: int) -> dict[str, Any] | None:
    """Peak memory and seconds of real steps in a process of its own; None where that ran out of memory."""
    request = json.dumps({"setup": setup.to_json(), "device": str(device), "steps": steps})
    # -P: a file in the current folder must not take the place of a library.
    command = [sys.executable, "-P", "-m", "spade_deploy.training.estimate"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=CHILD_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(f"--estimate: {steps} steps took more than {CHILD_LIMIT_S:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" in answer:
            raise TrainingError(f"--estimate: a step failed: {answer['error']}", hint=answer["hint"])
        return None if answer.get("out_of_memory") else answer
    if done.returncode == -9:  # the system ends who takes too much
        return None
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise TrainingError(f"--estimate: a step failed: {reason}")


def _answer(request: Any) -> dict[str, Any]:
    """In the process of its own: make the steps."""
    setup, device = Setup.from_json(request["setup"]), torch.device(request["device"])
    try:
        return _run_steps(setup, device, request["steps"])
    except SpadeError as error:
        return {"error": error.message, "hint": error.hint}
    except (RuntimeError, MemoryError) as error:
        if shortage(error) is not None:
            return {"out_of_memory": True}
        raise


def _run_steps(setup: Setup, device: torch.device, steps: int) -> dict[str, Any]:
    batches = [_made_up(setup, seed) for seed in range(2)]
    learner = Learner(setup, device, statistics_batches=lambda: batches[:1])
    learner.step(batches[0], 1.0)
    seconds = []
    cycle = setup.train.discriminator_steps  # the generator learns in one of so many
    for number in range(steps):
        start = time.perf_counter()
        for _ in range(cycle):
            learner.step(batches[(number + 1) % 2], 1.0)  # its losses are numbers at the end: a GPU has finished
        seconds.append((time.perf_counter() - start) / cycle)
    return {"seconds": seconds, "peak_bytes": peak_memory_bytes(device)}


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
