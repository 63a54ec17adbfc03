"""Progress: how a long job reports to whoever waits for it.

Every long job of this package takes a `progress` and calls its three methods. The command line draws bars and lines
from them; a script derives a class from `Silent` and overrides the methods that it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Figures:
    """Figures on the speed and the quality of a job, as far as the job measures them."""

    per_second: float | None = None
    """Images or samples a second."""

    seconds_each: float | None = None
    """Seconds for one of the things that are counted, such as a training step; the mean of the last ones."""

    memory_bytes: int | None = None
    """The most memory that was in use: that of the GPU if one computes, else that of the process."""

    losses: Mapping[str, float] = field(default_factory=dict)
    """The losses of a training step by name, before their weights."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics that were measured last, by name; empty before the first measurement."""


NO_FIGURES = Figures()


class Progress(Protocol):
    """The listener of a job.

    Its methods must return at once, since the job waits for them. A job may call them from another thread than the one
    that began it, one call at a time. An exception that a method raises ends the job, as Ctrl-C does; finished results
    stay.
    """

    def step(self, what: str) -> None:
        """The job begins a new step, which `what` names in a few words, such as 'validating every graph'."""
        ...

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """Of the work that `what` names, `done` of `total` parts are finished; 0 <= done <= total."""
        ...

    def note(self, text: str) -> None:
        """Something happened that the user should know, and that does not end the job: one sentence."""
        ...


class Silent(Progress):
    """A listener that does nothing. A class that derives from it overrides the methods that it needs."""

    def step(self, what: str) -> None:
        """Do nothing."""

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class StepTimes(Progress):
    """Measures how long each step of a job takes, and tells the listener of the job everything.

    clock: gives the time in seconds.
    """

    def __init__(self, listener: Progress, clock: Callable[[], float] = time.perf_counter) -> None:
        self._listener = listener
        self._clock = clock
        self._began: list[tuple[str, float]] = []

    def step(self, what: str) -> None:
        """The step before ends here."""
        self._began.append((what, self._clock()))
        self._listener.step(what)

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """See `Progress.count`."""
        self._listener.count(what, done, total, figures)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._listener.note(text)

    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Each step and its seconds, in order; the last one ends now."""
        if not self._began:
            return ()
        ends = [began for _, began in self._began[1:]] + [self._clock()]
        return tuple((what, end - began) for (what, began), end in zip(self._began, ends, strict=True))


SILENT: Progress = Silent()
"""The default of every job: nobody listens."""
