"""Find by bisection the fewest units that a half-precision graph must keep in float32 to be right.

The caller judges each set of units: see `validation/precision_search.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from spade_deploy.errors import ConfigError, ExportError

MOST_TRIALS = 32
"""The most trials by default, which is enough for five units of sixteen. On a card every trial exports a graph and
builds an engine."""


@dataclass(frozen=True)
class Trial:
    """One graph that was judged."""

    kept: tuple[str, ...]
    """The units that it kept in float32, in the order they run."""
    failures: tuple[str, ...]
    """What was wrong with it, in sentences; empty if it passed."""

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class PrecisionSearch:
    """The result of a search; units are in the order they run."""

    held: tuple[str, ...]
    """The units that every trial kept in float32."""
    found: tuple[str, ...]
    """The further units that must be kept; empty if the graph passes without any."""
    trials: tuple[Trial, ...]
    """Every trial, in the order they were made."""
    is_minimal: bool
    """Whether no unit of `found` can be left out; False if the trials were used up before that was certain."""

    def __str__(self) -> str:
        count = f"{len(self.trials)} trial{'s' if len(self.trials) > 1 else ''}"
        if not self.found:
            return f"half precision is within its tolerance here as it is ({count})"
        rest = "" if self.is_minimal else "; fewer may do, the trials were used up"
        return f"keep {', '.join(self.found)} in float32 ({count}{rest})"

    @property
    def flags(self) -> str:
        """The options of `spade export` that keep them."""
        return " ".join(f"--keep-fp32 {name}" for name in self.found)


FailuresWith = Callable[[tuple[str, ...]], Sequence[str]]
"""Judges a graph that keeps these units, in order, in float32: returns sentences on what is wrong, or none."""


def find_layers_to_keep(
    units: Sequence[str],
    failures_with: FailuresWith,
    *,
    held: Collection[str] = (),
    most_trials: int = MOST_TRIALS,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> PrecisionSearch:
    """A set of units, none of which can be left out, with which nothing is wrong.

    units: all there are, in the order they run. held: those that stay float32 in every trial.
    Bisection finds the shortest run of units up to the output that makes the graph right. The first unit of that run
    is needed, the others may not be. With that unit kept, the search goes on among the others, until the needed units
    alone make the graph right. If m of n units are needed this takes at most m (ceil(log2 n) + 2) + 1 trials. If a
    further unit can make a graph worse it may take more, and the result is still a set that was judged right. Raises
    ExportError if the graph is wrong even with all units in float32.
    """
    if most_trials < 2:
        raise ConfigError(f"`most_trials`: {most_trials} is not 2 or more: without any unit and with all of them")
    trials = _Trials(units, failures_with, tuple(name for name in units if name in held), most_trials, on_trial)
    order = [name for name in reversed(units) if name not in held]
    if trials.fails([]) and trials.fails(order):
        raise ExportError(
            f"no unit helps: with all {len(units)} in float32 it is still wrong: {'; '.join(trials.last.failures)}",
            hint="half precision is not the cause; `spade validate` names the first tensor that is wrong",
        )
    try:
        found = set(_leave_out(_bisect(order, trials), trials))
        is_minimal = True
    except _OutOfTrialsError:
        found, is_minimal = set(trials.smallest_good()), False
    return PrecisionSearch(
        trials.held, tuple(name for name in units if name in found), tuple(trials.done.values()), is_minimal
    )


def _bisect(order: Sequence[str], trials: _Trials) -> list[str]:
    # At all times `needed` and `rest` together are good.
    needed, rest = list[str](), list(order)
    while trials.fails(needed):
        low, high = 0, len(rest)  # the first `low` of the rest do not help, the first `high` do
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if trials.fails([*needed, *rest[:middle]]) else (low, middle)
        needed.append(rest[high - 1])
        rest = rest[: high - 1]
    return needed


def _leave_out(needed: list[str], trials: _Trials) -> list[str]:
    """Leave out units that are not needed after all, which only exist if a further unit made a graph worse."""
    for name in needed:
        without = [other for other in needed if other != name]
        if not trials.fails(without):
            return _leave_out(without, trials)  # start again, as a unit that was needed before may not be needed now
    return needed


class _OutOfTrialsError(Exception):
    pass


@dataclass
class _Trials:
    """The trials of a search. Every set of units is judged only once."""

    units: Sequence[str]
    """All units, in the order they run."""
    failures_with: FailuresWith
    """Judges a set of units."""
    held: tuple[str, ...]
    """The units that every trial keeps in float32."""
    most: int
    """The most trials that may be made."""
    on_trial: Callable[[Trial], None]
    """It is called after each trial."""
    done: dict[frozenset[str], Trial] = field(default_factory=dict)
    """The trials so far, by their sets of units."""

    def fails(self, kept: Collection[str]) -> bool:
        key = frozenset(kept)
        if key not in self.done:
            if len(self.done) == self.most:
                raise _OutOfTrialsError
            names = tuple(name for name in self.units if name in key or name in self.held)
            self.done[key] = Trial(names, tuple(self.failures_with(names)))
            self.on_trial(self.done[key])
        return not self.done[key].passed

    @property
    def last(self) -> Trial:
        return list(self.done.values())[-1]

    def smallest_good(self) -> frozenset[str]:
        return min((kept for kept, trial in self.done.items() if trial.passed), key=len)
