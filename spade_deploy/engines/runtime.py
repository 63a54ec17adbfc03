"""What every runtime can do, what it may be fed, and how one is chosen.

Nothing is chosen silently: a runtime's name says what really runs, and a backend that was asked for by name either
runs or is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, Artifact, input_tensors, mismatch
from spade_deploy.cores import at_most_cores
from spade_deploy.errors import ConfigError, InputRefusedError, SpadeError
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

if TYPE_CHECKING:
    from spade_deploy.engines.auto import AutoRuntime
    from spade_deploy.engines.ort import OrtRuntime


class Backend(StrEnum):
    """Where an artifact runs. Auto: a TensorRT engine that fits, else CUDA where it really loads, else the CPU.

    CPU and CUDA are ONNX Runtime's. TensorRT is an engine of `spade build`, of TensorRT or of TensorRT for RTX;
    ORT_TENSORRT is ONNX Runtime's own TensorRT provider, which builds when it is first run.
    """

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    ORT_TENSORRT = "ort-tensorrt"


class GraphChoice(StrEnum):
    """Auto: the lookup graph on a CPU where it was measured to be faster, map by map; else the dense one."""

    AUTO = "auto"
    DENSE = "dense"
    LOOKUP = "lookup"


class Runtime(Protocol):
    """An artifact that is loaded and runs; a context manager, to be closed by the one who opened it."""

    @property
    def name(self) -> str:
        """What really runs, for people: 'ONNX Runtime 1.32.0 CPU, fp32'."""

    @property
    def spec(self) -> GeneratorSpec: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def kind(self) -> GraphKind:
        """The graph that the last run used, or the next one will begin with."""

    @property
    def patterns_s(self) -> float | None:
        """Seconds that the last run spent on finding patterns; None where there was no need to."""

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """Outputs by name: all, or those in `output_names`. Raises InputRefusedError before anything runs."""

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """Outputs of one batch after another, in order; on a GPU the copies of one overlap with the work of the next.

        What fails raises in its place; the batches before it have their outputs.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def parse_graph_choice(text: str) -> GraphChoice:
    """Raises ConfigError, with what is allowed."""
    if text not in list(GraphChoice):
        raise ConfigError(f"--graph: {text!r} is not one of {', '.join(GraphChoice)}")
    return GraphChoice(text)


def parse_backend(text: str) -> Backend:
    """Raises ConfigError, with what is allowed."""
    if text not in list(Backend):
        raise ConfigError(f"--backend: {text!r} is not one of {', '.join(Backend)}")
    return Backend(text)


def open_runtime(
    artifact: Artifact,
    precision: Precision | None = None,
    backend: Backend | str = Backend.AUTO,
    threads: int | None = None,
    graph: GraphChoice | str = GraphChoice.AUTO,
) -> Runtime:
    """Load an artifact's graph where it runs best, or where `backend` says.

    precision: None takes fp16 on a GPU where the artifact has it, else fp32; of engines the first of fp16, int8, fp32.
    threads: of a CPU session, at most one a core; None leaves it to the runtime (one a core).
    graph: auto never takes a lookup graph that was not measured to win, and on a GPU only an engine of one where there
    is no dense engine.
    Raises RuntimeUnavailableError, MissingDependencyError, ConfigError, or ArtifactError for a graph that is not there.
    """
    backend = parse_backend(str(backend))
    graph = parse_graph_choice(str(graph))
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads: {threads} is not a positive number")
    threads = None if threads is None else at_most_cores(threads, "--threads")
    from spade_deploy.engines import ort  # here, as they know this module
    from spade_deploy.engines.trt_open import has_engines, open_engine

    if backend == Backend.TENSORRT:
        return open_engine(artifact, precision, graph)
    if backend == Backend.ORT_TENSORRT:
        kind = GraphKind.LOOKUP if graph == GraphChoice.LOOKUP else GraphKind.DENSE
        return ort.OrtRuntime(artifact, precision or artifact.graph().precision, ort.TENSORRT, threads, kind)
    note = ""
    if backend == Backend.AUTO:
        try:
            if has_engines(artifact, precision):
                return open_engine(artifact, precision, graph)
        except SpadeError as error:  # a manifest that cannot be read, too: the graphs are as good as ever
            note = f" (its TensorRT engine does not run here: {error.message})"
    wants_cuda = backend == Backend.CUDA or (backend == Backend.AUTO and ort.provider_loads(ort.CUDA))
    runtime = _open_onnxruntime(artifact, precision, wants_cuda, threads, graph)
    runtime.name += note
    return runtime


def _open_onnxruntime(
    artifact: Artifact, precision: Precision | None, wants_cuda: bool, threads: int | None, graph: GraphChoice
) -> OrtRuntime | AutoRuntime:
    from spade_deploy.engines import ort
    from spade_deploy.engines.auto import AutoRuntime

    if precision is None:
        on_gpu = wants_cuda and Precision.FP16 in artifact.manifest.precisions
        precision = Precision.FP16 if on_gpu else artifact.graph().precision
    provider = ort.CUDA if wants_cuda else ort.CPU
    if graph == GraphChoice.LOOKUP:
        return ort.OrtRuntime(artifact, precision, provider, threads, GraphKind.LOOKUP)
    share = None if wants_cuda or graph == GraphChoice.DENSE else _break_even_share(artifact, precision)
    if not share:
        return ort.OrtRuntime(artifact, precision, provider, threads)
    lookup = ort.OrtRuntime(artifact, precision, provider, threads, GraphKind.LOOKUP)
    return AutoRuntime(lookup, lambda: ort.OrtRuntime(artifact, precision, provider, threads), share)


def _break_even_share(artifact: Artifact, precision: Precision) -> float | None:
    graphs = artifact.manifest.graphs
    found = [graph for graph in graphs if graph.kind is GraphKind.LOOKUP and graph.precision is precision]
    return found[0].break_even_share if found else None


def check_inputs(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise InputRefusedError, by tensor name, for what the graph must not be fed: names, types, shapes, ids."""
    problem = mismatch(input_tensors(spec), inputs)
    if problem:
        raise InputRefusedError(f"input {problem}")
    label = inputs[LABEL]
    for axis, size in zip(("height", "width"), label.shape[1:], strict=True):
        if not spec.takes_side(size):
            raise InputRefusedError(f"input {LABEL}: {axis} {size} is not a {spec.side_rule}")
    lowest, highest = int(label.min()), int(label.max())
    if lowest < 0 or highest >= spec.labels.num_ids:
        bad = lowest if lowest < 0 else highest
        raise InputRefusedError(f"input {LABEL}: id {bad} is out of range; allowed are 0..{spec.labels.num_ids - 1}")
