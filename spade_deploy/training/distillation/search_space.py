"""The students among which a search for widths chooses: each level has a width of its own, within one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from spade_deploy.lookup.cost import lookup_macs
from spade_deploy.spec import GeneratorSpec, least_base

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
"""The widths of a level that are tried, as shares of the teacher's."""
HIDDEN_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
"""The hidden widths of a level that are tried, as shares of the teacher's."""
LEAST_CHANNELS = 2
LEAST_SHARE = 0.85
"""A student that costs less of the budget than this is not tried: a wider one is allowed, too."""
TRIES = 2000
"""How many random students are looked at for one that costs what it may."""

Widths = tuple[int, ...]
"""The channels of each level, then the hidden channels of each."""


@dataclass(frozen=True)
class Space:
    """The students of a teacher that cost about as much as they may."""

    teacher: GeneratorSpec
    """The teacher, for images of the student's size."""
    windows: Mapping[int, float]
    """The mean number of distinct windows at each stride."""
    budget: float
    """The most multiply-adds of an image by the lookup graph."""
    most: Widths = ()
    """The most that each of the widths may be; empty: the teacher's."""

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """For each of `Widths`, the values that are tried, ascending."""
        groups = (
            (self.teacher.widths, SHARES, LEAST_CHANNELS),
            (self.teacher.hidden_widths, HIDDEN_SHARES, 1),
        )
        found = [
            sorted({min(width, max(least, round(width * share))) for share in shares})
            for widths, shares, least in groups
            for width in widths
        ]
        most = self.most or (*self.teacher.widths, *self.teacher.hidden_widths)
        return tuple(tuple(one for one in own if one <= limit) for own, limit in zip(found, most, strict=True))

    def spec(self, widths: Widths) -> GeneratorSpec:
        """The student of these widths, whose channels descend."""
        levels = len(self.teacher.widths)
        return replace(
            self.teacher,
            base_channels=least_base(widths[:levels], self.teacher.upsampling),
            hidden_channels=max(widths[levels:]),
            level_channels=widths[:levels],
            level_hidden=widths[levels:],
        )

    def cost(self, widths: Widths) -> float:
        """Multiply-adds of an image by the lookup graph."""
        return lookup_macs(self.spec(widths), self.windows)

    def allows(self, widths: Widths) -> bool:
        """Whether there is such a student, and it costs what it may."""
        levels = len(self.teacher.widths)
        if any(one <= other for one, other in pairwise(widths[:levels])):
            return False
        return LEAST_SHARE * self.budget <= self.cost(widths) <= self.budget

    def random(self, numbers: np.random.Generator) -> Widths | None:
        """A random student that is allowed; None if none was found."""
        options = self.options
        for _ in range(TRIES):
            found = tuple(int(numbers.choice(one)) for one in options)
            if self.allows(found):
                return found
        return None

    def changed(self, widths: Widths, numbers: np.random.Generator) -> Widths | None:
        """A student with some widths one step wider or narrower, that is allowed; None if none was found."""
        options = self.options
        for _ in range(TRIES // 2):
            moves = numbers.integers(-1, 2, len(options)) * (numbers.random(len(options)) < 0.5)
            found = tuple(_moved(one, own, int(move)) for one, own, move in zip(options, widths, moves, strict=True))
            if found != widths and self.allows(found):
                return found
        return None


@dataclass(frozen=True)
class Judged:
    """A student that was tried."""

    widths: Widths
    """Its widths."""
    distance: float
    """How far its images are from the teacher's; less is better."""


def evolve(
    space: Space,
    start: Widths,
    distance: Callable[[Widths], float],
    numbers: np.random.Generator,
    *,
    population: int,
    generations: int,
) -> tuple[Judged, ...]:
    """Every student that was tried, the best first, by an evolutionary search.

    It begins with `start` and random students; in each generation the better half stays, and each of them is changed
    once. distance: it is asked once for each student. numbers: the same ones make the same search.
    """
    found: dict[Widths, float] = {}

    def judge(widths: Widths | None) -> None:
        if widths is not None and widths not in found:
            found[widths] = distance(widths)

    judge(start)
    for _ in range(population - 1):
        judge(space.random(numbers))
    for _ in range(generations):
        best = sorted(found, key=lambda widths: found[widths])[: max(1, population // 2)]
        for parent in best:
            judge(space.changed(parent, numbers))
    return tuple(Judged(widths, found[widths]) for widths in sorted(found, key=lambda widths: found[widths]))


def _moved(options: tuple[int, ...], own: int, move: int) -> int:
    """The option `move` places beside the one that is nearest to `own`; own itself for 0."""
    if not move:
        return own
    place = min(range(len(options)), key=lambda index: abs(options[index] - own))
    return options[min(max(place + move, 0), len(options) - 1)]
