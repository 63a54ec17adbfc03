"""A small discrete-event simulation: processes that wait for time and for servers, in the order in which they came.

A process is a generator. It yields seconds to let time pass, or a `Station` to be given one of its servers, which it
gives back with `leave`; it yields an `Event` to wait until that happens.

    clock = Clock()
    card = Station(clock, servers=1)

    def image():
        yield card
        yield 0.002
        card.leave()

    clock.start(image())
    clock.run()
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

Process = Iterator[Any]


class Clock:
    """Time, and what happens next. Ties are kept in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Process]] = []
        self._count = 0

    def start(self, process: Process, after_s: float = 0.0) -> None:
        """Let a process begin, or go on."""
        self._count += 1
        heapq.heappush(self._coming, (self.now + after_s, self._count, process))

    def run(self) -> None:
        """Go on until nothing happens any more."""
        while self._coming:
            self.now, _, process = heapq.heappop(self._coming)
            wanted = next(process, None)
            if isinstance(wanted, Station | Event):
                wanted.add(process)
            elif wanted is not None:
                self.start(process, wanted)


class Station:
    """Servers that take whoever came first."""

    def __init__(self, clock: Clock, servers: int) -> None:
        self.servers, self._free, self._clock = servers, servers, clock
        self._waiting: deque[Process] = deque()
        self._since = self._taken_s = 0.0

    def add(self, process: Process) -> None:
        """Give a process a server as soon as one is free. `Clock` calls this."""
        if self._free:
            self._count(-1)
            self._clock.start(process)
        else:
            self._waiting.append(process)

    def leave(self) -> None:
        """Give a server back."""
        if self._waiting:
            self._clock.start(self._waiting.popleft())
        else:
            self._count(1)

    def use(self, seconds: float) -> Process:
        """Be served for that long."""
        yield self
        yield seconds
        self.leave()

    @property
    def busy(self) -> float:
        """The share of its servers that was taken until now."""
        self._count(0)
        return self._taken_s / (self.servers * self._clock.now) if self._clock.now else 0.0

    def _count(self, change: int) -> None:
        self._taken_s += (self.servers - self._free) * (self._clock.now - self._since)
        self._since = self._clock.now
        self._free += change


class Event:
    """Something that happens once; whoever waits for it goes on then."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._waiting, self.is_over = clock, [], False  # type: tuple[Clock, list[Process], bool]

    def add(self, process: Process) -> None:
        """Let a process wait. `Clock` calls this."""
        if self.is_over:
            self._clock.start(process)
        else:
            self._waiting.append(process)

    def happen(self) -> None:
        self.is_over = True
        for process in self._waiting:
            self._clock.start(process)
        self._waiting = []


def together(clock: Clock, processes: Iterable[Process]) -> Process:
    """Let processes go on at the same time, and wait for all of them."""
    over = []
    for process in processes:
        event = Event(clock)
        over.append(event)
        clock.start(_then(process, event))
    for event in over:
        yield event


def _then(process: Process, event: Event) -> Process:
    yield from process
    event.happen()
