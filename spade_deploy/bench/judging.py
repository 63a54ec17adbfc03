"""Validation first: a candidate's answers to the golden inputs against what the untouched module made of them."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import IMAGE, LABEL, LOGITS, PIXELS, Arrays, Artifact, Golden, Graph
from spade_deploy.bench.candidates import Candidate
from spade_deploy.metrics.judge import (
    Judge,
    Tolerance,
    logit_margin,
    tolerance_for,
)


@dataclass(frozen=True)
class Verdict:
    """How a candidate's images were judged, over the values that rounding does not decide."""

    max_abs: float | None
    """The largest error of the image in [-1, 1]; None where it cannot be told."""

    mean_abs: float | None
    """The mean error."""

    psnr_db: float | None
    """PSNR against the golden image; None where there is no error at all, too."""

    failures: tuple[str, ...]
    """What is wrong, a sentence each; none where the images are right."""


def judge(artifact: Artifact, candidate: Candidate, golden: Golden, found: Arrays) -> Verdict:
    """Hold a candidate to the tolerance of its precision, as `spade validate` does. found: `image` and `pixels`."""
    expected, labels = golden.outputs, artifact.manifest.generator.labels
    for name in (IMAGE, PIXELS):
        if found[name].shape != expected[name].shape:
            return Verdict(None, None, None, (f"{name} has shape {found[name].shape}, not {expected[name].shape}",))
    rounding = artifact.manifest.rounding
    trusted = (expected[IMAGE], expected[PIXELS])
    held = Judge(tuple(map(str, range(labels.num_ids))), logit_margin(candidate.precision, rounding))
    held.add(golden.inputs[LABEL], expected[LOGITS], trusted, (found[IMAGE], found[PIXELS]))
    diff, failures = held.result(), held.failures(_tolerance(artifact, candidate))
    if not diff.finite:
        return Verdict(None, None, None, tuple(failures))
    return Verdict(diff.max_abs, diff.mean_abs, diff.psnr_db, tuple(failures))


def _tolerance(artifact: Artifact, candidate: Candidate) -> Tolerance:
    goals = [graph.min_psnr_db for graph in artifact.manifest.graphs if _is_meant(graph, candidate)]
    goal = min((goal for goal in goals if goal is not None), default=None)
    return tolerance_for(candidate.precision, artifact.manifest.rounding, goal)


def _is_meant(graph: Graph, candidate: Candidate) -> bool:
    return graph.precision is candidate.precision and candidate.graph in (None, "auto", graph.kind.value)
