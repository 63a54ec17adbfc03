"""Times of candidates side by side: warm-up, then rounds in which each runs once, in an order that rotates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu.records import error_text
from spade_deploy.tuning.timing import in_turn

Work = Callable[[], object]
Timer = Callable[[Work], float]
"""Runs the work once; milliseconds."""

WARM_UP = 10
"""Runs of each candidate before any is timed: algorithms are chosen, graphs captured, clocks raised."""


@dataclass
class Measured:
    """times_ms: a time a round, by candidate. failures: of those that did not run."""

    times_ms: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def host_timer(synchronize: Work = lambda: None) -> Timer:
    """The clock on the wall, from a device at rest to a device at rest."""

    def measure(work: Work) -> float:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        return (time.perf_counter() - start) * 1000

    return measure


def cuda_timer(torch: Any) -> Timer:
    """Between two CUDA events around the work, on PyTorch's current stream."""

    def measure(work: Work) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return measure


@dataclass(frozen=True)
class Replay:
    """Launches a CUDA graph. It keeps the work: the graph's kernels read the memory of its weights and inputs."""

    graph: Any
    work: Work

    def __call__(self) -> None:
        self.graph.replay()


def captured(torch: Any, work: Work) -> tuple[Replay, Any]:
    """(The work as a CUDA graph, to be replayed; what the captured work returned, which a replay writes).

    A replay launches all kernels at once: what is timed is the card, and not the program that launches. The work runs a
    few times before, since algorithms are chosen in the first runs. Raises RuntimeError where it cannot be captured.
    """
    cuda = torch.cuda
    cuda.synchronize()  # the inputs may still be on their way, on another stream
    with cuda.stream(cuda.Stream()):  # PyTorch wants another stream than the default; one that fails is left here
        for _ in range(3):
            work()
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            returned = work()
    cuda.synchronize()
    return Replay(graph, work), returned


def device_timer(torch: Any, device: str) -> Timer:
    """CUDA events on a GPU, the wall clock elsewhere."""
    return cuda_timer(torch) if device.startswith("cuda") else host_timer()


def measure_interleaved(works: Mapping[str, Work], timer: Timer, rounds: int, warm_up: int = WARM_UP) -> Measured:
    """Time all candidates; one that fails at any point is left out, with its reason."""
    measured = Measured()

    def tried(name: str, count: int) -> list[float]:
        try:
            return [timer(works[name]) for _ in range(count)]
        except Exception as error:  # out of memory, a shape that is refused: the others go on
            measured.failures[name] = error_text(error)
            measured.times_ms.pop(name, None)
            return []

    for name in works:
        tried(name, warm_up)
    measured.times_ms = {name: [] for name in works if name not in measured.failures}
    for number in range(rounds):
        for name in in_turn(list(measured.times_ms), number):
            times = tried(name, 1)
            if times:
                measured.times_ms[name] += times
    return measured


def median_ratio(slower_ms: Sequence[float], faster_ms: Sequence[float]) -> float | None:
    """The median over rounds of one candidate's time over another's; None where one was not measured."""
    pairs = list(zip(slower_ms, faster_ms, strict=False))
    return statistics.median(slow / fast for slow, fast in pairs) if pairs else None


def spread(times_ms: Sequence[float], prefix: str) -> dict[str, float | None]:
    """Median, 90th and 99th percentile, as figures."""
    if not times_ms:
        return {}
    ordered = sorted(times_ms)
    at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.9, 0.99)}
    return {
        f"{prefix}_p50_ms": statistics.median(ordered),
        f"{prefix}_p90_ms": at[0.9],
        f"{prefix}_p99_ms": at[0.99],
    }
