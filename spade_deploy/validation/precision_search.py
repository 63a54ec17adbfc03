"""Find by bisection the units that a half-precision graph must keep in float32, in the runtime where it really runs.

The ranges that an export measures (`export/precision.py`) find values that half precision cannot hold. A graph may
still be wrong in a runtime, which fuses nodes, adds up in half precision, or takes another algorithm. So here graphs
with different sets of units in float32 are exported, built and judged, until a smallest set is found.

Polygraphy's `debug precision` goes the same way but cannot be used: it sets the precision of a layer in a TensorRT
network, which TensorRT 11 does not have any more. A strongly typed network has the types of its ONNX graph, so that
each trial is a graph of its own. Its units are those that `spade export --fp16 --keep-fp32 UNIT` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from spade_deploy.artifact import (
    BANK,
    IMAGE,
    LABEL,
    Arrays,
    Artifact,
    Graph,
    graph_file,
    one_by_one,
    timing_cache_path,
    write_golden,
    write_manifest,
)
from spade_deploy.engines.base import Backend, GraphChoice, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.tensorrt.build import build
from spade_deploy.engines.tensorrt.library import load_library
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.engines.tensorrt.store import stored_engines
from spade_deploy.errors import NotFoundError
from spade_deploy.export.build import build_model, unit_names
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.export.pipeline import run_reference
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.judge import Judge
from spade_deploy.networks.build import Generator
from spade_deploy.networks.sims import bank_of_generator
from spade_deploy.progress import SILENT, Progress
from spade_deploy.retrieval.bank_file import bank_of, write_bank
from spade_deploy.spec import GraphKind, LabelSpec, Precision, RoundingError
from spade_deploy.validation.bisection import PrecisionSearch, Trial, find_layers_to_keep
from spade_deploy.validation.half_emulation import EmulatedGraph
from spade_deploy.validation.half_precision import computes_half_in_float32, stress_failures
from spade_deploy.validation.reference import find_exported_checkpoint, load_exported_generator
from spade_deploy.validation.report import ValidationReport
from spade_deploy.validation.request import ValidationRequest

Run = Callable[[Arrays], Arrays]
"""A dense graph's inputs by name -> `pixels` and `image`."""
Candidates = Callable[[tuple[str, ...]], AbstractContextManager[Run]]
"""Opens the half-precision model that keeps these units in float32, ready to run."""


class Runs(Protocol):
    """The part of a runtime that a trial needs."""

    def run(self, inputs: Arrays) -> Arrays:
        """A dense graph's inputs by name -> `pixels` and `image`."""


OpenCandidate = Callable[[Artifact], AbstractContextManager[Runs]]
"""Opens the one graph of a trial's artifact in a runtime."""


@dataclass(frozen=True)
class Evidence:
    """The inputs and the reference that trials are judged on, in the way of `spade validate`."""

    labels: LabelSpec
    """The labels of the model."""
    inputs: Arrays
    """The inputs of a dense graph by name, N of each."""
    reference: Arrays
    """`pixels`, `image` and `logits` of the untouched module."""
    rounding: RoundingError
    """The float32 error that eager PyTorch itself has."""
    stress: tuple[tuple[Arrays, Arrays], ...] = ()
    """Stress maps, with N = 1, and their references; each must reach the quality that a validation asks of them."""

    def failures(self, run: Run) -> tuple[str, ...]:
        """One sentence for each limit of a half-precision graph that is exceeded; one image is run at a time."""
        judge = Judge(self.labels, Precision.FP16, self.rounding)
        for inputs, expected in zip(one_by_one(self.inputs), one_by_one(self.reference), strict=True):
            judge.add(inputs[LABEL], expected, run(inputs))
        failures = judge.verdict().failures
        for inputs, expected in self.stress:
            judge = Judge.of_stress_map(self.labels, self.rounding)
            judge.add(inputs[LABEL], expected, run(inputs))
            failures += judge.verdict().failures
        return failures


def search_precision(
    artifact: Artifact,
    *,
    kind: GraphKind,
    open_candidate: OpenCandidate,
    stress: Sequence[StressMap] = (),
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> PrecisionSearch:
    """Find the units that an artifact's half-precision graph must keep in float32 besides those that it keeps already.

    Trials are judged on the artifact's golden inputs and on `stress`, maps that the graph failed on.
    open_candidate: opens the one graph of a trial's artifact in the runtime where the original failed, see
    `tensorrt_opener`.
    checkpoint: the weights that were exported; by default they are looked for by their digest.
    Raises ArtifactError where there is no such graph, ConfigError, NotFoundError, ExportError, and what
    `open_candidate` raises.
    """
    graph = artifact.graph(Precision.FP16, kind)
    generator = _exported_generator(artifact, checkpoint, runs_dir)
    golden, manifest = artifact.golden(), artifact.manifest
    hard = tuple((one.inputs, run_reference(generator, one.inputs)) for one in stress)
    evidence = Evidence(manifest.generator.labels, golden.inputs, golden.outputs, manifest.rounding, hard)
    candidates = runtime_candidates(generator, kind, artifact, open_candidate)

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        with candidates(kept) as run:
            return evidence.failures(run)

    return find_layers_to_keep(unit_names(generator.spec), failures_with, held=graph.kept_fp32, on_trial=on_trial)


def search_failures(
    artifact: Artifact,
    report: ValidationReport,
    request: ValidationRequest,
    *,
    progress: Progress = SILENT,
) -> dict[str, PrecisionSearch]:
    """A search for each half-precision graph that failed a validation, by the graph's name.

    It is judged on the golden inputs and on the stress maps that the graph failed on.
    report, request: those of the validation.
    Raises as `search_precision`; the dictionary is empty where no half-precision graph failed.
    """
    found = {}
    for result in report.results:
        graph = result.graph
        if result.passed or graph.precision is not Precision.FP16:
            continue
        found[graph.name] = search_precision(
            artifact,
            kind=graph.kind,
            open_candidate=opener_like(artifact, graph, request.backend),
            stress=[one for one in report.stress if one.name in stress_failures(result.half)],
            checkpoint=request.checkpoint,
            runs_dir=request.runs_dir,
            on_trial=partial(_tell, progress, graph.name),
        )
    return found


def _tell(progress: Progress, name: str, trial: Trial) -> None:
    progress.step(f"{name}: tried with {len(trial.kept)} layers in fp32")


def opener_like(artifact: Artifact, graph: Graph, backend: Backend) -> OpenCandidate:
    """Makes `open_candidate` for `search_precision`: it opens trials in the runtime in which `backend` runs `graph`.

    A trial's engine is built with flavour, profile and options of the artifact's engine of this graph. On a CPU real
    half precision is emulated, since the CPU's kernels compute in float32 and would find nothing wrong.
    """
    if backend in (Backend.AUTO, Backend.TENSORRT):
        for stored in stored_engines(artifact):
            key = stored.key
            if (key.precision, key.kind) == (graph.precision, graph.kind):
                return tensorrt_opener(
                    artifact, BuildRequest(flavour=key.flavour, profile=key.profile, options=key.options)
                )
    if backend is Backend.TENSORRT:
        raise NotFoundError(
            f"{artifact.path} has no TensorRT engine of its {graph.name} graph", hint=f"spade build {artifact.path}"
        )

    def open_trial(trial: Artifact) -> AbstractContextManager[Runs]:
        (only,) = trial.manifest.graphs
        runtime = open_runtime(trial, only.precision, backend, graph=only.kind.value)
        if only.precision is Precision.FP16 and computes_half_in_float32(runtime):
            runtime.close()
            return nullcontext(EmulatedTrial(trial, only))
        return runtime

    return open_trial


class EmulatedTrial:
    """The one graph of a trial in real half precision on a CPU."""

    def __init__(self, trial: Artifact, graph: Graph) -> None:
        self._spec, self._kind, self._bank = trial.manifest.generator, graph.kind, bank_of(trial)
        with trial.vouched(graph.file) as path:
            self._emulated = EmulatedGraph(path)

    def run(self, inputs: Arrays) -> Arrays:
        """Run the graph. After an overflow the whole image is not-a-number, since tanh would turn infinity into 1."""
        found = self._emulated.run(graph_inputs(self._spec, self._kind, inputs, self._bank))
        if found.overflows:
            return {**found.outputs, IMAGE: np.full_like(found.outputs[IMAGE], np.nan)}
        return found.outputs


def runtime_candidates(
    generator: Generator, kind: GraphKind, like: Artifact, open_candidate: OpenCandidate
) -> Candidates:
    """Makes candidates by exporting each trial into a temporary artifact of its own.

    like: the artifact whose half-precision graph is wrong. open_candidate: opens the one graph of a trial, which is an
    fp32 graph if every unit is kept.
    """
    units = unit_names(generator.spec)

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        with scratch_folder("trial") as scratch:
            folder = scratch / "artifact"
            folder.mkdir()
            # A graph without any half precision must be called fp32, or the proof of its engine would refuse it.
            precision = Precision.FP16 if len(kept) < len(units) else Precision.FP32
            file = graph_file(precision, kind)
            write_onnx(build_model(generator, kind, fp16=True, keep_fp32=kept), folder / file)
            if (bank := bank_of_generator(generator)) is not None:
                write_bank(folder / BANK, bank)
            golden = like.golden()
            write_golden(folder, golden.inputs, golden.outputs)
            facts = like.manifest
            trial = write_manifest(
                folder,
                generator=facts.generator,
                graphs=(Graph(file, precision, kept if precision is Precision.FP16 else (), kind=kind),),
                source=facts.source,
                versions=facts.versions,
                rounding=facts.rounding,
            )
            with open_candidate(Artifact(folder, trial)) as runtime:
                yield runtime.run

    return candidate


def tensorrt_opener(artifact: Artifact, request: BuildRequest) -> Callable[[Artifact], Runtime]:
    """Makes `open_candidate` for TensorRT: it builds a trial's engine as `request` says, and opens it.

    All trials use the timing cache of `artifact`, since most of their layers are the same.
    """
    cache = request.timing_cache or timing_cache_path(artifact, load_library(request.flavour).flavour)

    def open_engine(trial: Artifact) -> Runtime:
        (graph,) = trial.manifest.graphs
        choice = GraphChoice(graph.kind.value)
        build(trial, replace(request, precision=graph.precision, graph=choice, timing_cache=cache))
        return open_runtime(trial, graph.precision, Backend.TENSORRT, graph=choice)

    return open_engine


def _exported_generator(artifact: Artifact, checkpoint: Path | None, runs_dir: Path) -> Generator:
    path = find_exported_checkpoint(artifact, checkpoint, runs_dir)
    if path is None:
        raise NotFoundError(
            f"the checkpoint that {artifact.path} was exported from was not found in {runs_dir}",
            hint="give `checkpoint`: every trial is an export of its weights",
        )
    return load_exported_generator(path, artifact)
