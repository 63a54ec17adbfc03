"""Build: an artifact's ONNX graphs -> TensorRT engines in the artifact, each proved to have the precision asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.artifact import (
    Artifact,
    Graph,
    engine_name,
    engine_path,
    timing_cache_path,
    whole_engines,
    write_engine,
    writing,
)
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.cuda.driver import Gpu, find_gpus
from spade_deploy.engines.input_shapes import default_profile, tensor_ranges
from spade_deploy.engines.tensorrt.builder import Built, build_engine
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey
from spade_deploy.engines.tensorrt.library import Library, load_library, make_runtime
from spade_deploy.engines.tensorrt.proof import EngineLayer, Proof, engine_layers, proof_text, prove
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.engines.tensorrt.store import capability_text, this_system
from spade_deploy.errors import BuildError, ConfigError, RuntimeUnavailableError
from spade_deploy.files.temporary import sweep
from spade_deploy.progress import NO_FIGURES, SILENT, Figures, Progress, Silent
from spade_deploy.spec import Flavour, GraphKind, Precision


@dataclass(frozen=True)
class BuiltEngine:
    """One engine in its place."""

    path: Path
    """The engine's file."""

    key: EngineKey
    """The graph, the TensorRT, the card and the options of its build."""

    proof: dict[str, Any]
    """What it was proved to be, as the artifact keeps it."""

    described: str
    """The proof in words."""

    bytes: int
    """The size of the file."""

    seconds: float
    """How long its build took."""

    was_there: bool
    """Whether an engine of exactly this key existed, which was not built again."""


def build(
    artifact: Artifact,
    request: BuildRequest,
    *,
    progress: Progress = SILENT,
    stop: threading.Event | None = None,
) -> tuple[BuiltEngine, ...]:
    """Build engines and write them into the artifact.

    `progress` is called from the builder's threads. `stop` ends the build early when it is set.
    Raises BuildError, BuildInterruptedError, ConfigError, ArtifactError, MissingDependencyError,
    RuntimeUnavailableError; engines that were finished before stay.
    """
    spec = artifact.manifest.generator
    library = load_library(request.flavour)
    gpu = _gpu_here()
    card, capability = _target(library, gpu, request.compute_capability)
    profile = request.profile or default_profile(spec)
    cache = request.timing_cache or timing_cache_path(artifact, library.flavour)
    with writing(artifact.path, "building engines"):
        sweep(timing_cache_path(artifact, library.flavour).parent)  # of a killed build
        built = []
        for graph in _graphs(artifact, request):
            key = EngineKey(
                onnx_sha256=artifact.manifest.files[graph.file].sha256,
                flavour=library.flavour,
                version=library.version,
                gpu=card,
                compute_capability=capability,
                system=this_system(),
                precision=graph.precision,
                kind=graph.kind,
                profile=profile,
                options=request.options,
            )
            there = _find_same(artifact, key)
            if there is not None:
                built.append(there)
                continue
            started = time.perf_counter()
            with artifact.vouched(graph.file) as onnx:
                made = build_engine(
                    library,
                    onnx,
                    tensor_ranges(spec, graph.kind, profile),
                    request.options,
                    compute_capability=request.compute_capability,
                    timing_cache=cache,
                    progress=_GraphProgress(progress, graph.name),
                    stop=stop,
                )
            is_for_this_card = gpu is not None and request.compute_capability in (
                None,
                capability_text(gpu.compute_capability),
            )
            layers = read_engine_layers(library, made.engine, request.options) if is_for_this_card else None
            proof = prove(graph.precision, made.layers, layers)
            built.append(_write(artifact, key, made, proof, time.perf_counter() - started))
    return tuple(built)


def build_until_interrupted(
    artifact: Artifact, request: BuildRequest, progress: Progress = SILENT
) -> tuple[BuiltEngine, ...]:
    """`build`, which Ctrl-C ends at the builder's next step: a signal does not reach into TensorRT by itself."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(build, artifact, request, progress=progress, stop=stop)
        while True:
            try:
                return running.result(timeout=0.1)
            except TimeoutError:
                if running.done():
                    raise
            except KeyboardInterrupt:
                stop.set()


class _GraphProgress(Silent):
    """Puts the graph's name before the name of each phase that the builder reports."""

    def __init__(self, progress: Progress, graph: str) -> None:
        self._progress = progress
        self._graph = graph

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        self._progress.count(f"{self._graph}: {what}", done, total)


def read_engine_layers(library: Library, engine: bytes, options: BuildOptions) -> list[EngineLayer]:
    """The layers of a serialized engine, by TensorRT's own inspector; needs the card that it was built for."""
    trt = library.module
    messages = trt.Logger(trt.Logger.ERROR)
    runtime = make_runtime(library, messages, version_compatible=options.version_compatible)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise BuildError(
            f"{library.title} built an engine, but cannot load it",
            hint="the GPU's memory may be full: `nvidia-smi` shows it",
        )
    information = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return engine_layers(information)


def _graphs(artifact: Artifact, request: BuildRequest) -> Sequence[Graph]:
    precision = request.precision
    if precision is None:
        has_half = Precision.FP16 in artifact.manifest.precisions
        precision = Precision.FP16 if has_half else artifact.graph().precision
    if request.graph is GraphChoice.AUTO:
        found = [graph for graph in artifact.manifest.graphs if graph.precision is precision]
        return found or [artifact.graph(precision)]
    return [artifact.graph(precision, GraphKind(request.graph.value))]


def _gpu_here() -> Gpu | None:
    try:
        found = find_gpus()
    except RuntimeUnavailableError:
        return None
    return found[0] if found else None


def _target(library: Library, gpu: Gpu | None, asked: str | None) -> tuple[str, str]:
    """The card's name and compute capability, for the key."""
    if asked is not None:
        if gpu is not None and capability_text(gpu.compute_capability) == asked:
            return gpu.name, asked
        return f"any of compute capability {asked}", asked
    if gpu is None:
        if library.flavour is Flavour.RTX:
            raise ConfigError(
                "`compute_capability`: there is no GPU here to build for",
                hint="spade build --target rtx --compute-capability 8.9 (RTX 40), 8.6 (RTX 30), 12.0 (RTX 50)",
            )
        raise RuntimeUnavailableError(
            f"{library.title} needs the GPU that it builds for, and there is none here",
            hint="`spade doctor` says what is seen; `spade build --target rtx --compute-capability 8.9` builds ahead of"
            " time",
        )
    return gpu.name, capability_text(gpu.compute_capability)


def _find_same(artifact: Artifact, key: EngineKey) -> BuiltEngine | None:
    """The engine of exactly this key, or None. A damaged engine counts as missing: it is built again and replaced."""
    for entry in whole_engines(artifact):
        if entry.key == key.to_json():
            path, said = engine_path(artifact, entry), proof_text(entry.proof)
            return BuiltEngine(path, key, entry.proof, said, entry.bytes, entry.seconds, was_there=True)
    return None


def _write(artifact: Artifact, key: EngineKey, made: Built, proof: Proof, seconds: float) -> BuiltEngine:
    name = engine_name(key.precision, key.kind, key.digest)
    path = write_engine(
        artifact, name, made.engine, key=key.to_json(), proof=proof.to_json(), seconds=round(seconds, 3)
    )
    return BuiltEngine(
        path, key, proof.to_json(), proof_text(proof.to_json()), len(made.engine), seconds, was_there=False
    )
