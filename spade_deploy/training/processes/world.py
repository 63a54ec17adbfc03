"""Several processes that train one model together: who is who, what they agree on, and what they average.

torchrun starts the processes and tells each its place by environment variables. All of them run the same program on
their share of every batch; gradients, losses and batch norm's statistics are those of the whole batch, so the networks
stay equal without being sent. Process 0 alone writes and prints.

Between tensors of GPUs nccl averages, between tensors of a CPU gloo; both are there, whichever device trains, so what
the processes tell each other (signals, errors) never waits for a GPU.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spade_deploy.errors import ConfigError, SpadeError, TrainingError, reason_of
from spade_deploy.training.dataset import Shard
from spade_deploy.training.processes import peers as lifeline
from spade_deploy.training.processes.launcher import LOST, Launcher, watched_launcher
from spade_deploy.training.processes.peers import Lifeline

T = TypeVar("T")

TIMEOUT_S = 1800.0
"""How long a process waits for another one that is still there: longer than the longest evaluation takes."""
TIMEOUT_VARIABLE = "SPADE_TIMEOUT_S"
_NOTICE_S = 5.0
"""A process that ends is noticed at once; this is for the word to come round."""


@dataclass(frozen=True)
class News:
    """What a process has to tell before a step: the signal it got, the error that stops it, samples that it skipped."""

    signal: str = ""
    error: SpadeError | None = None
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.signal or self.error or self.skipped)


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this one is. `World()` is one alone.

    rank: 0..size-1. local_rank: its number on its host, and of its GPU there.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    lifeline: Lifeline | None = field(default=None, repr=False, compare=False)
    launcher: Launcher | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def stopped_by(self, signal: str) -> str:
        """What a signal is for: SIGTERM is also what the end of torchrun becomes."""
        return LOST if signal and self.launcher is not None and self.launcher.is_lost else signal

    def shard(self, parts: int = 1) -> Shard:
        """This process's share of every batch, which is computed in `parts`."""
        return Shard(self.rank, self.size, parts)

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. All of them must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags.item())

    def exchange(self, own: News) -> News:
        """What all processes have to tell, the same in each of them. Costs one number where there is nothing."""
        if self.size == 1 or not self.any_rank(bool(own)):
            return own
        found: list[News] = [News()] * self.size
        distributed.all_gather_object(found, own)
        if self.lifeline is not None and any(news.signal or news.error for news in found):
            self.lifeline.all_know = True
        return News(
            next((news.signal for news in found if news.signal), ""),
            next((news.error for news in found if news.error is not None), None),
            tuple(message for news in found for message in news.skipped),
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends well in every process or in none: the first error is raised in all of them."""
        error = None
        try:
            yield
        except SpadeError as raised:
            error = raised
        if (first := self.exchange(News(error=error)).error) is not None:
            raise first

    @contextmanager
    def noticing_losses(self, last_good: Callable[[], tuple[str, str]]) -> Iterator[None]:
        """A block in which the end of another process becomes a TrainingError, however PyTorch reports it.

        last_good: a sentence on what is saved, and the next step; asked for when it is needed.
        """
        if self.lifeline is not None:
            self.lifeline.last_words = lambda: "\nnext: ".join(last_good())
        try:
            yield
        except RuntimeError as error:
            if reason := self._loss(error):
                sentence, hint = last_good()
                raise TrainingError(f"{reason}. {sentence}", hint=hint) from error
            raise

    def _loss(self, error: RuntimeError) -> str:
        """Which process was lost, where that is what an error is about; else ''."""
        if self.lifeline is None or isinstance(error, torch.OutOfMemoryError):
            return ""
        if reason := self.lifeline.loss(_NOTICE_S):
            return reason
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            return f"one of the {self.size} processes did not answer for {_timeout_s():.0f} s ({TIMEOUT_VARIABLE})"
        return ""

    def main_first(self, action: Callable[[], T]) -> T:
        """What `action` returns; process 0 does it before the others, which find what it downloaded.

        An error of one is raised in all of them.
        """
        found: list[T] = []
        for is_turn in (self.is_main, not self.is_main):
            with self.together():
                if is_turn:
                    found.append(action())
        return found[0]

    def from_main(self, value: Any) -> Any:
        """Process 0's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, rows: Tensor) -> Tensor:
        """In process 0 the rows of all processes, each with as many, on the CPU; in the others their own."""
        if self.size == 1:
            return rows
        own = rows.cpu().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)] if self.is_main else None
        distributed.gather(own, found)
        return own if found is None else torch.cat(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes: of means over equal shares, the mean of the whole batch."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.size


ALONE = World()
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters


@contextmanager
def join_world() -> Iterator[World]:
    """Meet the other processes that torchrun started; without torchrun, be alone.

    In processes other than 0 nothing is printed to stdout, and an error that all of them know ends them in silence,
    with its exit code. Raises ConfigError for an environment that makes no sense, TrainingError where the others do not
    come in time.
    """
    with watched_launcher(os.environ) as launcher:
        place = place_in_world(os.environ)
        place = place if launcher is None else replace(place, launcher=launcher)
        if place.size == 1:
            yield place
            return
        with _meeting(place) as world:
            yield world


@contextmanager
def _meeting(place: World) -> Iterator[World]:
    world = _joined(place)
    assert world.lifeline is not None  # just connected
    failure = "it was stopped"
    try:
        with ExitStack() as stack:
            if not world.is_main:
                stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield world
        failure = ""
    except SpadeError as error:
        failure = "" if world.lifeline.all_know else error.message
        if world.is_main:
            raise
        if world.lifeline.all_know:
            raise SystemExit(error.exit_code) from error
        error.message = f"process {world.rank} of {world.size}: {error.message}"
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        world.lifeline.close(failure)
        if failure:  # a group that lost a process may wait for it for ever
            lifeline.abandon_group()
        else:
            distributed.destroy_process_group()


def place_in_world(environment: Mapping[str, str]) -> World:
    """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; alone without them. Raises ConfigError."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    size = _number(environment, "WORLD_SIZE", 1, 1 << 20)
    if size == 1:
        return ALONE
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size} says that there are {size} processes, but {missing[0]} does not say where they meet",
            hint="start them with `torchrun --nproc-per-node N -m spade_deploy train ...`, or unset WORLD_SIZE",
        )
    rank = _number(environment, "RANK", 0, size - 1)
    return World(rank, size, _number(environment, "LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in environment else rank)


def parallel(network: nn.Module, world: World) -> nn.Module:
    """The network as a process of several calls it: its backward pass leaves the mean of all processes' gradients.

    Buffers are not sent: batch norm's statistics are synchronised where they are made, and spectral norm's vectors
    follow from weights that are equal.
    """
    if world.size == 1:
        return network
    # PyTorch 2.13 renamed the option, and warns of its old name.
    name = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _DDP_OPTIONS)
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(network, **options)


@contextmanager
def without_averaging(networks: Iterable[nn.Module]) -> Iterator[None]:
    """A block whose backward passes leave each process its own gradients, to be averaged with those of a later one."""
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield


def _joined(place: World) -> World:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    timeout_s = _timeout_s()
    if not distributed.is_available():
        raise ConfigError(
            f"WORLD_SIZE={place.size}: this PyTorch {torch.__version__} has no torch.distributed",
            hint="install a build that has it, or start one process, without torchrun",
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        distributed.init_process_group(
            backend, timeout=timedelta(seconds=timeout_s), rank=place.rank, world_size=place.size
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"process {place.rank} of {place.size} does not meet the others at {host}:{port}"
            f" within {timeout_s:.0f} s ({reason_of(error)})",
            hint="start all of them with torchrun; every host must reach that port",
        ) from error
    line = lifeline.connect(place.rank, place.size, host, timeout_s, place.from_main)
    return replace(place, lifeline=line)


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE}: {text!r} is not a number of seconds from 1 on")
    return seconds


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ConfigError(
            f"{name}={text!r} in the environment is not in {low}..{high}",
            hint="start the processes with torchrun, which sets it, or unset RANK and WORLD_SIZE",
        )
    return int(text)
