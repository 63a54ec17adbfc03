"""The device that trains: choose it, ask for its memory, and make its results repeatable."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from spade_deploy.errors import ConfigError
from spade_deploy.machine import memory as process_memory
from spade_deploy.training.processes.world import ALONE, World

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container's limits."""


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """The device of that name; 'auto' takes CUDA if a GPU is there.

    If several processes train, each takes the GPU that has the process's number on its host. Raises ConfigError for a
    device that is not in this machine.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if world.size > 1:
        if device.index is not None:
            raise ConfigError(
                f"`device`: {name} is one GPU for {world.size} processes; each needs its own",
                hint="leave `device` out, and choose GPUs with CUDA_VISIBLE_DEVICES",
            )
        device = torch.device("cuda", world.local_rank)
    count = torch.cuda.device_count() if has_cuda else 0
    if (device.index or 0) >= count:
        seen = f"PyTorch {torch.__version__} sees {count} CUDA devices"
        if world.size > 1 and count:
            raise ConfigError(
                f"`device`: process {world.rank} is number {world.local_rank} on its host and has no GPU there; {seen}",
                hint=f"torchrun --nproc-per-node {count}, or `device` cpu",
            )
        raise ConfigError(
            f"`device`: {device if world.size > 1 else name} is not here; {seen}",
            hint="use `device` cpu, or install a PyTorch built for CUDA and its driver",
        )
    if world.size > 1:
        torch.cuda.set_device(device)
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the GPU on CUDA, else its resident set."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_memory.peak_memory_bytes()


def free_bytes(device: torch.device) -> int:
    """The free memory of the device, in a container at most what that leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, left = process_memory.free_memory_bytes(), left_in_container()
    return free if left is None else min(free, left)


def left_in_container(folder: Path = CONTROL_GROUP) -> int | None:
    """The memory that a container's limit leaves, pages of files not counted; None where there is no limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        facts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def set_determinism(wanted: bool) -> None:
    """Make PyTorch compute the same bits each time, at the cost of speed, or undo that."""
    if wanted:
        # cuBLAS reads it when it is first used; without it PyTorch refuses to be deterministic on CUDA.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted or torch.are_deterministic_algorithms_enabled():  # the call imports PyTorch's compiler: only where needed
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted
