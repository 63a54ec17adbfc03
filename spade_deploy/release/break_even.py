"""Measure the share of unique patterns from which on the dense graph is as fast as the lookup graph.

The time of a lookup graph grows linearly with the share of unique patterns, since it computes a row for each of them;
the time of the dense graph does not depend on it. Two label maps, one with few and one with many patterns, give the
line, and the point where it crosses the dense graph's time is the break-even. All times are taken side by side on one
machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, one_by_one
from spade_deploy.engines.base import Backend, GraphChoice
from spade_deploy.engines.open import open_runtime
from spade_deploy.lookup.tables import extract_patterns, unique_share
from spade_deploy.spec import GeneratorSpec, Precision

FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_S = 3, 41, 1.5
"""The fewest and the most rounds, and the seconds after which no more are needed: three times of a few milliseconds, as
small models take, would say little."""
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


def measure_break_even(artifact: Artifact, precision: Precision, threads: int | None = None) -> BreakEven:
    """Run both graphs of a precision on a map of few patterns and on noise, in turns. Raises errors of the runtime."""
    spec = artifact.manifest.generator
    golden = artifact.golden().inputs
    few = next(one_by_one(golden))
    many = _noise(spec, few)
    if unique_share(spec, many) - unique_share(spec, few) < 0.3:  # the golden maps are noise themselves
        few = {**few, LABEL: np.zeros_like(few[LABEL])}
        if INSTANCE in few:
            few[INSTANCE] = np.zeros_like(few[INSTANCE])
    with (
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.DENSE) as dense,
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.LOOKUP) as lookup,
    ):
        jobs: tuple[Callable[[], object], ...] = (
            partial(lookup.run, few),
            partial(lookup.run, many),
            partial(dense.run, few),
            partial(extract_patterns, spec, many[LABEL], many.get(INSTANCE), max_share=0.5),
        )
        for job in jobs:
            job()
        times: list[list[float]] = []
        while len(times) < FEWEST_ROUNDS or (len(times) < MOST_ROUNDS and np.sum(times) < ENOUGH_S * 1e3):
            times.append([_milliseconds(job) for job in jobs])
    few_ms, many_ms, dense_ms, look_ms = (statistics.median(column) for column in zip(*times, strict=True))
    usual = tuple(unique_share(spec, one) for one in one_by_one(golden))
    shares = unique_share(spec, few), unique_share(spec, many)
    return BreakEven(*shares, few_ms, many_ms, dense_ms, look_ms, usual)


def _milliseconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return (time.perf_counter() - start) * 1e3


def _noise(spec: GeneratorSpec, like: Arrays) -> Arrays:
    rng = np.random.default_rng(0)
    shape = like[LABEL].shape
    noise = {**like, LABEL: rng.integers(0, spec.labels.num_ids, shape).astype(like[LABEL].dtype)}
    if INSTANCE in like:
        noise[INSTANCE] = rng.integers(0, 2, shape).astype(np.int32)
    return noise
