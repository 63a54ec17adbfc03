"""Time several jobs side by side: they run in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


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


def medians_ms(jobs: Sequence[Callable[[], object]], pace: Pace) -> list[float]:
    """The median milliseconds of each job. They have been run before, so that none is timed while it warms up.

    Each round runs every job once. It begins with another job than the round before, and goes the other way.
    """
    times: list[list[float]] = [[] for _ in jobs]
    start, done = now(), 0
    while done < pace.fewest or (done < pace.most and now() - start < pace.seconds):
        order = [(done + step) % len(jobs) for step in range(len(jobs))]
        for index in order if done % 2 == 0 else reversed(order):
            before = now()
            jobs[index]()
            times[index].append((now() - before) * 1e3)
        done += 1
    return [statistics.median(column) for column in times]
