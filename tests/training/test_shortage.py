"""Memory and disks that run out are called what they are, with what helps; the last good checkpoint is named."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.errors import TrainingError
from spade_deploy.runs.checkpoint import TrainingState, save_checkpoint
from spade_deploy.training.loop import train
from spade_deploy.training.records import recorder
from spade_deploy.training.shortage import shortage
from spade_deploy.training.steps import Learner
from tests.support.training_runs import Noise, new_run, setup_of


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory ran out (CUDA out of"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "memory ran out"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory"), "memory ran"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a loading process ended"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "a loading process ended"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"
                         " workers are out of shared memory."),
            "the shared memory",
        ),
        (RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"), "the shared memory"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space"), "the shared memory"),
        (OSError(24, "Too many open files"), "this process may open no more files"),
    ],
)  # fmt: skip
def test_each_wording_is_known(error: Exception, what: str) -> None:
    found = shortage(error)
    assert found is not None
    assert found[0].startswith(what)
    assert "`workers`" in found[1] or "`batch_size`" in found[1]


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("x"), OSError(2, "No such file")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert shortage(error) is None


def test_a_step_that_needs_too_much_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own error, of a tensor that no machine has room for."""
    step = Learner.step

    def greedy(self: Learner, *args: Any) -> dict[str, float]:
        if self.steps_done == 4:
            torch.empty(1 << 50, dtype=torch.uint8)
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", greedy)
    with pytest.raises(
        TrainingError, match=r"memory ran out \(a single tensor of 1,125,899.9 GB was .*00003"
    ) as caught:
        train(setup_of(), run=new_run(tmp_path / "run"), source=Noise())
    for flag in ("`batch_size`", "`size`", "`accumulate`", "--estimate"):
        assert flag in str(caught.value.hint)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A real error of the operating system in the middle of a file, as of a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("file", ["generator", "optimizers"])
def test_a_disk_that_takes_no_more_is_named_with_the_systems_reason(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(setup_of(), torch.device("cpu"))
    state = learner.state()
    if file == "optimizers":  # the largest file alone does not fit
        state = TrainingState(state.discriminator, {**state.rest, "large": torch.zeros(1 << 20)})
    limit = 1 << (14 if file == "generator" else 20)

    def limited(folder: Path, *args: Any, **kwargs: Any) -> Any:
        with files_of_at_most(limit):
            return save_checkpoint(folder, *args, **{**kwargs, "state": state})

    monkeypatch.setattr(recorder, "save_checkpoint", limited)
    with pytest.raises(
        TrainingError, match=r"cannot be written \(\[Errno 27\] File too large.*No checkpoint"
    ) as caught:
        train(setup_of(), run=new_run(tmp_path / "run"), source=Noise())
    assert "unexpected pos" not in caught.value.message
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
