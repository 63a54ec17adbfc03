"""From an artifact to a running engine: which one fits this machine, its bytes checked, its memory on the card."""

from __future__ import annotations

from spade_deploy.artifact import Artifact, read_engine
from spade_deploy.engines.cuda_driver import require_gpu
from spade_deploy.engines.device import open_device
from spade_deploy.engines.engine_store import find_engine, stored_engines, this_machine
from spade_deploy.engines.runtime import GraphChoice
from spade_deploy.engines.trt_library import is_installed, load_library
from spade_deploy.engines.trt_runtime import TrtRuntime
from spade_deploy.errors import NotFoundError, SpadeError
from spade_deploy.spec import Flavour, GraphKind, Precision


def has_engines(artifact: Artifact, precision: Precision | None = None, kind: GraphKind | None = None) -> bool:
    """Whether an engine was built, fitting or not."""
    return any(
        precision in (None, stored.key.precision) and kind in (None, stored.key.kind)
        for stored in stored_engines(artifact)
    )


def open_engine(
    artifact: Artifact, precision: Precision | None, graph: GraphChoice = GraphChoice.AUTO, *, contexts: int = 1
) -> TrtRuntime:
    """Run an artifact's TensorRT engine.

    precision: None takes fp16, int8 or fp32, the first there is. graph: auto takes dense, and lookup where there is no
    dense engine that fits. contexts: how many callers may run at once.
    Raises NotFoundError where none was built, ArtifactError where none fits, with all that differs,
    MissingDependencyError and RuntimeUnavailableError where TensorRT or the card is not there.
    """
    if not has_engines(artifact):
        raise NotFoundError(f"{artifact.path} has no TensorRT engines", hint=f"spade build {artifact.path}")
    gpu = require_gpu()
    built = {stored.key.flavour for stored in stored_engines(artifact)}
    flavours = [flavour for flavour in Flavour if flavour in built and is_installed(flavour)]
    kinds = list(GraphKind) if graph is GraphChoice.AUTO else [GraphKind(graph.value)]
    first_error: SpadeError | None = None
    for flavour in flavours or [next(flavour for flavour in Flavour if flavour in built)]:
        library = load_library(flavour)
        for kind in kinds:
            try:
                stored = find_engine(artifact, precision, kind, this_machine(library, gpu))
            except SpadeError as error:
                first_error = first_error or error
                continue
            return TrtRuntime(
                library,
                read_engine(artifact, stored.entry),
                artifact.manifest.generator,
                stored.key.precision,
                kind,
                stored.key.profile,
                device=open_device(gpu.index),
                contexts=contexts,
                owns_device=True,
            )
    assert first_error is not None  # each turn of the loop returns or leaves one
    raise first_error
