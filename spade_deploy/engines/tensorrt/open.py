"""From an artifact to a running engine: find the one that fits this machine, check its bytes, and load it."""

from __future__ import annotations

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, Z, read_engine, with_features
from spade_deploy.engines.base import GraphChoice, RuntimeRequest
from spade_deploy.engines.cuda.driver import Gpu, require_gpu
from spade_deploy.engines.cuda.open import open_device
from spade_deploy.engines.tensorrt.engine import EngineModel
from spade_deploy.engines.tensorrt.key import differences, mismatch_error
from spade_deploy.engines.tensorrt.library import Library, is_installed, load_library
from spade_deploy.engines.tensorrt.runtime import TrtRuntime
from spade_deploy.engines.tensorrt.store import StoredEngine, find_engine, stored_engines, this_machine
from spade_deploy.errors import NotFoundError, SpadeError
from spade_deploy.labels.files import label_dtype, synthetic_label_maps
from spade_deploy.retrieval.bank_file import bank_of
from spade_deploy.spec import Flavour, GraphKind, Precision


def has_engines(artifact: Artifact, precision: Precision | None = None, kind: GraphKind | None = None) -> bool:
    """Whether an engine was built, even if it does not fit this machine. None stands for any precision or kind."""
    return any(
        precision in (None, stored.key.precision) and kind in (None, stored.key.kind)
        for stored in stored_engines(artifact)
    )


def can_run(wanted: RuntimeRequest) -> bool:
    """Whether an engine was built. `open_runtime` finds out if it fits, so that its error can say why it does not."""
    return has_engines(wanted.artifact, wanted.precision)


def open_runtime(wanted: RuntimeRequest) -> TrtRuntime:
    """Run an artifact's TensorRT engine.

    Without a precision it is the first of fp16, int8, fp32 that there is. Graph `auto` takes a dense engine, and one
    of the lookup graph where no dense engine fits.
    Raises NotFoundError where none was built, ArtifactError where none fits, with all that differs,
    MissingDependencyError and RuntimeUnavailableError where TensorRT or the card is not there.
    """
    artifact = wanted.artifact
    if not has_engines(artifact):
        raise NotFoundError(f"{artifact.path} has no TensorRT engines", hint=f"spade build {artifact.path}")
    gpu = require_gpu()
    built = {stored.key.flavour for stored in stored_engines(artifact)}
    flavours = [flavour for flavour in Flavour if flavour in built and is_installed(flavour, to_run=True)]
    kinds = list(GraphKind) if wanted.graph is GraphChoice.AUTO else [GraphKind(wanted.graph.value)]
    first_error: SpadeError | None = None
    for flavour in flavours or [next(flavour for flavour in Flavour if flavour in built)]:
        library = load_library(flavour, to_run=True)
        for kind in kinds:
            try:
                stored = find_engine(artifact, wanted.precision, kind, this_machine(library, gpu))
            except SpadeError as error:
                first_error = first_error or error
                continue
            return _open(artifact, stored, library, gpu)
    assert first_error is not None  # every round of the loop returns or sets it
    raise first_error


def time_layers(artifact: Artifact, name: str) -> dict[str, float]:
    """Milliseconds of each layer of the engine of that name, on the card that is here, for its profile's best shape.

    Raises as `open_runtime` does; ArtifactError where that engine is not for this machine.
    """
    (stored,) = (stored for stored in stored_engines(artifact) if stored.entry.name == name)
    gpu = require_gpu()
    library = load_library(stored.key.flavour, to_run=True)
    graph = artifact.graph(stored.key.precision, stored.key.kind)
    found = differences(stored.key, artifact.manifest.files[graph.file].sha256, this_machine(library, gpu))
    if found:
        options = {"precision": str(stored.key.precision), "graph": str(stored.key.kind)}
        raise mismatch_error(name, found, options, library.edition)
    spec = artifact.manifest.generator
    batch, height, width = stored.key.profile.best
    ids, objects = synthetic_label_maps(spec.labels, height, width, batch, seed=0)
    inputs: Arrays = {LABEL: ids.astype(label_dtype(spec.labels))}
    if spec.labels.has_edges:
        inputs[INSTANCE] = objects
    if spec.z_dim is not None:
        inputs[Z] = np.zeros((batch, spec.z_dim), np.float32)
    with _open(artifact, stored, library, gpu) as runtime:
        return runtime.layer_times(with_features(spec, inputs))


def _open(artifact: Artifact, stored: StoredEngine, library: Library, gpu: Gpu) -> TrtRuntime:
    key = stored.key
    return TrtRuntime(
        library,
        read_engine(artifact, stored.entry),
        EngineModel(artifact.manifest.generator, key.precision, key.kind, key.profile, key.options.version_compatible),
        device=open_device(gpu.index),
        owns_device=True,
        bank=bank_of(artifact),
    )
