"""What became of each candidate of a bench: its runs, how it started, how its images were judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from spade_deploy.bench.candidates import Candidate
from spade_deploy.bench.judging import CandidateVerdict
from spade_deploy.spec import Precision

QUIET = 0.04
"""The share of the machine that other processes may have had in a round that counts as undisturbed."""


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

    cpu_s: float | None = None
    """The processor time that it took, of all threads together; None in results of older versions."""

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

    cpu_p50_ms: float | None
    """The median processor time of a batch, of all threads together."""

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
    """How its images of the golden inputs were judged; None for a bound, which has no image."""

    precision: Precision = Precision.FP32
    """The precision that it ran in."""

    psnr_db: Mapping[int, float] = field(default_factory=dict)
    """The PSNR of its image of each case against the PyTorch module; infinite where they are identical."""

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
