"""Bench: measure an artifact's graphs and baselines side by side. A candidate with wrong images gets no figure."""

from spade_deploy.bench.candidates import ALL_BASELINES, BASELINES, GEMM_SIDE, Candidate, Kind, choose_candidates
from spade_deploy.bench.entries import Entry, Figures, Status
from spade_deploy.bench.inputs import batches, folder_cases, golden_cases, read_cases
from spade_deploy.bench.machine import describe_machine
from spade_deploy.bench.plot import default_folder, write_result
from spade_deploy.bench.request import DEFAULT_ROUNDS, BenchPlan, BenchRequest
from spade_deploy.bench.result import CONDITIONS, BenchResult, said_db
from spade_deploy.bench.run import bench_artifact, run_plan

__all__ = [
    "ALL_BASELINES",
    "BASELINES",
    "CONDITIONS",
    "DEFAULT_ROUNDS",
    "GEMM_SIDE",
    "BenchPlan",
    "BenchRequest",
    "BenchResult",
    "Candidate",
    "Entry",
    "Figures",
    "Kind",
    "Status",
    "batches",
    "bench_artifact",
    "choose_candidates",
    "default_folder",
    "describe_machine",
    "folder_cases",
    "golden_cases",
    "read_cases",
    "run_plan",
    "said_db",
    "write_result",
]
