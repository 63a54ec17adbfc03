"""From an artifact to an OpenVINO runtime on the CPU."""

from __future__ import annotations

from spade_deploy.engines.base import Runtime, RuntimeRequest
from spade_deploy.engines.lookup import open_by_choice
from spade_deploy.engines.openvino.library import has_bf16, is_installed, require_bf16
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.spec import GraphKind, Precision


def can_run(wanted: RuntimeRequest) -> bool:
    """Whether the package is installed, and for bf16 whether this CPU has it."""
    return is_installed() and (wanted.precision is not Precision.BF16 or has_bf16())


def open_runtime(wanted: RuntimeRequest) -> Runtime:
    """Open a graph in OpenVINO. With graph `auto`, each map runs on the lookup graph if that was measured to win.

    Without a precision that of the manifest's first graph is taken. Raises MissingDependencyError,
    RuntimeUnavailableError for bf16 on a CPU that has none, ArtifactError for a graph that is not there.
    """
    precision = wanted.precision or wanted.artifact.graph().precision

    def open_graph(kind: GraphKind) -> OpenVinoRuntime:
        return OpenVinoRuntime(wanted.artifact, precision, wanted.threads, kind)

    if precision is Precision.BF16:
        require_bf16()
    return open_by_choice(wanted, precision, open_graph)
