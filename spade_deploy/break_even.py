"""From which share of unique patterns on the dense graph is as fast as the lookup graph: measured, not guessed.

The time of a lookup graph grows linearly with the share of unique patterns (their rows are what it computes), the
dense graph's does not depend on it. Two label maps with few and with many patterns give the line, and where it
crosses the dense graph's time is the break-even. It is a ratio of times of one machine, taken side by side.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact
from spade_deploy.engines.runtime import Backend, GraphChoice, Runtime, open_runtime
from spade_deploy.patterns import unique_share
from spade_deploy.spec import GeneratorSpec, Precision

FEWEST_ROUNDS, MOST_ROUNDS, ENOUGH_S = 3, 41, 1.5
"""Rounds go on until ENOUGH_S is spent: an image of a small model takes milliseconds, of which three say little."""
MARGIN = 0.95
"""The lookup graph is taken where it is expected to cost less than this share of dense: a tie is not worth a table."""


@dataclass(frozen=True)
class BreakEven:
    """Measured on the CPU: medians of interleaved rounds, patterns included.

    few, many: the shares of unique patterns of two maps.
    """

    few_share: float
    many_share: float
    few_ms: float
    many_ms: float
    dense_ms: float

    @property
    def share(self) -> float:
        """In 0..1: 0 where the lookup graph never wins, 1 where it always does."""
        slope = (self.many_ms - self.few_ms) / (self.many_share - self.few_share)
        room = MARGIN * self.dense_ms - self.few_ms
        if slope <= 0:
            return 1.0 if room > 0 else 0.0
        return float(np.clip(self.few_share + room / slope, 0.0, 1.0))


def measure_break_even(artifact: Artifact, precision: Precision, threads: int | None = None) -> BreakEven:
    """Run both graphs of a precision on a map of few patterns and on noise, in turns. Raises errors of the runtime."""
    spec = artifact.manifest.generator
    few = _first(artifact.golden().inputs)
    many = _noise(spec, few)
    if unique_share(spec, many) - unique_share(spec, few) < 0.3:  # golden maps that are noise themselves
        few = {**few, LABEL: np.zeros_like(few[LABEL])}
        if INSTANCE in few:
            few[INSTANCE] = np.zeros_like(few[INSTANCE])
    with (
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.DENSE) as dense,
        open_runtime(artifact, precision, Backend.CPU, threads, GraphChoice.LOOKUP) as lookup,
    ):
        jobs = ((lookup, few), (lookup, many), (dense, few))
        for runtime, inputs in jobs:
            runtime.run(inputs)
        times: list[list[float]] = []
        while len(times) < FEWEST_ROUNDS or (len(times) < MOST_ROUNDS and np.sum(times) < ENOUGH_S * 1e3):
            times.append([_milliseconds(runtime, inputs) for runtime, inputs in jobs])
    few_ms, many_ms, dense_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return BreakEven(unique_share(spec, few), unique_share(spec, many), few_ms, many_ms, dense_ms)


def _milliseconds(runtime: Runtime, inputs: Arrays) -> float:
    start = time.perf_counter()
    runtime.run(inputs)
    return (time.perf_counter() - start) * 1e3


def _first(inputs: Arrays) -> Arrays:
    return {name: array[:1] for name, array in inputs.items()}


def _noise(spec: GeneratorSpec, like: Arrays) -> Arrays:
    rng = np.random.default_rng(0)
    shape = like[LABEL].shape
    noise = {**like, LABEL: rng.integers(0, spec.labels.num_ids, shape).astype(like[LABEL].dtype)}
    if INSTANCE in like:
        noise[INSTANCE] = rng.integers(0, 2, shape).astype(np.int32)
    return noise
