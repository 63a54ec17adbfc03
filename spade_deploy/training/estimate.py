"""Estimate the memory and the time that a run will need, before it starts. Nothing of a run is written.

Memory is first estimated from shapes (`step_memory.py`). If the step fits, a process of its own makes a few real steps
on made-up label maps and times them. The estimate then gives the memory that this process took, and the figures from
the shapes besides.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from spade_deploy.errors import SpadeError, TrainingError, line_of
from spade_deploy.labels.files import label_dtype, synthetic_label_maps
from spade_deploy.training.config import Modulation, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.device import choose_device, free_bytes, peak_memory_bytes
from spade_deploy.training.distillation.learner import make_learner
from spade_deploy.training.shortage import shortage
from spade_deploy.training.step_memory import StepMemory, cpu_bytes, estimate_memory

SAFE_SHARE = 0.9
"""No real step is made if it is estimated to need more than this share of the free memory."""
CHILD_LIMIT_S = 3600.0
"""How long the process with the real steps may take."""


@dataclass(frozen=True)
class Estimate:
    """The memory and time that a run needs."""

    device: str
    """The device that trains."""

    memory_bytes: int
    """The most memory that a training process holds at any moment."""

    is_measured: bool
    """Whether real steps were made. Otherwise memory follows from the shapes, and the time is not known."""

    from_shapes: StepMemory
    """The memory of the tensors by their shapes, without that of the process itself."""

    free_bytes: int | None
    """The free memory of the device; None if the system does not report it."""

    seconds_per_step: float | None
    """The median time of the timed steps; None if no step was made."""

    steps: int | None
    """Steps of the whole run; None if its length is not known."""

    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps of the run, without loading, checkpoints and sample pictures."""
        if self.seconds_per_step is None or self.steps is None:
            return None
        return self.seconds_per_step * self.steps

    @property
    def fits(self) -> bool | None:
        """Whether the device has that much free memory; None if the system does not report it."""
        return None if self.free_bytes is None else self.memory_bytes <= self.free_bytes


def estimate(
    setup: Setup,
    device: torch.device,
    *,
    steps_timed: int = 2,
    steps_per_epoch: int | None = None,
    processes: int = 1,
) -> Estimate:
    """The memory and time that the run of `setup` needs in each of `processes` equal processes.

    steps_timed: how many real steps are timed, after one that does not count; 0 makes no real step.
    steps_per_epoch: those of the data; without it the length of a run that is given in epochs is not known.
    Raises TrainingError where a step fails for another reason than memory, ConfigError for an impossible device.
    """
    setup = per_process(setup, processes)
    choose_device(str(device))
    try:
        from_shapes = estimate_memory(setup)
    except ValueError as error:  # PyTorch raises it, such as for batch norm of a single pixel
        raise TrainingError(f"`estimate`: a step failed: {error}") from error
    expected = from_shapes.total if device.type == "cuda" else cpu_bytes(from_shapes)
    free = free_bytes(device)
    config = setup.train
    steps = config.steps if steps_per_epoch is None else config.total_steps(steps_per_epoch)
    notes: tuple[str, ...] = () if steps is not None else ("how long the run is depends on the number of samples",)
    if config.modulation is Modulation.LOOKUP:
        notes += ("memory is estimated for dense modulation; how much less lookup needs depends on the label maps",)
    unknown = Estimate(str(device), expected, False, from_shapes, free, None, steps, notes)
    if steps_timed < 1:
        return unknown
    if free is not None and expected > SAFE_SHARE * free:
        return replace(unknown, notes=(*notes, f"not tried: {_gib(expected)} is estimated, {_gib(free)} is free"))
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


def _made_up(setup: Setup, seed: int) -> Batch:
    """Label maps of Voronoi regions, with photos of noise."""
    spec, count = setup.generator, setup.train.batch_size
    ids, regions = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed)
    instance = torch.from_numpy(regions.copy()) if spec.labels.has_edges else None
    photo = torch.rand(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(torch.from_numpy(ids.astype(label_dtype(spec.labels))), instance, photo, ("",) * count)


def _measured(setup: Setup, device: torch.device, steps: int) -> dict[str, Any] | None:
    """Peak memory and seconds of real steps in a process of its own; None where that process ran out of memory."""
    request = json.dumps({"setup": setup.to_json(), "device": str(device), "steps": steps})
    # With -P no file of the current folder takes the place of a library.
    command = [sys.executable, "-P", "-m", "spade_deploy.training.estimate"]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=CHILD_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(f"`estimate`: {steps} steps took more than {CHILD_LIMIT_S:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" in answer:
            raise TrainingError(f"`estimate`: a step failed: {answer['error']}", hint=answer["hint"])
        return None if answer.get("out_of_memory") else answer
    if done.returncode == -9:  # the system ends a process that takes too much memory
        return None
    raise TrainingError(f"`estimate`: a step failed: {line_of(done.stderr, last=True) or 'no message'}")


def _answer(request: Any) -> dict[str, Any]:
    """Make the steps; this runs in the process of its own."""
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
    learner = make_learner(setup, device, lambda: batches[:1])
    learner.step(batches[0], 1.0)
    seconds = []
    cycle = setup.train.discriminator_steps  # of this many steps, the generator learns in one
    for number in range(steps):
        start = time.perf_counter()
        for _ in range(cycle):
            learner.step(batches[(number + 1) % 2], 1.0)  # it returns numbers, so that a GPU has finished
        seconds.append((time.perf_counter() - start) / cycle)
    return {"seconds": seconds, "peak_bytes": peak_memory_bytes(device)}


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
