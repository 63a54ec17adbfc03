"""The result of a bench: raw times round by round, and the figures that follow from them."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy.bench.candidates import Kind
from spade_deploy.bench.entries import Entry, Figures, Round, Run, Status
from spade_deploy.errors import ValidationFailedError
from spade_deploy.spec import GraphKind, Precision

CONDITIONS = (
    "A process a candidate; rounds interleave them, in an order that rotates.",
    "Ratios are taken within a round, and their median is given.",
    "Graphs of the artifact: label ids in, uint8 pixels out; one-hot, edges and the finding of patterns are counted.",
    "Baselines: the one-hot segmap is ready before the timing begins, the float image ends it; that favours them.",
    "Peak memory: the most physical memory of the candidate's process, libraries included, from its start to its end.",
    "Cold start: from starting the process, Python included, to the first image. Files are in the system's cache.",
    "PyTorch: spectral norm removed, channels last; bfloat16 is that of weights and activations.",
    "OpenVINO: the size of the inputs is fixed. NNCF and onnxruntime.quantization: defaults, calibrated on these maps.",
    "PSNR: of the images that are timed, against the untouched module in PyTorch float32; the lowest of all maps.",
    "Processor time is that of the process, all threads together.",
    "torch.compile begins with an empty cache of compiled code.",
)


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

    no_references: str = ""
    """Why no PSNR could be measured on the cases; empty if it was, or if no baseline was asked for."""

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
        if self.no_references:
            notes.append(f"PSNR is that of the golden inputs, not of these label maps: {self.no_references}")
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
        cpu = [run.cpu_s for run in runs if run.cpu_s is not None]
        patterns = [run.patterns_s for run in runs if run.patterns_s is not None]
        chosen = [run.graph for run in runs if run.graph is not None]
        p50, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
        return Figures(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            cpu_p50_ms=statistics.median(cpu) * 1e3 if cpu else None,
            images_per_s=self.batch_size * len(ms) * 1e3 / float(ms.sum()),
            patterns_p50_ms=statistics.median(patterns) * 1e3 if patterns else None,
            lookup_share=chosen.count(GraphKind.LOOKUP) / len(chosen) if chosen else None,
        )

    def ratio(self, entry: Entry, to: Entry, case: int | None = None) -> float:
        """How many times as fast as `to` a candidate is: the median over rounds of the ratio within the round."""
        pairs = zip(self._runs(to, case), self._runs(entry, case), strict=True)
        return statistics.median(other.seconds / own.seconds for other, own in pairs)

    def cpu_ratio(self, entry: Entry, to: Entry, case: int | None = None) -> float:
        """The same by processor time, which other processes on the machine disturb less."""
        pairs = zip(self._runs(to, case), self._runs(entry, case), strict=True)
        return statistics.median((other.cpu_s or math.nan) / (own.cpu_s or math.nan) for other, own in pairs)

    def psnr_db(self, entry: Entry) -> float | None:
        """The lowest PSNR of a candidate's images: of the cases, or of the golden inputs where these were not compared.

        Infinite for identical images; None for a bound.
        """
        if entry.psnr_db:
            return min(entry.psnr_db.values())
        if entry.verdict is None:
            return None
        return math.inf if entry.verdict.psnr_db is None else entry.verdict.psnr_db

    def require_right(self) -> None:
        """Raise ValidationFailedError, with every reason, where a candidate is wrong or a graph did not run."""
        faults = [entry for entry in self.entries if entry.is_fault]
        if not faults:
            return
        hint = f"spade validate {self.artifact} has the details; the other candidates are measured"
        if all(entry.candidate.is_baseline for entry in faults):
            hint = "that tool is not exact enough for this model; the other candidates are right, and measured"
        raise ValidationFailedError(
            f"no figure for {' | '.join(f'{entry.candidate.name}: {entry.reason}' for entry in faults)}",
            hint=next((entry.hint for entry in faults if entry.hint), hint),
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
            "precision": entry.precision,
            "graph": entry.candidate.graph,
            "backend": entry.candidate.backend,
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
            "psnr_db": {self.cases[case]: said_db(value) for case, value in sorted(entry.psnr_db.items())},
            "cold_start": {**asdict(entry.cold_start), "total_s": entry.cold_start.total_s},
            "imports_bytes": entry.imports_bytes,
            "peak_memory_bytes": entry.peak_memory_bytes,
            "runs": [asdict(run) for run in entry.runs],
        }


def said_db(value: float | None) -> float | str | None:
    """A PSNR as JSON holds it: a number, or "identical"."""
    return "identical" if value == math.inf else value


def _rank(entry: Entry) -> tuple[bool, bool]:
    candidate = entry.candidate
    is_dense = candidate.precision is Precision.FP32 and candidate.graph == GraphKind.DENSE.value
    return not candidate.is_baseline, not is_dense
