"""Validation before timing: a candidate's images of the golden inputs are held to those of the untouched module."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import LABEL, Arrays, Artifact, Golden, Graph
from spade_deploy.bench.candidates import Candidate
from spade_deploy.metrics.judge import Judge
from spade_deploy.metrics.tolerances import Tolerance, tolerance_for
from spade_deploy.spec import Precision

LEAST_PSNR_DB = 15.0
"""What an int8 baseline has to reach: a tool at its defaults promises no quality, but it has to run this model. A
candidate with less on any label map has no figure, whatever its precision."""


@dataclass(frozen=True)
class CandidateVerdict:
    """Whether a candidate is right. Errors are of the image in [-1, 1]; values that rounding decides are left out.

    Errors are None if the candidate's image holds NaN or infinity, or could not be compared.
    """

    max_abs: float | None
    """The largest error of the image in [-1, 1]."""

    mean_abs: float | None
    """The mean error."""

    psnr_db: float | None
    """The PSNR of the image in dB; None also if the images are identical."""
    failures: tuple[str, ...]
    """One sentence for each limit that was exceeded; empty when the candidate is right."""


def judge(artifact: Artifact, candidate: Candidate, golden: Golden, found: Arrays) -> CandidateVerdict:
    """Hold a candidate to the tolerance of its precision, as `spade validate` does. found: `image` and `pixels`."""
    manifest = artifact.manifest
    one = Judge(manifest.generator.labels, candidate.precision, manifest.rounding, _tolerance(artifact, candidate))
    one.add(golden.inputs[LABEL], golden.outputs, found)
    verdict = one.verdict()
    figures = verdict.decided
    if not figures.finite:
        return CandidateVerdict(None, None, None, verdict.failures)
    return CandidateVerdict(figures.max_abs, figures.mean_abs, figures.psnr_db, verdict.failures)


def _tolerance(artifact: Artifact, candidate: Candidate) -> Tolerance:
    goals = [graph.min_psnr_db for graph in artifact.manifest.graphs if _is_meant(graph, candidate)]
    goal = min((goal for goal in goals if goal is not None), default=None)
    if candidate.is_baseline and candidate.precision is Precision.INT8:
        goal = LEAST_PSNR_DB
    return tolerance_for(candidate.precision, artifact.manifest.rounding, goal)


def _is_meant(graph: Graph, candidate: Candidate) -> bool:
    return graph.precision is candidate.precision and candidate.graph in (None, "auto", graph.kind.value)
