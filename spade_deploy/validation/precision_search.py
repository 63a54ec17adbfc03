"""Which units a half-precision graph must keep in float32 to be within its tolerance where it really runs: a bisection.

The ranges that an export measures (`export/precision.py`) find what half precision cannot hold. What a runtime makes of
a graph may fail all the same: it fuses, adds up in half precision, or takes another algorithm. So here a graph is
exported, built and judged with one set of units in float32 after another, until a smallest set is found.

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
import torch

from spade_deploy.artifact import (
    IMAGE,
    LABEL,
    LOGITS,
    PIXELS,
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
from spade_deploy.engines.ort.runtime import CPU, OrtRuntime
from spade_deploy.engines.tensorrt.build import BuildRequest, build
from spade_deploy.engines.tensorrt.library import load_library
from spade_deploy.engines.tensorrt.store import stored_engines
from spade_deploy.errors import ConfigError, NotFoundError
from spade_deploy.export.build import build_model, model_inputs, unit_names
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.export.pipeline import run_reference
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.judge import (
    Judge,
    Tolerance,
    logit_margin,
    tolerance_for,
)
from spade_deploy.networks.build import Generator
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint
from spade_deploy.spec import GraphKind, Precision, RoundingError
from spade_deploy.validation.bisection import MOST_TRIALS, Direction, PrecisionSearch, Trial, find_layers_to_keep
from spade_deploy.validation.half_emulation import EmulatedGraph
from spade_deploy.validation.half_verdict import STRESS_MIN_PSNR_DB, stress_failures
from spade_deploy.validation.validate import ValidationReport

Run = Callable[[Arrays], Arrays]
"""A dense graph's inputs by name -> `pixels` and `image`."""
Candidates = Callable[[tuple[str, ...]], AbstractContextManager[Run]]
"""Units kept in float32 -> the half-precision model that keeps them, ready to run."""


class Runs(Protocol):
    """A runtime, as far as a trial needs one."""

    def run(self, inputs: Arrays) -> Arrays:
        """A dense graph's inputs by name -> `pixels` and `image`."""


OpenCandidate = Callable[[Artifact], AbstractContextManager[Runs]]
"""A trial's artifact, which has one graph -> what runs it."""


@dataclass(frozen=True)
class Evidence:
    """What trials are judged on, as `spade validate` judges.

    inputs: of a dense graph by name, N of each. reference: `pixels`, `image` and `logits` of the untouched module.
    stress: stress maps, N of 1, with their references; each is held to the quality that a validation asks there.
    """

    inputs: Arrays
    reference: Arrays
    rounding: RoundingError
    stress: tuple[tuple[Arrays, Arrays], ...] = ()

    def failures(self, run: Run) -> tuple[str, ...]:
        """One sentence for each limit of a half-precision graph that is passed; one image is run at a time."""
        judge = self._judge(run, list(zip(one_by_one(self.inputs), one_by_one(self.reference), strict=True)))
        failures = judge.failures(tolerance_for(Precision.FP16, self.rounding))
        for one in self.stress:
            failures += self._judge(run, [one]).result().failures(Tolerance(min_psnr_db=STRESS_MIN_PSNR_DB))
        return tuple(failures)

    def _judge(self, run: Run, pairs: Sequence[tuple[Arrays, Arrays]]) -> Judge:
        """Runs all pairs of inputs and reference, one at a time."""
        ids = 1 + max(int(inputs[LABEL].max()) for inputs, _ in pairs)
        judge = Judge(tuple(f"label {number}" for number in range(ids)), logit_margin(Precision.FP16, self.rounding))
        for inputs, expected in pairs:
            found = run(inputs)
            trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found[IMAGE], found[PIXELS])
            judge.add(inputs[LABEL], expected[LOGITS], trusted, candidate)
        return judge


def search_precision(
    artifact: Artifact,
    *,
    kind: GraphKind,
    open_candidate: OpenCandidate,
    inputs: Arrays | None = None,
    stress: Sequence[StressMap] = (),
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    direction: Direction = Direction.REVERSE,
    most_trials: int = MOST_TRIALS,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> PrecisionSearch:
    """Find what the half-precision graph of an artifact must keep beside what it keeps already.

    open_candidate: opens the one graph of a trial's artifact where the original failed, see `tensorrt_opener`.
    inputs: those that it failed on, by name; None: the artifact's golden ones. stress: maps that it failed on beside.
    checkpoint: the weights that were exported; by default they are looked for by their digest.
    Raises ArtifactError where there is no such graph, ConfigError, NotFoundError, ExportError, and what
    `open_candidate` raises.
    """
    graph = artifact.graph(Precision.FP16, kind)
    generator = _exported_generator(artifact, checkpoint, runs_dir)
    golden = artifact.golden()
    reference = golden.outputs if inputs is None else run_reference(generator, inputs)
    hard = tuple((one.inputs, run_reference(generator, one.inputs)) for one in stress)
    evidence = Evidence(golden.inputs if inputs is None else inputs, reference, artifact.manifest.rounding, hard)
    candidates = runtime_candidates(generator, kind, artifact, open_candidate)

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        with candidates(kept) as run:
            return evidence.failures(run)

    return find_layers_to_keep(
        unit_names(generator.spec),
        failures_with,
        held=graph.kept_fp32,
        direction=direction,
        most_trials=most_trials,
        on_trial=on_trial,
    )


def search_failures(
    artifact: Artifact,
    report: ValidationReport,
    backend: Backend,
    *,
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    direction: Direction = Direction.REVERSE,
    most_trials: int = MOST_TRIALS,
    on_trial: Callable[[str, Trial], None] = lambda *_: None,
) -> dict[str, PrecisionSearch]:
    """A search for each half-precision graph that failed a validation, by the graph's name.

    It is judged on the golden inputs and on the stress maps that the graph failed on.
    backend: what the validation was asked to run. on_trial: called with the graph's name too.
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
            open_candidate=opener_like(artifact, graph, backend),
            stress=[one for one in report.stress if one.name in stress_failures(result.half)],
            checkpoint=checkpoint,
            runs_dir=runs_dir,
            direction=direction,
            most_trials=most_trials,
            on_trial=partial(on_trial, graph.name),
        )
    return found


def opener_like(artifact: Artifact, graph: Graph, backend: Backend) -> OpenCandidate:
    """Opens a trial's graph where that backend runs `graph` of `artifact`, for `search_precision`.

    A trial's engine is built as the one that the artifact has of this graph: flavour, profile, options. On a CPU real
    half precision is emulated: its own kernels compute in float32, and would find nothing wrong.
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
        if isinstance(runtime, OrtRuntime) and runtime.provider == CPU and only.precision is Precision.FP16:
            runtime.close()
            return nullcontext(EmulatedTrial(trial, only))
        return runtime

    return open_trial


class EmulatedTrial:
    """The one graph of a trial in real half precision on a CPU."""

    def __init__(self, trial: Artifact, graph: Graph) -> None:
        self._spec, self._kind = trial.manifest.generator, graph.kind
        with trial.vouched(graph.file) as path:
            self._emulated = EmulatedGraph(path)

    def run(self, inputs: Arrays) -> Arrays:
        """An image with an overflow behind it is not-a-number all over: tanh would make 1 of infinity."""
        found = self._emulated.run(graph_inputs(self._spec, self._kind, inputs))
        if found.overflows:
            return {**found.outputs, IMAGE: np.full_like(found.outputs[IMAGE], np.nan)}
        return found.outputs


def torch_candidates(generator: Generator, kind: GraphKind) -> Candidates:
    """The deploy model itself in eager PyTorch on the CPU: no export and no build, for what fails there already."""

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        model = build_model(generator, kind, fp16=True, keep_fp32=kept)

        def run(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                pixels, image = model(*model_inputs(model, inputs))
            return {PIXELS: pixels.numpy(), IMAGE: image.numpy()}

        yield run

    return candidate


def runtime_candidates(
    generator: Generator, kind: GraphKind, like: Artifact, open_candidate: OpenCandidate
) -> Candidates:
    """Every trial is exported into an artifact of its own, which is gone after it.

    like: the artifact whose half-precision graph is in question. open_candidate: opens the one graph of a trial; where
    every unit is kept, that is an fp32 graph.
    """
    units = unit_names(generator.spec)

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        with scratch_folder("trial") as scratch:
            folder = scratch / "artifact"
            folder.mkdir()
            # A graph that nothing is half precision in is not called so: the proof of its engine would refuse it.
            precision = Precision.FP16 if len(kept) < len(units) else Precision.FP32
            file = graph_file(precision, kind)
            write_onnx(build_model(generator, kind, fp16=True, keep_fp32=kept), folder / file)
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
    """For `search_precision` and `runtime_candidates`: builds a trial's engine as `request` says, and opens it.

    The timing cache of `artifact` serves all trials: most layers of one were timed in the one before.
    """
    cache = request.timing_cache or timing_cache_path(artifact, load_library(request.flavour).flavour)

    def open_engine(trial: Artifact) -> Runtime:
        (graph,) = trial.manifest.graphs
        choice = GraphChoice(graph.kind.value)
        build(trial, replace(request, precision=graph.precision, graph=choice, timing_cache=cache))
        return open_runtime(trial, graph.precision, Backend.TENSORRT, graph=choice)

    return open_engine


def _exported_generator(artifact: Artifact, checkpoint: Path | None, runs_dir: Path) -> Generator:
    digest = artifact.manifest.source.generator_sha256
    if checkpoint is not None:
        path: Path | None = resolve_checkpoint(checkpoint, runs_dir)
    else:
        path = find_checkpoint_by_digest(digest, near=artifact.path, runs_dir=runs_dir)
    if path is None:
        raise NotFoundError(
            f"the checkpoint that {artifact.path} was exported from was not found in {runs_dir}",
            hint="give --checkpoint: every trial is an export of its weights",
        )
    loaded = load_generator(path)
    if loaded.info.generator_sha256 != digest:
        raise ConfigError(
            f"--checkpoint {path}: its weights ({loaded.info.generator_sha256[:16]}...) are not those that were"
            f" exported ({digest[:16]}...)",
            hint="leave --checkpoint out: the right one is looked for",
        )
    return loaded.module
