"""Measure the share of unique patterns from which on the dense graph is as fast as the lookup graph.

The time of a lookup graph grows linearly with the share of unique patterns, since it computes a row for each of them;
the time of the dense graph does not depend on it. Two label maps, one with few and one with many patterns, give the
line, and the point where it crosses the dense graph's time is the break-even. All times are taken side by side on one
machine, in one engine: another engine, or another precision in it, has another break-even.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, one_by_one
from spade_deploy.engines.base import Backend, GraphChoice, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.lookup.tables import extract_patterns, unique_share
from spade_deploy.spec import GeneratorSpec, Precision
from spade_deploy.tuning.timing import Pace, medians_ms

PACE = Pace(fewest=3, most=41, seconds=1.5)
"""Three times of a few milliseconds, as small models take, would say little."""
AGREEMENT = 0.2
"""Two rounds that took longer than PACE asks for are enough if both give each golden map to the same graph, and their
break-evens differ by no more than this. Of the maps in between some may be given to the slower graph, which takes
little longer there."""
STEADY_S = 1.0
"""A single time counts as a round's if the dense graph took as long as this. Shorter ones are cheap to take again."""
NOISY_ROWS = 0.5
"""The share of noise in the map with many patterns. A map of noise alone would take twice as long and say no more: the
break-even of a full-size model measured 0.95 in small steps, 0.97 by the line through half of noise, and 0.90 by the
line through noise alone (benchmarks/results/cost_curve.json)."""
MARGIN = 0.95
"""A map runs on the lookup graph if that is expected to take less than this share of the dense graph's time."""
WORTH_IT = 0.97
"""Maps are looked at one by one only if this is expected to take less than this share of the time of dense alone."""


@dataclass(frozen=True)
class BreakEven:
    """The times of two maps on the CPU: medians of interleaved rounds, the finding of patterns included."""

    few_share: float
    """The share of unique patterns of the map that has few."""

    many_share: float
    """The share of unique patterns of the map that has many."""

    few_ms: float
    """The lookup graph's time for the map with few patterns."""

    many_ms: float
    """The lookup graph's time for the map with many patterns."""

    dense_ms: float
    """The dense graph's time, which is the same for all maps."""

    look_ms: float = 0.0
    """The time for looking at a map that then runs on the dense graph."""

    usual_shares: tuple[float, ...] = ()
    """The shares of unique patterns of the golden maps, which stand for the data that the model is for."""

    @property
    def crossing(self) -> float:
        """The share, in 0..1, at which the lookup graph takes MARGIN times as long as the dense graph."""
        slope = self._slope
        room = MARGIN * self.dense_ms - self.few_ms
        if slope <= 0:
            return 1.0 if room > 0 else 0.0
        return float(np.clip(self.few_share + room / slope, 0.0, 1.0))

    @property
    def share(self) -> float:
        """The rule: a map with a larger share of unique patterns runs on the dense graph. With 0 no map is looked at.

        It is 0 if the choice is expected to win nothing on maps like the golden ones. This is so for a small model
        most of whose maps would run on the dense graph anyway, after time was spent on looking at them.
        """
        return self.crossing if self.expected_ms < WORTH_IT * self.dense_ms else 0.0

    @property
    def expected_ms(self) -> float:
        """An image's mean time over maps like the golden ones, each given to the graph that is faster for it."""
        shares = self.usual_shares or (self.few_share,)
        return statistics.fmean(
            self.few_ms + self._slope * (share - self.few_share)
            if share <= self.crossing
            else self.dense_ms + self.look_ms
            for share in shares
        )

    @property
    def _slope(self) -> float:
        if self.many_share == self.few_share:  # a model of one class: every map has the same patterns
            return 0.0
        return (self.many_ms - self.few_ms) / (self.many_share - self.few_share)


@dataclass(frozen=True)
class TimedMaps:
    """What the graphs are timed on: a map of few patterns, one of many, and the shares of both."""

    few: Arrays
    """The dense graph's inputs for the map with few patterns."""
    many: Arrays
    """Those for the map with many patterns, of which a half is noise."""
    few_share: float
    """The share of unique patterns of the first."""
    many_share: float
    """That of the second."""
    usual_shares: tuple[float, ...]
    """Those of the golden maps."""
    is_golden: bool = True
    """Whether the map with few patterns is the last golden map."""

    @classmethod
    def of(cls, spec: GeneratorSpec, golden: Arrays) -> TimedMaps:
        """The maps for a model with these golden inputs. The last of them is the one with few patterns."""
        *_, few = one_by_one(golden)
        many = noisy(spec, few, NOISY_ROWS)
        is_golden = unique_share(spec, many) - unique_share(spec, few) >= 0.3
        if not is_golden:  # the golden maps are noise themselves
            few = {**few, LABEL: np.zeros_like(few[LABEL])}
            if INSTANCE in few:
                few[INSTANCE] = np.zeros_like(few[INSTANCE])
        usual = tuple(unique_share(spec, one) for one in one_by_one(golden))
        return cls(few, many, unique_share(spec, few), unique_share(spec, many), usual, is_golden)

    def break_even(self, few_ms: float, many_ms: float, dense_ms: float, look_ms: float) -> BreakEven:
        """What follows from the times of both graphs on these maps."""
        return BreakEven(self.few_share, self.many_share, few_ms, many_ms, dense_ms, look_ms, self.usual_shares)

    def jobs(self, lookup: Runtime, dense: Runtime) -> list[Callable[[], object]]:
        """What has to be timed of an engine, in the order of the first arguments of `break_even`."""
        return [partial(lookup.run, self.few), partial(lookup.run, self.many), partial(dense.run, self.few)]

    def look(self, spec: GeneratorSpec) -> Callable[[], object]:
        """What is timed for `look_ms`: looking at a map that then runs on the dense graph."""
        noise = noisy(spec, self.many)
        return partial(extract_patterns, spec, noise[LABEL], noise.get(INSTANCE), max_share=0.5)


def measure_break_even(artifact: Artifact, precision: Precision, threads: int | None = None) -> BreakEven:
    """Run both graphs of a precision in ONNX Runtime on the CPU, on a map of few patterns and on a noisy one, in turns.

    Raises errors of the runtime.
    """
    maps = TimedMaps.of(artifact.manifest.generator, artifact.golden().inputs)
    with (
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.DENSE) as dense,
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.LOOKUP) as lookup,
    ):
        for runtime in (lookup, dense):  # of the first run of a session; the noisy map finds a warm one
            runtime.run(maps.few)
        return time_break_even(maps, dense, lookup)


def time_break_even(
    maps: TimedMaps, dense: Runtime, lookup: Runtime, *, lookup_s: float = 0.0, dense_s: float = 0.0
) -> BreakEven:
    """Time both graphs of one precision, in turns, in runtimes that have run before.

    lookup_s, dense_s: the seconds that both took for the last golden map just now, one after the other. If they are
    long enough to be steady, and `maps.few` is that map, the first round takes them as they are.
    """
    jobs = [*maps.jobs(lookup, dense), maps.look(lookup.spec)]
    is_known = maps.is_golden and dense_s >= STEADY_S
    known_ms = {0: 1e3 * lookup_s, 2: 1e3 * dense_s} if is_known else {}
    return maps.break_even(*medians_ms(jobs, PACE, partial(_agree, maps), known_ms))


def _agree(maps: TimedMaps, rounds: Sequence[Sequence[float]]) -> bool:
    """Whether all rounds say about the same. rounds: the milliseconds of each job."""
    found = [maps.break_even(*times).crossing for times in rounds]
    choices = {tuple(share <= crossing for share in maps.usual_shares) for crossing in found}
    return len(choices) == 1 and max(found) - min(found) <= AGREEMENT


def noisy(spec: GeneratorSpec, like: Arrays, rows: float = 1.0) -> Arrays:
    """A map whose upper rows, as many as this share, are noise. like: the dense graph's inputs for the map."""
    rng = np.random.default_rng(0)
    changed = dict(like)
    ids = {LABEL: spec.labels.num_ids, INSTANCE: 2}
    for name in ids.keys() & like.keys():
        changed[name] = like[name].copy()
        upper = changed[name][:, : round(rows * like[name].shape[1])]
        upper[:] = rng.integers(0, ids[name], upper.shape)
    return changed
