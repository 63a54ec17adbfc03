"""A graph of the artifact against its golden tensors, in any runtime."""

from __future__ import annotations

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Artifact, joined
from spade_deploy.bench.candidates import Candidate, Kind
from spade_deploy.bench.judging import judge
from spade_deploy.engines.base import GraphChoice, Runtime
from spade_deploy.spec import GraphKind, Precision


def judged(
    artifact: Artifact, precision: Precision, kind: GraphKind, runtime: Runtime, batch: int = 1
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """(Errors of the image, what is wrong with them), over the golden maps, `batch` of them a run.

    The last batch is filled up with the first maps, for an engine of one batch size.
    """
    golden = artifact.golden()
    count = len(golden.inputs[LABEL])
    parts = []
    for start in range(0, count, batch):
        chosen = [(start + offset) % count for offset in range(batch)]
        parts.append(runtime.run({name: array[chosen] for name, array in golden.inputs.items()}, [IMAGE, PIXELS]))
    found = {name: array[:count] for name, array in joined(parts).items()}
    candidate = Candidate(Kind.GRAPH, f"{precision} {kind}", precision, GraphChoice(kind.value))
    verdict = judge(artifact, candidate, golden, found)
    return {
        "max_abs": verdict.max_abs,
        "mean_abs": verdict.mean_abs,
        "psnr_db": verdict.psnr_db,
    }, verdict.failures
