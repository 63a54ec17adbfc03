"""Bench: how fast an artifact's graphs are, beside baselines, in one run; no figure for what is wrong."""

from spade_deploy.bench.candidates import ALL_BASELINES, BASELINES, Candidate, Kind, choose_candidates
from spade_deploy.bench.inputs import batches, folder_cases, golden_cases, read_cases
from spade_deploy.bench.plot import write_result
from spade_deploy.bench.result import CONDITIONS, BenchResult, Entry, Figures, Status
from spade_deploy.bench.run import DEFAULT_ROUNDS, bench

__all__ = [
    "ALL_BASELINES",
    "BASELINES",
    "CONDITIONS",
    "DEFAULT_ROUNDS",
    "BenchResult",
    "Candidate",
    "Entry",
    "Figures",
    "Kind",
    "Status",
    "batches",
    "bench",
    "choose_candidates",
    "folder_cases",
    "golden_cases",
    "read_cases",
    "write_result",
]
