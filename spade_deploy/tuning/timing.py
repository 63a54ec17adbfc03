"""Time several jobs side by side: they run in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How long a measurement takes."""

    fewest: int
    """The rounds that are always run."""
    most: int
    """No more rounds are run than this."""
    seconds: float
    """After so many seconds no further round begins, except the fewest."""


def now() -> float:
    """The clock of all measurements, in seconds; tests set another."""
    return time.perf_counter()


def in_turn(items: Sequence[T], number: int) -> list[T]:
    """The order of a round: it begins with the item after the one before, and goes the other way.

    So each item has each place equally often, and comes after others than in the round before. number: of the round,
    from 0 on.
    """
    way = 1 if number % 2 == 0 else -1
    return [items[(number + way * step) % len(items)] for step in range(len(items))]


def medians_ms(
    jobs: Sequence[Callable[[], object]],
    pace: Pace,
    agree: Callable[[Sequence[Sequence[float]]], bool] | None = None,
    known_ms: Mapping[int, float] = MappingProxyType({}),
) -> list[float]:
    """The median milliseconds of each job. They have been run before, so that none is timed while it warms up.

    Each round runs every job once, in the order of `in_turn`.
    agree: whether rounds, each the milliseconds of every job, say the same. Where two took longer than `pace.seconds`
    and agree, they are enough, even if `pace.fewest` is more.
    known_ms: times of the first round, by the number of the job, that were taken just before; these jobs are not run.
    """
    rounds: list[list[float]] = []
    start = now() - sum(known_ms.values()) / 1e3

    def is_enough() -> bool:
        is_late = now() - start >= pace.seconds
        if agree is not None and is_late and len(rounds) >= 2 and agree(rounds):
            return True
        return len(rounds) >= pace.fewest and (is_late or len(rounds) >= pace.most)

    while not is_enough():
        times = [0.0] * len(jobs)
        for index in in_turn(range(len(jobs)), len(rounds)):
            if not rounds and index in known_ms:
                times[index] = known_ms[index]
                continue
            before = now()
            jobs[index]()
            times[index] = (now() - before) * 1e3
        rounds.append(times)
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
