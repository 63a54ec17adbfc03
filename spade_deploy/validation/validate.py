"""Validate an artifact: compare the images of its graphs with those of the untouched PyTorch module.

The reference is the module of `networks/` in eval mode with the checkpoint's weights, without any folds. If PyTorch or
the checkpoint is missing, the golden outputs that the export stored take its place. `metrics/judge.py` decides what is
right or wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, PIXELS, Arrays, Artifact, Graph, Manifest
from spade_deploy.engines.base import Backend, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino.library import has_bf16
from spade_deploy.engines.tensorrt.open import has_engines
from spade_deploy.errors import (
    MissingDependencyError,
    NotFoundError,
)
from spade_deploy.export.stress_maps import stress_maps
from spade_deploy.metrics.judge import Judge
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import EXPORTED, GraphKind, Precision
from spade_deploy.tuning.break_even import BreakEven, TimedMaps, time_break_even
from spade_deploy.validation.half_precision import MOST_INPUTS, HalfPrecisionCheck
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
    graphs = _graphs(artifact, request.backend)
    groups = _by_precision(graphs) if request.times_graphs else [(graph,) for graph in graphs]
    results = [result for group in groups for result in run.judge(group, request)]
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


def _by_precision(graphs: tuple[Graph, ...]) -> list[tuple[Graph, ...]]:
    """The graphs of each precision, which are timed side by side."""
    precisions = dict.fromkeys(graph.precision for graph in graphs)
    return [tuple(graph for graph in graphs if graph.precision is precision) for precision in precisions]


class _Compared:
    """One graph in a runtime, and how its images compare with those of the reference."""

    def __init__(self, graph: Graph, runtime: Runtime, manifest: Manifest) -> None:
        self.graph, self.runtime = graph, runtime
        self.seconds: list[float] = []
        self.worst: tuple[float, Arrays] | None = None
        tolerance = tolerance_for(graph.precision, manifest.rounding, graph.min_psnr_db)
        self.judge = Judge(manifest.generator.labels, graph.precision, manifest.rounding, tolerance)

    def add(self, inputs: Arrays, expected: Arrays) -> Arrays:
        """Run the graph, and judge what it gives, which is returned."""
        began = time.perf_counter()
        found = self.runtime.run(inputs)
        self.seconds.append(time.perf_counter() - began)
        error = self.judge.add(inputs[LABEL], expected, found)
        if self.worst is None or error > self.worst[0]:
            self.worst = (error, inputs)
        return found


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

    def judge(self, graphs: Sequence[Graph], request: ValidationRequest) -> list[GraphResult]:
        """The verdicts on graphs of one precision, in the runtime that the request chooses.

        Each input is run on all of them in turns. Their break-even is measured, if it was asked for, in the same
        sessions; these are closed before anything is emulated, since an emulated graph would be a third one in memory.
        """
        self._progress.step(f"validating {' and '.join(graph.name for graph in graphs)}")
        with ExitStack() as opened:
            runs = []
            for graph in graphs:
                runtime = open_runtime(self._artifact, graph.precision, request.backend, graph=str(graph.kind))
                runs.append(_Compared(graph, opened.enter_context(runtime), self._artifact.manifest))
            first = self._compare(runs)
            break_even = self._break_even(runs) if request.times_graphs else None
            results = [self._result(one, request.backend) for one in runs]
        for index, (one, result) in enumerate(zip(runs, results, strict=True)):
            if result.graph.kind is GraphKind.LOOKUP:
                results[index] = result = replace(result, break_even=break_even)
            if self._half.is_needed(one.graph, one.runtime):
                self._progress.step(f"emulating {one.graph.name} in real half precision")
                half = self._half.verdict(one.graph, self._again(first), self._progress)
                more = tuple(f"in real half precision, {why}" for why in half.failures)
                results[index] = replace(result, half=half, failures=(*result.failures, *more))
        return results

    def _compare(self, runs: Sequence[_Compared]) -> list[Arrays]:
        """Run all inputs. Returns the first of them, as many as are emulated at most."""
        first = []
        for index, inputs in enumerate(self._inputs):
            expected = self._images(index, inputs)
            for one in runs:
                found = one.add(inputs, expected)
                self._keep_sample(index, inputs[LABEL][0], expected[PIXELS][0], one.graph.name, found[PIXELS][0])
                self._progress.count(one.graph.name, index + 1, self._inputs.total)
            if index < MOST_INPUTS:
                first.append(inputs)
        if not first:
            raise NotFoundError("none of the label maps could be read", hint="`spade check-labels DIR` says why")
        return first

    def _again(self, first: Sequence[Arrays]) -> Iterator[tuple[Arrays, Arrays]]:
        """The first inputs, each with the outputs of the reference."""
        return ((inputs, self._images(index, inputs)) for index, inputs in enumerate(first))

    def _break_even(self, runs: Sequence[_Compared]) -> BreakEven | None:
        """The times of a dense and a lookup graph; None where there are not both, or one is wrong."""
        by_kind = {one.graph.kind: one for one in runs}
        if len(by_kind) < len(GraphKind) or any(one.judge.verdict().failures for one in runs):
            return None
        dense, lookup = by_kind[GraphKind.DENSE], by_kind[GraphKind.LOOKUP]
        self._progress.step(f"measuring for which label maps {lookup.graph.name} is faster than dense")
        maps = TimedMaps.of(self._artifact.manifest.generator, self._artifact.golden().inputs)
        if len(dense.seconds) == 1:  # a session's first run says little
            return time_break_even(maps, dense.runtime, lookup.runtime)
        last_s = {"lookup_s": lookup.seconds[-1], "dense_s": dense.seconds[-1]}
        return time_break_even(maps, dense.runtime, lookup.runtime, **last_s)

    def _result(self, one: _Compared, backend: Backend) -> GraphResult:
        """The verdict on what a graph gave, without that in real half precision."""
        graph, verdict = one.graph, one.judge.verdict()
        opinion = _second_opinion(self._artifact, graph, one.runtime) if backend == Backend.TENSORRT else None
        diverges_at = None
        if verdict.failures and graph.precision in EXPORTED:  # a file can be searched, its bf16 arithmetic cannot
            assert one.worst is not None
            with self._artifact.vouched(graph.file) as file:
                diverges_at = self._reference.diverges_at(file, graph, one.worst[1])
        return GraphResult(
            graph=graph,
            runtime=one.runtime.name,
            diff=verdict.diff,
            tolerance=verdict.tolerance,
            failures=verdict.failures,
            decided=verdict.decided,
            undecided_share=verdict.undecided_share,
            diverges_at=diverges_at,
            second_opinion=opinion,
            seconds=tuple(one.seconds),
        )

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
