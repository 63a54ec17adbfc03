"""Progress: what a long job tells whoever waits for it.

Every long job of this package takes a `progress` and tells it three things. The command line draws them; a script
overrides the methods of `Silent` that it wants to hear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Figures:
    """How fast a job goes and how well, where the job measures it."""

    per_second: float | None = None
    """Images or samples a second."""

    seconds_each: float | None = None
    """Seconds that one of what is counted takes, such as a training step; the mean of the last ones."""

    memory_bytes: int | None = None
    """The most memory that was in use, of the GPU where one computes."""

    losses: Mapping[str, float] = field(default_factory=dict)
    """The losses of a training step by name, before their weights."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics that were measured last, by name; empty before the first measurement."""


NO_FIGURES = Figures()


class Progress(Protocol):
    """Whoever listens to a job.

    The methods return at once, for the job waits for them. A job may call them from another thread than the one that
    began it, one call at a time. An exception that a method raises ends the job, as Ctrl-C does: what was finished
    before stays.
    """

    def step(self, what: str) -> None:
        """The job begins something new: `what` says it in a few words, such as 'validating every graph'."""
        ...

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """Of what is under way, `what`, the part `done` of `total` is finished; 0 <= done <= total."""
        ...

    def note(self, text: str) -> None:
        """Something came up that the user should know, and that does not end the job: one sentence."""
        ...


class Silent(Progress):
    """A listener that does nothing; a class that is made from it overrides what it wants to hear."""

    def step(self, what: str) -> None:
        """Nothing is done with it."""

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """Nothing is done with it."""

    def note(self, text: str) -> None:
        """Nothing is done with it."""


SILENT: Progress = Silent()
"""The default of every job: nobody listens."""
