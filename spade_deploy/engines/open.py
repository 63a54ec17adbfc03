"""Which engine runs an artifact. Nothing is chosen silently: what was asked for by name runs, or is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import Backend, GraphChoice, Runtime, parse_backend, parse_graph_choice
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.machine.cores import at_most_cores
from spade_deploy.spec import GraphKind, Precision

if TYPE_CHECKING:
    from spade_deploy.engines.lookup import AutoRuntime
    from spade_deploy.engines.ort.runtime import OrtRuntime


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
    threads = None if threads is None else at_most_cores(threads, "threads")
    from spade_deploy.engines.ort import runtime as ort
    from spade_deploy.engines.tensorrt.open import has_engines, open_engine

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
    from spade_deploy.engines.lookup import AutoRuntime
    from spade_deploy.engines.ort import runtime as ort

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
