"""Validate an artifact: compare the images of its graphs with those of the untouched PyTorch module.

The reference is the module of `networks/` in eval mode with the checkpoint's weights, without any folds. If PyTorch or
the checkpoint is missing, the golden outputs that the export stored take its place. `metrics/judge.py` decides what is
right or wrong.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, PIXELS, Arrays, Artifact, Graph
from spade_deploy.engines.base import Backend, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino.library import has_bf16
from spade_deploy.engines.tensorrt.open import has_engines
from spade_deploy.errors import (
    MissingDependencyError,
    NotFoundError,
)
from spade_deploy.export.stress_maps import stress_maps
from spade_deploy.metrics.judge import Judge, Verdict
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import EXPORTED, Precision
from spade_deploy.validation.half_precision import HalfJudge, HalfPrecisionCheck, HalfVerdict
from spade_deploy.validation.inputs import Inputs, open_inputs
from spade_deploy.validation.reference import Reference, open_reference
from spade_deploy.validation.report import GraphResult, SampleImages, ValidationReport
from spade_deploy.validation.request import ValidationRequest

MAX_KEPT_BYTES = 256 << 20
"""The most memory for outputs of the reference that are kept: every graph is compared with the same ones."""
MAX_SAMPLES = 4
"""How many images a report shows."""
STRESS_CLASSES = 4
"""How many stress maps of one class are emulated; an export has measured the ranges on more."""


def validate(
    artifact: Artifact, request: ValidationRequest | None = None, progress: Progress = SILENT
) -> ValidationReport:
    """Compare every graph of `artifact` with the reference, on its golden inputs or on the label maps of a folder.

    Raises NotFoundError, ConfigError, MissingDependencyError; a failed comparison is in the report, see
    `ValidationReport.require_passed`.
    """
    request = request or ValidationRequest()
    reference = open_reference(artifact, request)
    inputs = open_inputs(artifact, request)
    stress = (*stress_maps(artifact.manifest.generator, classes=STRESS_CLASSES), *request.stress)
    run = _Validation(artifact, reference, inputs, HalfPrecisionCheck(artifact, reference, stress), progress)
    results = [run.judge_graph(graph, request.backend) for graph in _graphs(artifact, request.backend)]
    return ValidationReport(
        artifact=artifact.path,
        reference=reference.name,
        inputs=inputs.described,
        rounding=artifact.manifest.rounding,
        results=tuple(results),
        samples=tuple(run.samples),
        skipped=tuple(inputs.skipped),
        stress=stress,
    )


def _graphs(artifact: Artifact, backend: Backend) -> tuple[Graph, ...]:
    """The graphs to validate, each with the precision that it runs in.

    They are all of the artifact; for TensorRT those that an engine was built from. OpenVINO runs the fp32 graphs in
    bf16, too, where this CPU has it.
    """
    if backend == Backend.OPENVINO and has_bf16():
        of_fp32 = [graph for graph in artifact.manifest.graphs if graph.precision is Precision.BF16.exported]
        return (*artifact.manifest.graphs, *(replace(graph, precision=Precision.BF16) for graph in of_fp32))
    if backend != Backend.TENSORRT:
        return artifact.manifest.graphs
    built = tuple(graph for graph in artifact.manifest.graphs if has_engines(artifact, graph.precision, graph.kind))
    if not built:
        raise NotFoundError(f"{artifact.path} has no TensorRT engines", hint=f"spade build {artifact.path}")
    return built


class _Validation:
    """Runs one graph after another on the same inputs."""

    def __init__(
        self, artifact: Artifact, reference: Reference, inputs: Inputs, half: HalfPrecisionCheck, progress: Progress
    ) -> None:
        self.samples: list[SampleImages] = []
        self._artifact, self._reference, self._inputs = artifact, reference, inputs
        self._half, self._progress = half, progress
        self._expected: dict[int, tuple[Arrays, Arrays]] = {}
        self._kept_bytes = 0

    def judge_graph(self, graph: Graph, backend: Backend) -> GraphResult:
        """The verdict on one graph, in the runtime that `backend` chooses."""
        with open_runtime(self._artifact, graph.precision, backend, graph=str(graph.kind)) as runtime:
            beside = self._half.open(graph, runtime)
            verdict, worst, seconds = self._compare(graph, runtime, beside)
            half = self._half.verdict(beside, self._progress)
            more = () if half is None else tuple(f"in real half precision, {why}" for why in half.failures)
            opinion = _second_opinion(self._artifact, graph, runtime) if backend == Backend.TENSORRT else None
        diverges_at = None
        if verdict.failures and graph.precision in EXPORTED:  # a file can be searched, its bf16 arithmetic cannot
            with self._artifact.vouched(graph.file) as file:
                diverges_at = self._reference.diverges_at(file, graph, worst)
        return GraphResult(
            graph=graph,
            runtime=runtime.name,
            diff=verdict.diff,
            tolerance=verdict.tolerance,
            failures=(*verdict.failures, *more),
            decided=verdict.decided,
            undecided_share=verdict.undecided_share,
            diverges_at=diverges_at,
            second_opinion=opinion,
            half=half,
            seconds=seconds,
        )

    def _compare(
        self, graph: Graph, runtime: Runtime, beside: HalfJudge | HalfVerdict | None
    ) -> tuple[Verdict, Arrays, tuple[float, ...]]:
        """The verdict on all inputs, the input with the largest error, and the seconds of each image."""
        manifest = self._artifact.manifest
        tolerance = tolerance_for(graph.precision, manifest.rounding, graph.min_psnr_db)
        judge = Judge(manifest.generator.labels, graph.precision, manifest.rounding, tolerance)
        worst: tuple[float, Arrays] | None = None
        seconds = []
        for index, inputs in enumerate(self._inputs):
            expected = self._images(index, inputs)
            began = time.perf_counter()
            found = runtime.run(inputs)
            seconds.append(time.perf_counter() - began)
            error = judge.add(inputs[LABEL], expected, found)
            if isinstance(beside, HalfJudge):
                beside.add(inputs, expected)
            if worst is None or error > worst[0]:
                worst = (error, inputs)
            self._keep_sample(index, inputs[LABEL][0], expected[PIXELS][0], graph.name, found[PIXELS][0])
            self._progress.count(graph.name, index + 1, self._inputs.total)
        if worst is None:
            raise NotFoundError("none of the label maps could be read", hint="`spade check-labels DIR` says why")
        return judge.verdict(), worst[1], tuple(seconds)

    def _images(self, index: int, inputs: Arrays) -> Arrays:
        """The reference's outputs of an input, which it computes once for all graphs."""
        kept = self._expected.get(index)
        if kept is not None and all(np.array_equal(kept[0][name], array) for name, array in inputs.items()):
            return kept[1]
        found = self._reference.images(inputs)
        size = sum(array.nbytes for array in (*inputs.values(), *found.values()))
        if self._kept_bytes + size <= MAX_KEPT_BYTES:
            self._kept_bytes += size
            self._expected[index] = (inputs, found)
        return found

    def _keep_sample(
        self, index: int, label: NDArray[Any], reference: NDArray[np.uint8], name: str, pixels: NDArray[np.uint8]
    ) -> None:
        if index == len(self.samples) and index < MAX_SAMPLES:
            self.samples.append(SampleImages(label, reference, {}))
        if index < len(self.samples):
            kept = self.samples[index]
            self.samples[index] = replace(kept, candidates={**kept.candidates, name: pixels})


def _second_opinion(artifact: Artifact, graph: Graph, runtime: Runtime) -> str:
    from spade_deploy.validation.second_opinion import compare_graph

    try:
        return str(compare_graph(artifact, graph, runtime))
    except MissingDependencyError as error:
        return error.message
