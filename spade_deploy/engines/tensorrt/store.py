"""Find the engine of an artifact that may run here: by its key, never by the name of a file."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from spade_deploy.artifact import Artifact, EngineEntry, list_engines
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.tensorrt.key import EngineKey, Machine, differences, mismatch_error
from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.errors import NotFoundError
from spade_deploy.spec import GraphKind, Precision


@dataclass(frozen=True)
class StoredEngine:
    """An engine in an artifact, its key read."""

    entry: EngineEntry
    """What the engine's manifest says."""
    key: EngineKey
    """The graph, the TensorRT, the card and the options of its build."""


def this_system() -> str:
    """'linux-x86_64', 'linux-aarch64', 'windows-amd64'."""
    return f"{platform.system()}-{platform.machine()}".lower()


def this_machine(library: Library, gpu: Gpu) -> Machine:
    """This machine, in the words of an engine's key."""
    return Machine(
        library.flavour,
        library.version,
        gpu.name,
        capability_text(gpu.compute_capability),
        this_system(),
        library.edition,
    )


def capability_text(capability: tuple[int, int]) -> str:
    """'8.9' of (8, 9)."""
    return f"{capability[0]}.{capability[1]}"


def stored_engines(artifact: Artifact) -> list[StoredEngine]:
    """All engines of an artifact. Raises ArtifactError for one whose manifest cannot be read."""
    return [StoredEngine(entry, EngineKey.from_json(entry.key)) for entry in list_engines(artifact)]


def find_engine(artifact: Artifact, precision: Precision | None, kind: GraphKind, machine: Machine) -> StoredEngine:
    """The engine that may run here; the one of the widest profile where several may.

    precision: None takes fp16, int8 or fp32, the first there is. Raises NotFoundError where none was built,
    ArtifactError, with all that differs, where none of those that were fits.
    """
    wanted = [precision] if precision is not None else [Precision.FP16, Precision.INT8, Precision.FP32]
    there = [stored for stored in stored_engines(artifact) if stored.key.kind is kind]
    built = [stored for one in wanted for stored in there if stored.key.precision is one]
    if not built:
        again = f"spade build {artifact.path}"
        raise NotFoundError(
            f"{artifact.path} has no {precision or 'TensorRT'} engine of the {kind} graph",
            hint=f"spade build {artifact.path} --precision {precision}" if precision else again,
        )
    found = []
    for stored in built:
        onnx = artifact.graph(stored.key.precision, kind).file
        found.append((stored, differences(stored.key, artifact.manifest.files[onnx].sha256, machine)))
    fitting = [stored for stored, reasons in found if not reasons]
    if not fitting:
        stored, reasons = min(found, key=lambda pair: len(pair[1]))
        options = {"precision": str(stored.key.precision), "graph": str(kind), "profile": str(stored.key.profile)}
        raise mismatch_error(stored.entry.name, reasons, options, machine.edition)
    best = fitting[0].key.precision
    return max((stored for stored in fitting if stored.key.precision is best), key=_room)


def _room(stored: StoredEngine) -> int:
    batch, height, width = stored.key.profile.most
    return batch * height * width
