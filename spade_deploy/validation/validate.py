"""Validate: what an artifact's graphs make of label maps against what the untouched PyTorch module makes of them.

The reference is the module of `training.networks` in eval mode with the checkpoint's weights, nothing folded. Where
PyTorch or the checkpoint is missing, the golden outputs that the export stored stand in for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, LOGITS, PIXELS, Arrays, Artifact, Graph, Z, one_by_one
from spade_deploy.engines.base import Backend, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU
from spade_deploy.engines.tensorrt.open import has_engines
from spade_deploy.errors import (
    ConfigError,
    LabelMapError,
    MissingDependencyError,
    NotFoundError,
    RuntimeUnavailableError,
    ValidationFailedError,
)
from spade_deploy.export.stress_maps import StressMap, stress_maps
from spade_deploy.labels.files import read_instance_map, read_label_map
from spade_deploy.labels.layouts import Pairing, Problem
from spade_deploy.labels.pairs import find_label_maps
from spade_deploy.metrics.judge import (
    DiffAccumulator,
    Judge,
    OutputDiff,
    Tolerance,
    logit_margin,
    tolerance_for,
)
from spade_deploy.progress import SILENT, Progress
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint
from spade_deploy.spec import Precision, RoundingError
from spade_deploy.validation.half_verdict import HalfJudge, HalfVerdict

MAX_SAMPLES = 4
"""Images that a report shows."""
STRESS_CLASSES = 4
"""Of the stress maps of one class, so many are emulated; an export has measured the ranges of more."""


@dataclass(frozen=True)
class SampleImages:
    """One image for the report: label H x W, pixels H x W x 3 of the reference and of each graph by its name."""

    label: NDArray[Any]
    reference: NDArray[np.uint8]
    candidates: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class GraphResult:
    """The verdict on one graph; `failures` is empty when it passed.

    diff: over all values. undecided_share: of the values that rounding alone decides (`compare.is_undecided`); the
    verdict is over the others. diverges_at: on failure, the first wrong tensor, or why it could not be found.
    second_opinion: of a TensorRT engine, Polygraphy's verdict on it beside ONNX Runtime, or why there is none.
    half: of an fp16 graph that a CPU ran, what real half precision makes of it; its failures are among `failures`.
    """

    graph: Graph
    runtime: str
    diff: OutputDiff
    tolerance: Tolerance
    failures: tuple[str, ...]
    undecided_share: float = 0.0
    diverges_at: str | None = None
    second_opinion: str | None = None
    half: HalfVerdict | None = None

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class ValidationReport:
    """All verdicts on one artifact. skipped: label maps that could not be read, with the reason.

    stress: the maps that half precision was emulated on beside the inputs.
    """

    artifact: Path
    reference: str
    inputs: str
    rounding: RoundingError
    results: tuple[GraphResult, ...]
    samples: tuple[SampleImages, ...]
    skipped: tuple[str, ...] = ()
    stress: tuple[StressMap, ...] = ()

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "reference": self.reference,
            "inputs": self.inputs,
            "rounding_of_the_reference": asdict(self.rounding),
            "skipped": list(self.skipped),
            "graphs": [
                {
                    "precision": result.graph.precision,
                    "kind": result.graph.kind,
                    "runtime": result.runtime,
                    "passed": result.passed,
                    "failures": list(result.failures),
                    "undecided_share": result.undecided_share,
                    "diverges_at": result.diverges_at,
                    "second_opinion": result.second_opinion,
                    "real_half_precision": None if result.half is None else result.half.to_json(),
                    "tolerance": result.tolerance.to_json(),
                    "figures": result.diff.to_json(),
                }
                for result in self.results
            ],
        }

    def require_passed(self) -> None:
        """Raise ValidationFailedError, with every failure, unless all graphs passed."""
        failed = [result for result in self.results if not result.passed]
        if not failed:
            return
        lines = []
        for result in failed:
            where = f"; {result.diverges_at}" if result.diverges_at else ""
            lines.append(f"{result.name} ({result.runtime}): {'; '.join(result.failures)}{where}")
        raise ValidationFailedError(
            f"{self.artifact} is not what was trained: " + " | ".join(lines),
            hint=self._next_step(failed),
        )

    def _next_step(self, failed: list[GraphResult]) -> str:
        halves = [result.half for result in failed if result.half is not None]
        flags = " ".join(dict.fromkeys(half.flags for half in halves if half.keep))
        if flags:
            return f"keep in float32 what overflows: spade export --fp16 {flags}; or export without --fp16"
        if all(result.half is not None and len(result.failures) == len(result.half.failures) for result in failed):
            search = f"spade validate {self.artifact} --find-precision"
            return f"`{search}` finds what must stay float32; or export without --fp16"
        return "do not deploy it; export again, and report the layer that is named if it fails again"


class Reference(Protocol):
    """Whatever is trusted."""

    name: str

    def images(self, inputs: Arrays) -> Arrays:
        """`pixels`, `image` and `logits` for the graph's inputs."""

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        """One sentence that names the first wrong tensor of a graph that failed."""


def validate(
    artifact: Artifact,
    *,
    labels: Path | None = None,
    instances: Path | None = None,
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    backend: str = "auto",
    stress: Sequence[StressMap] = (),
    progress: Progress = SILENT,
) -> ValidationReport:
    """Compare every graph of `artifact` with the reference, on its golden inputs or on the label maps of a folder.

    labels, instances: folders, paired by stem and resized to the model's size with nearest neighbour.
    checkpoint: the weights that were exported; by default they are looked for by their digest.
    stress: maps beside `stress_maps` on which real half precision is emulated, where a CPU runs an fp16 graph.
    Raises NotFoundError, ConfigError, MissingDependencyError; a failed comparison is in the report, see
    `ValidationReport.require_passed`.
    """
    reference = _open_reference(
        artifact, checkpoint, runs_dir, needs_torch=labels is not None or checkpoint is not None
    )
    skipped: list[str] = []
    if labels is None:
        golden = artifact.golden().inputs
        batches: Callable[[], Iterator[Arrays]] = lambda: one_by_one(golden)  # noqa: E731
        total, described = len(golden[LABEL]), f"{len(golden[LABEL])} golden inputs"
    else:
        spec = artifact.manifest.generator.labels
        found = find_label_maps(labels, instances, spec)
        if spec.has_edges and instances is None and not found.has_instances:
            raise ConfigError(
                "--instances is needed: this model has an edge channel, made of instance maps",
                hint="spade validate ARTIFACT --labels DIR --instances DIR",
            )
        batches = lambda: _read_inputs(artifact, found, skipped)  # noqa: E731
        total, described = len(found.in_order), f"label maps of {labels}"
    results, samples = [], list[SampleImages]()
    half = _Half(artifact, reference, (*stress_maps(artifact.manifest.generator, classes=STRESS_CLASSES), *stress))
    for graph in _graphs(artifact, backend):
        skipped.clear()
        with open_runtime(artifact, graph.precision, backend, graph=str(graph.kind)) as runtime:
            judge = half.open(graph, runtime)
            result = _compare(artifact, graph, runtime, reference, batches(), samples, total, judge, progress)
            result = half.finish(judge, result, progress)
            if backend == Backend.TENSORRT:
                result = replace(result, second_opinion=_second_opinion(artifact, graph, runtime))
        results.append(result)
    images = results[0].diff.images
    return ValidationReport(
        artifact=artifact.path,
        reference=reference.name,
        inputs=described if labels is None else f"{images} {described}",
        rounding=artifact.manifest.rounding,
        results=tuple(results),
        samples=tuple(samples),
        skipped=tuple(skipped),
        stress=half.stress,
    )


def _graphs(artifact: Artifact, backend: str) -> tuple[Graph, ...]:
    """All graphs; for TensorRT those that an engine was built of."""
    if backend != Backend.TENSORRT:
        return artifact.manifest.graphs
    built = tuple(graph for graph in artifact.manifest.graphs if has_engines(artifact, graph.precision, graph.kind))
    if not built:
        raise NotFoundError(f"{artifact.path} has no TensorRT engines", hint=f"spade build {artifact.path}")
    return built


def _second_opinion(artifact: Artifact, graph: Graph, runtime: Runtime) -> str:
    from spade_deploy.validation.second_opinion import compare_graph

    try:
        return str(compare_graph(artifact, graph, runtime))
    except MissingDependencyError as error:
        return error.message


def _compare(
    artifact: Artifact,
    graph: Graph,
    runtime: Runtime,
    reference: Reference,
    batches: Iterator[Arrays],
    samples: list[SampleImages],
    total: int,
    half: HalfJudge | HalfVerdict | None,
    progress: Progress,
) -> GraphResult:
    spec = artifact.manifest.generator
    names = tuple(spec.labels.name_of(label_id) for label_id in range(spec.labels.num_ids))
    rounding = artifact.manifest.rounding
    differences, judge = DiffAccumulator(names), Judge(names, logit_margin(graph.precision, rounding))
    worst: tuple[float, Arrays] | None = None
    for index, inputs in enumerate(batches):
        expected, found = reference.images(inputs), runtime.run(inputs)
        trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found[IMAGE], found[PIXELS])
        differences.add(inputs[LABEL], trusted, candidate)
        judge.add(inputs[LABEL], expected[LOGITS], trusted, candidate)
        if isinstance(half, HalfJudge):
            half.add(inputs, expected)
        error = float(np.nan_to_num(np.abs(found[IMAGE] - expected[IMAGE]), nan=np.inf).max())
        if worst is None or error > worst[0]:
            worst = (error, inputs)
        _keep_sample(samples, index, inputs[LABEL][0], expected[PIXELS][0], graph.name, found[PIXELS][0])
        progress.count(graph.name, index + 1, total)
    if worst is None:
        raise NotFoundError("none of the label maps could be read", hint="`spade check-labels DIR` says why")
    tolerance = tolerance_for(graph.precision, rounding, graph.min_psnr_db)
    failures = tuple(judge.failures(tolerance))
    diverges_at = None
    if failures:
        with artifact.vouched(graph.file) as file:
            diverges_at = reference.diverges_at(file, graph, worst[1])
    return GraphResult(
        graph, runtime.name, differences.result(), tolerance, failures, judge.undecided_share, diverges_at
    )


class _Half:
    """Real half precision beside ONNX Runtime's CPU kernels, which compute an fp16 graph in float32."""

    def __init__(self, artifact: Artifact, reference: Reference, stress: tuple[StressMap, ...]) -> None:
        self.stress = stress
        self._artifact, self._reference = artifact, reference
        self._expected: dict[str, Arrays | None] = {}

    def open(self, graph: Graph, runtime: Runtime) -> HalfJudge | HalfVerdict | None:
        """None where there is nothing to emulate, a verdict that says so where it is not possible."""
        if graph.precision is not Precision.FP16 or not isinstance(runtime, OrtRuntime) or runtime.provider != CPU:
            return None
        try:
            return HalfJudge(self._artifact, graph)
        except (MissingDependencyError, RuntimeUnavailableError) as error:
            return HalfVerdict(skipped=error.message)

    def finish(
        self,
        judge: HalfJudge | HalfVerdict | None,
        result: GraphResult,
        progress: Progress,
    ) -> GraphResult:
        """The result with what the emulation found, on the stress maps too."""
        if not isinstance(judge, HalfJudge):
            return replace(result, half=judge)
        for done, one in enumerate(self.stress, start=1):
            judge.add_stress(one.name, one.inputs, self._images(one))
            progress.count(f"{result.name} in real half precision, stress maps", done, len(self.stress))
        verdict = judge.verdict()
        found = tuple(f"in real half precision, {why}" for why in verdict.failures)
        return replace(result, half=verdict, failures=(*result.failures, *found))

    def _images(self, one: StressMap) -> Arrays | None:
        if one.name not in self._expected:
            try:
                self._expected[one.name] = self._reference.images(one.inputs)
            except NotFoundError:  # golden outputs are those of the golden inputs alone
                self._expected[one.name] = None
        return self._expected[one.name]


def _keep_sample(
    samples: list[SampleImages],
    index: int,
    label: NDArray[Any],
    reference: NDArray[np.uint8],
    name: str,
    pixels: NDArray[np.uint8],
) -> None:
    if index == len(samples) and index < MAX_SAMPLES:
        samples.append(SampleImages(label, reference, {}))
    if index < len(samples):
        samples[index] = replace(samples[index], candidates={**samples[index].candidates, name: pixels})


def _read_inputs(artifact: Artifact, found: Pairing, skipped: list[str]) -> Iterator[Arrays]:
    spec = artifact.manifest.generator
    size = (spec.height, spec.width)
    for sample in found.in_order:
        if isinstance(sample, Problem):
            skipped.append(f"{sample.path}: {sample.message}")
            continue
        try:
            inputs: Arrays = {LABEL: read_label_map(sample.label, spec.labels, size)[None]}
            if sample.instance is not None:
                inputs[INSTANCE] = read_instance_map(sample.instance, size)[None]
        except LabelMapError as error:
            skipped.append(error.message)
            continue
        if spec.z_dim is not None:
            inputs[Z] = np.zeros((1, spec.z_dim), np.float32)
        yield inputs


class _GoldenReference:
    """The outputs of the untouched module that were stored at export."""

    def __init__(self, artifact: Artifact, why: str) -> None:
        self._golden = artifact.golden()
        self.name = f"golden outputs stored at export ({why})"

    def images(self, inputs: Arrays) -> Arrays:
        stored = self._golden.inputs
        for index in range(len(stored[LABEL])):
            if all(np.array_equal(stored[name][index], array[0]) for name, array in inputs.items()):
                return {name: array[index : index + 1] for name, array in self._golden.outputs.items()}
        raise NotFoundError("the golden outputs hold no such input")

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        return "install spade-deploy[export] and give --checkpoint to learn which tensor diverges first"


class _TorchReference:
    """The untouched PyTorch module with the checkpoint's weights."""

    def __init__(self, checkpoint: Path, artifact: Artifact) -> None:
        import torch

        from spade_deploy.runs.checkpoint import load_generator

        loaded = load_generator(checkpoint)
        expected = artifact.manifest.source.generator_sha256
        if loaded.info.generator_sha256 != expected:
            raise ConfigError(
                f"--checkpoint {checkpoint}: its weights ({loaded.info.generator_sha256[:16]}...) are not those that"
                f" were exported ({expected[:16]}...)",
                hint="leave --checkpoint out to validate against the golden outputs",
            )
        self._module = loaded.module
        self.name = f"PyTorch {torch.__version__}, untouched module in eval mode, float32, {checkpoint}"

    def images(self, inputs: Arrays) -> Arrays:
        from spade_deploy.export.pipeline import run_reference

        return run_reference(self._module, inputs)

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        if importlib.util.find_spec("onnx") is None:
            return "install spade-deploy[export] to learn which tensor diverges first"
        from spade_deploy.validation.divergence import first_divergence

        found = first_divergence(file, graph, self._module, inputs)
        if found is None:
            return "every named tensor is close; the error arises in the last operators, after conv_img, or adds up"
        return (
            f"the first tensor that diverges is {found.tensor}"
            f" (relative error {found.relative_error:.2g}, max {found.max_abs:.2g})"
        )


def _open_reference(artifact: Artifact, checkpoint: Path | None, runs_dir: Path, *, needs_torch: bool) -> Reference:
    if importlib.util.find_spec("torch") is None:
        if needs_torch:
            raise MissingDependencyError(
                "PyTorch is not installed: without it the golden inputs alone can be validated",
                hint="leave --labels and --checkpoint out, or pip install 'spade-deploy[export]'",
            )
        return _GoldenReference(artifact, "PyTorch is not installed")
    if checkpoint is not None:
        return _TorchReference(resolve_checkpoint(checkpoint, runs_dir), artifact)
    found = find_checkpoint_by_digest(artifact.manifest.source.generator_sha256, near=artifact.path, runs_dir=runs_dir)
    if found is not None:
        return _TorchReference(found, artifact)
    if needs_torch:
        raise NotFoundError(
            f"the checkpoint that {artifact.path} was exported from was not found in {runs_dir}",
            hint="give --checkpoint, or leave --labels out to validate against the golden outputs",
        )
    return _GoldenReference(artifact, f"the checkpoint is not in {runs_dir}; --checkpoint says where it is")
