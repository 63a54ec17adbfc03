"""Recognise PyTorch's many messages about memory that ran out, and turn them into one error that says what helps."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from spade_deploy.errors import TrainingError

_MEMORY = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|not enough memory|bad_alloc|alloc_failed|unable to allocate"
    r"|tried to allocate|memoryerror",
    re.IGNORECASE,
)
_ASKED = re.compile(r"tried to allocate (\d+) bytes")
_SHARED = re.compile(
    r"shared memory|/dev/shm|unable to write to file </?torch_|torch_shm_manager|bus error", re.IGNORECASE
)
_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: [^.]*|exited unexpectedly)")

LESS = (
    "take a smaller `batch_size` or `size`, `accumulate` N, `amp` bf16, or `base_channels`;"
    " `spade train ... --estimate` predicts what is needed"
)
LESS_SHARED = (
    "`workers` 0 loads in the training process; in a container give shared memory more room (docker run --shm-size 8g)"
)
FEWER = "take fewer `workers` (0 loads in the training process), or free some memory"


def shortage(error: BaseException) -> tuple[str, str] | None:
    """If an error means that memory or files ran out: what ran out, and what helps. Otherwise None."""
    text = str(error)
    line = " ".join(text.split())
    short = line if len(line) <= 160 else line[:157] + "..."
    if asked := _ASKED.search(text):
        short = f"a single tensor of {int(asked[1]) / 1e9:,.1f} GB was asked for"
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return f"memory ran out ({short})", LESS
        if error.errno == errno.EMFILE:
            return f"this process may open no more files ({short})", "raise the limit with `ulimit -n`, or `workers` 0"
    if _SHARED.search(text):
        return f"the shared memory through which loading processes pass samples ran out ({short})", LESS_SHARED
    if found := _WORKER.search(text):
        return f"a loading process ended, probably because memory ran out ({found[0]})", FEWER
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _MEMORY.search(text):
        return f"memory ran out ({short or 'no more was to be had'})", LESS
    return None


@contextmanager
def named_shortage(last_good: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """A block in which running out of memory becomes a TrainingError. last_good: its first text says what is saved."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        found = shortage(error)
        if found is None:
            raise
        what, hint = found
        raise TrainingError(f"{what}. {last_good()[0]}", hint=hint) from error
