"""The result of a bench: raw times round by round, and the figures that follow from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy.bench.candidates import Candidate, Kind
from spade_deploy.bench.judging import CandidateVerdict
from spade_deploy.errors import ValidationFailedError
from spade_deploy.spec import GraphKind, Precision

QUIET = 0.04
"""The share of the machine that other processes may have had in a round that counts as undisturbed."""
CONDITIONS = (
    "A process a candidate; rounds interleave them, in an order that rotates.",
    "Ratios are taken within a round, and their median is given.",
    "Graphs of the artifact: label ids in, uint8 pixels out; one-hot, edges and the finding of patterns are counted.",
    "Baselines: the one-hot segmap is ready before the timing begins, the float image ends it; that favours them.",
    "Peak memory: the most physical memory of the candidate's process, libraries included, from its start to its end.",
    "Cold start: from starting the process, Python included, to the first image. Files are in the system's cache.",
    "torch.compile begins with an empty cache of compiled code.",
)


class Status(StrEnum):
    """What became of a candidate."""

    MEASURED = "measured"
    """It ran, its images are right, and there are figures."""

    WRONG = "wrong"
    """Its images are not the golden ones, so it has no figure."""

    FAILED = "failed"
    """It did not run."""


@dataclass(frozen=True)
class Run:
    """One batch that was run."""

    round: int
    """The number of the round, from 0."""

    seconds: float
    """How long it took."""

    patterns_s: float | None = None
    """The part of `seconds` that was spent on finding patterns; None if there were none to find."""

    graph: str | None = None
    """The graph that ran, for a candidate that chooses between dense and lookup."""


@dataclass(frozen=True)
class ColdStart:
    """Seconds from starting the process to its first image, in three parts."""

    imports_s: float
    """Starting Python and importing the libraries."""

    load_s: float
    """Loading the model."""

    first_run_s: float
    """The first image."""

    @property
    def total_s(self) -> float:
        return self.imports_s + self.load_s + self.first_run_s


@dataclass(frozen=True)
class Round:
    """One round, in which every candidate ran the same case."""

    case: int
    """The number of the case, from 0."""

    others: float | None
    """The share of the machine that other processes used; None if it is not known."""

    @property
    def is_quiet(self) -> bool:
        return self.others is None or self.others <= QUIET


@dataclass(frozen=True)
class Figures:
    """The figures of one candidate over all rounds."""

    p50_ms: float
    """The median latency of a batch."""

    p90_ms: float
    """Nine of ten batches take less."""

    p99_ms: float
    """99 of 100 batches take less."""

    images_per_s: float
    """Images a second over all rounds."""

    patterns_p50_ms: float | None
    """The median time for finding patterns; None for a candidate that finds none."""

    lookup_share: float | None
    """The share of batches that the lookup graph ran; None for a candidate that does not choose."""


@dataclass(frozen=True)
class Entry:
    """What became of one candidate."""

    candidate: Candidate
    """The candidate."""

    status: Status
    """Whether it was measured."""

    runtime: str = ""
    """The engine or library that ran it, for people."""

    reason: str = ""
    """Why there is no figure."""

    hint: str | None = None
    """What to do about it."""

    verdict: CandidateVerdict | None = None
    """How its images were judged; None for a bound, which has no image."""

    cold_start: ColdStart | None = None
    """The time from the start of its process to its first image."""

    imports_bytes: int | None = None
    """Physical memory of its process after the imports."""

    peak_memory_bytes: int | None = None
    """The most physical memory of its process."""

    runs: tuple[Run, ...] = ()
    """Its runs, round by round."""

    @property
    def is_fault(self) -> bool:
        """Whether the whole bench fails because of it: its images are wrong, or it is a graph that did not run."""
        return self.status is Status.WRONG or (self.status is Status.FAILED and not self.candidate.is_baseline)


@dataclass(frozen=True)
class BenchResult:
    """All candidates side by side."""

    artifact: Path
    """The folder of the artifact."""

    digest: str
    """The artifact's manifest_sha256."""

    batch_size: int
    """Images a run."""

    height: int
    """The height of the label maps in pixels."""

    width: int
    """The width of the label maps in pixels."""

    threads: int
    """Threads of every candidate on the CPU."""

    backend: str
    """The engine that was asked for, to run the graphs."""

    machine: dict[str, Any]
    """Processor, cores, system and versions, see `describe_machine`."""

    cases: tuple[str, ...]
    """The names of the batches."""

    rounds: tuple[Round, ...]
    """The rounds that were done."""

    entries: tuple[Entry, ...]
    """What became of each candidate, in the order in which they were asked for."""

    @property
    def measured(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.status is Status.MEASURED)

    @property
    def reference(self) -> Entry | None:
        """The candidate that ratios refer to.

        It is the first baseline that was measured, else the dense fp32 graph, else the first candidate.
        """
        measured = [entry for entry in self.measured if entry.candidate.kind is not Kind.BOUND]
        return min(measured, key=_rank, default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know."""
        notes = []
        if any(entry.candidate.is_baseline for entry in self.measured):
            notes.append("baselines get the one-hot map ready-made, outside the timing; the graphs make their own")
        if any(run.patterns_s for entry in self.measured for run in entry.runs):
            notes.append("the time for finding patterns is counted in the latency")
        disturbed = [entry for entry in self.rounds if not entry.is_quiet]
        if disturbed:
            most = max(entry.others or 0.0 for entry in disturbed)
            notes.append(
                f"{len(disturbed)} of {len(self.rounds)} rounds were disturbed: other processes had up to {most:.0%}"
                " of the machine; ratios bear that better than times"
            )
        if len(self.rounds) < 100:
            notes.append(f"p99 of {len(self.rounds)} rounds is little more than the slowest; `rounds` 100 tells more")
        return tuple(notes)

    def figures(self, entry: Entry, case: int | None = None) -> Figures:
        """The figures of a candidate that was measured, over all rounds or those of one case."""
        runs = self._runs(entry, case)
        ms = np.array([run.seconds for run in runs]) * 1e3
        patterns = [run.patterns_s for run in runs if run.patterns_s is not None]
        chosen = [run.graph for run in runs if run.graph is not None]
        p50, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
        return Figures(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            images_per_s=self.batch_size * len(ms) * 1e3 / float(ms.sum()),
            patterns_p50_ms=statistics.median(patterns) * 1e3 if patterns else None,
            lookup_share=chosen.count(GraphKind.LOOKUP) / len(chosen) if chosen else None,
        )

    def ratio(self, entry: Entry, to: Entry, case: int | None = None) -> float:
        """How many times as fast as `to` a candidate is: the median over rounds of the ratio within the round."""
        pairs = zip(self._runs(to, case), self._runs(entry, case), strict=True)
        return statistics.median(other.seconds / own.seconds for other, own in pairs)

    def require_right(self) -> None:
        """Raise ValidationFailedError, with every reason, where a candidate is wrong or a graph did not run."""
        faults = [f"{entry.candidate.name}: {entry.reason}" for entry in self.entries if entry.is_fault]
        if faults:
            raise ValidationFailedError(
                f"no figure for {' | '.join(faults)}",
                hint=next((entry.hint for entry in self.entries if entry.is_fault and entry.hint), None)
                or f"spade validate {self.artifact} has the details; the other candidates are measured",
            )

    def to_json(self) -> dict[str, Any]:
        """Machine, versions, conditions, figures and every raw time."""
        reference = self.reference
        return {
            "artifact": str(self.artifact),
            "manifest_sha256": self.digest,
            "machine": self.machine,
            "conditions": list(CONDITIONS),
            "batch_size": self.batch_size,
            "size": [self.height, self.width],
            "threads": self.threads,
            "backend": self.backend,
            "ratios_refer_to": reference.candidate.name if reference is not None else None,
            "cases": list(self.cases),
            "rounds": [{**asdict(entry), "is_quiet": entry.is_quiet} for entry in self.rounds],
            "candidates": [self._entry_json(entry, reference) for entry in self.entries],
        }

    def _runs(self, entry: Entry, case: int | None) -> list[Run]:
        return [run for run in entry.runs if case is None or self.rounds[run.round].case == case]

    def _entry_json(self, entry: Entry, reference: Entry | None) -> dict[str, Any]:
        value: dict[str, Any] = {
            "name": entry.candidate.name,
            "kind": entry.candidate.kind,
            "precision": entry.candidate.precision,
            "graph": entry.candidate.graph,
            "status": entry.status,
            "runtime": entry.runtime,
            "reason": entry.reason,
            "validation": None if entry.verdict is None else asdict(entry.verdict),
        }
        if entry.status is not Status.MEASURED:
            return value
        assert entry.cold_start is not None
        return {
            **value,
            **asdict(self.figures(entry)),
            "ratio": None if reference is None else self.ratio(entry, reference),
            "cold_start": {**asdict(entry.cold_start), "total_s": entry.cold_start.total_s},
            "imports_bytes": entry.imports_bytes,
            "peak_memory_bytes": entry.peak_memory_bytes,
            "runs": [asdict(run) for run in entry.runs],
        }


def _rank(entry: Entry) -> tuple[bool, bool]:
    candidate = entry.candidate
    is_dense = candidate.precision is Precision.FP32 and candidate.graph == GraphKind.DENSE.value
    return not candidate.is_baseline, not is_dense
