"""The processes that train one model together: the place of this process among them, and how they agree.

All processes run the same program on their share of every batch. Gradients, losses and batch norm's statistics are
those of the whole batch, so that the networks stay equal without being sent. Only process 0 writes and prints.
`join.py` makes a `World`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from spade_deploy.errors import SpadeError, TrainingError
from spade_deploy.training.dataset import Shard
from spade_deploy.training.processes.launcher import LOST, Launcher
from spade_deploy.training.processes.peers import PeerWatch
from spade_deploy.training.processes.timeout import TIMEOUT_VARIABLE, timeout_s

T = TypeVar("T")

_NOTICE_S = 5.0
"""How long it may take until this process learns of a peer's end, which process 0 notices at once."""


@dataclass(frozen=True)
class News:
    """The messages of a process to its peers before a step."""

    signal: str = ""
    """The name of the signal that it got."""

    error: SpadeError | None = None
    """The error that stops it."""

    skipped: tuple[str, ...] = ()
    """The samples that it could not read, a message each."""

    def __bool__(self) -> bool:
        return bool(self.signal or self.error or self.skipped)


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this one is. `World()` is one process alone."""

    rank: int = 0
    """The number of this process, 0..size-1."""

    size: int = 1
    """How many processes train together."""

    local_rank: int = 0
    """The number of this process on its host, and of its GPU there."""

    peers: PeerWatch | None = field(default=None, repr=False, compare=False)
    """Notices that a peer was lost; None for a process alone."""

    launcher: Launcher | None = field(default=None, repr=False, compare=False)
    """Notices that torchrun was killed; None if torchrun did not start this process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def stopped_by(self, signal: str) -> str:
        """The cause of a signal in words: the end of torchrun also arrives as SIGTERM."""
        return LOST if signal and self.launcher is not None and self.launcher.is_lost else signal

    def shard(self, parts: int = 1) -> Shard:
        """This process's share of every batch, which is computed in `parts`."""
        return Shard(self.rank, self.size, parts)

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. All processes must call it."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags.item())

    def exchange(self, own: News) -> News:
        """The news of all processes, the same in each process. If there is no news, only one number is sent."""
        if self.size == 1 or not self.any_rank(bool(own)):
            return own
        found: list[News] = [News()] * self.size
        distributed.all_gather_object(found, own)
        if self.peers is not None and any(news.signal or news.error for news in found):
            self.peers.all_are_stopping = True
        return News(
            next((news.signal for news in found if news.signal), ""),
            next((news.error for news in found if news.error is not None), None),
            tuple(message for news in found for message in news.skipped),
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds in every process or in none: the first error is raised in all processes."""
        error = None
        try:
            yield
        except SpadeError as raised:
            error = raised
        if (first := self.exchange(News(error=error)).error) is not None:
            raise first

    @contextmanager
    def noticing_lost_peers(self, last_good: Callable[[], tuple[str, str]]) -> Iterator[None]:
        """A block in which the loss of a peer becomes a TrainingError, however PyTorch reports it.

        last_good: returns a sentence on what is saved, and the next step; it is called when they are needed.
        """
        if self.peers is not None:
            self.peers.final_message = lambda: "\nnext: ".join(last_good())
        try:
            yield
        except RuntimeError as error:
            if reason := self._lost_peer(error):
                sentence, hint = last_good()
                raise TrainingError(f"{reason}. {sentence}", hint=hint) from error
            raise

    def _lost_peer(self, error: RuntimeError) -> str:
        """Which process was lost, if that is the cause of an error; else ''."""
        if self.peers is None or isinstance(error, torch.OutOfMemoryError):
            return ""
        if reason := self.peers.lost_peer(_NOTICE_S):
            return reason
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            return f"one of the {self.size} processes did not answer for {timeout_s():.0f} s ({TIMEOUT_VARIABLE})"
        return ""

    def main_first(self, action: Callable[[], T]) -> T:
        """The result of `action`, which process 0 runs before its peers, so that these find what it downloaded.

        An error in one process is raised in all of them.
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
        """In process 0 the rows of all processes, on the CPU; in its peers their own rows. All have equally many."""
        if self.size == 1:
            return rows
        own = rows.cpu().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)] if self.is_main else None
        distributed.gather(own, found)
        return own if found is None else torch.cat(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes. For means over equal shares it is the mean of the whole batch."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.size


ALONE = World()
