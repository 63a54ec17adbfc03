"""From an artifact to an ONNX Runtime session: on the CPU, on CUDA, or through its own TensorRT provider."""

from __future__ import annotations

from spade_deploy.engines.base import Backend, GraphChoice, Runtime, RuntimeRequest
from spade_deploy.engines.lookup import open_by_choice
from spade_deploy.engines.ort import session as sessions
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU, CUDA, TENSORRT
from spade_deploy.spec import GraphKind, Precision

PROVIDERS: dict[str, str] = {Backend.CPU: CPU, Backend.CUDA: CUDA, Backend.ORT_TENSORRT: TENSORRT}


def can_run(wanted: RuntimeRequest) -> bool:
    """Whether the execution provider really loads here; the CPU's always does."""
    provider = PROVIDERS[wanted.backend]
    return provider == CPU or sessions.provider_loads(provider)


def open_runtime(wanted: RuntimeRequest) -> Runtime:
    """Open a session. With graph `auto` on the CPU, each map runs on the lookup graph if that was measured to win.

    Without a precision, CUDA takes fp16 if the artifact has it; otherwise the precision of the first graph is taken.
    Raises RuntimeUnavailableError, MissingDependencyError, or ArtifactError for a graph that is not there.
    """
    artifact, provider = wanted.artifact, PROVIDERS[wanted.backend]
    precision = wanted.precision
    if precision is None:
        takes_half = provider == CUDA and Precision.FP16 in artifact.manifest.precisions
        precision = Precision.FP16 if takes_half else artifact.graph().precision

    def open_graph(kind: GraphKind) -> OrtRuntime:
        return OrtRuntime(artifact, precision, provider, wanted.threads, kind)

    if provider == CPU:
        return open_by_choice(wanted, precision, open_graph)
    return open_graph(GraphKind.LOOKUP if wanted.graph is GraphChoice.LOOKUP else GraphKind.DENSE)
