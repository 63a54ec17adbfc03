"""A typed ONNX graph -> a TensorRT engine: strongly typed network, one profile, timing cache, progress, interruption.

Precision is the graph's own. A strongly typed network keeps the types of the ONNX graph, and TensorRT 11 knows nothing
else; no flag here asks for one.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.artifact import read_timing_cache, write_timing_cache
from spade_deploy.engines.input_shapes import Shape
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.engines.tensorrt.library import NO_REASON, Library, make_messages
from spade_deploy.engines.tensorrt.proof import TypedLayer, typed_layers
from spade_deploy.errors import ArtifactError, BuildError, BuildInterruptedError, ConfigError
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import Flavour

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""The compute capabilities that TensorRT for RTX builds for; it refuses data-centre cards of 9.0 and 10.0."""


@dataclass(frozen=True)
class Built:
    """The result of a build."""

    engine: bytes
    """The serialized plan."""
    layers: tuple[TypedLayer, ...]
    """The typed network's convolutions and products."""


def build_engine(
    library: Library,
    onnx: Path,
    ranges: Mapping[str, tuple[Shape, Shape, Shape]],
    options: BuildOptions,
    *,
    compute_capability: str | None = None,
    timing_cache: Path | None = None,
    progress: Progress = SILENT,
    stop: threading.Event | None = None,
) -> Built:
    """Build one engine of an ONNX file.

    ranges: least, best and most shape of every input. compute_capability: as '8.9', of TensorRT for RTX alone, which
    builds ahead of time; None builds for the card that is here. timing_cache: the file that keeps what was timed, from
    build to build; it is written also when this one is interrupted or fails. stop: set by whoever wants the build to
    end early.
    Raises BuildError with TensorRT's own words, BuildInterruptedError, ConfigError, ArtifactError.
    """
    kept_timings = None if timing_cache is None else read_timing_cache(timing_cache)
    trt = library.module
    messages = make_messages(trt)
    builder = trt.Builder(messages)
    if builder is None:
        raise BuildError(f"{library.title} made no builder: {messages.take() or NO_REASON}")
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise ArtifactError(
            f"{onnx}: {library.title} cannot parse it: {reasons or messages.take() or NO_REASON}",
            hint="`spade export` makes it again; a graph of our own that does not parse is a defect to report",
        )
    layers = typed_layers(trt, network)
    config = builder.create_builder_config()
    _set_options(library, config, options, compute_capability)
    _add_profile(builder, network, config, ranges)
    cache = None if library.flavour is Flavour.RTX else _open_timing_cache(config, kept_timings)
    monitor = _make_monitor(trt, progress, stop)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if cache is not None and timing_cache is not None:
        write_timing_cache(timing_cache, bytes(cache.serialize()))
    if stop is not None and stop.is_set():
        raise BuildInterruptedError(
            "the build was interrupted; only the timing cache was written",
            hint="the same command is faster next time, since the timings so far are kept",
        )
    if plan is None:
        raise _build_error(library, messages.take() or NO_REASON)
    return Built(bytes(plan), tuple(layers))


def _network_flags(trt: Any) -> int:
    # TensorRT 10 makes weakly typed networks without this flag. TensorRT 11 still has the flag, and needs it no more.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def _set_options(library: Library, config: Any, options: BuildOptions, compute_capability: str | None) -> None:
    trt = library.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's names and types are the proof
    # TF32 is on by default. A float32 engine would then multiply with 10 bits of mantissa, unlike the validated graph.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if library.flavour is Flavour.RTX:
        for name, is_set in (
            ("version_compatible", options.version_compatible),
            ("hardware_compatible", options.hardware_compatible),
        ):
            if is_set:
                raise ConfigError(f"`{name}`: TensorRT for RTX has no such engines", hint="leave it out")
        _set_capability(trt, config, compute_capability)
        return
    if compute_capability is not None:
        raise ConfigError(
            f"`compute_capability`: {compute_capability} cannot be chosen for TensorRT, which builds for the card in"
            " this machine",
            hint="`spade build --target rtx` builds ahead of time; `hardware_compatible` runs on all cards from Ampere"
            " on",
        )
    if options.version_compatible:
        _load_lean_runtime()
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _load_lean_runtime() -> None:
    """Load the library that the builder copies into a version-compatible engine, where its wheel is installed.

    The builder asks for it by its name alone, and the system does not look into the folder of a wheel.
    """
    with suppress(ImportError, OSError):
        importlib.import_module("tensorrt_lean_libs")


def _set_capability(trt: Any, config: Any, capability: str | None) -> None:
    config.num_compute_capabilities = 1
    if capability is None:
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        return
    known = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
    if capability not in RTX_CAPABILITIES or known is None:
        raise ConfigError(
            f"`compute_capability`: {capability} is not supported by TensorRT for RTX, which builds for"
            f" {', '.join(RTX_CAPABILITIES)}",
            hint="for data-centre cards there is `spade build --target tensorrt`, on the card itself",
        )
    config.set_compute_capability(known, 0)


def _add_profile(builder: Any, network: Any, config: Any, ranges: Mapping[str, tuple[Shape, Shape, Shape]]) -> None:
    profile = builder.create_optimization_profile()
    there = [network.get_input(index).name for index in range(network.num_inputs)]
    if sorted(there) != sorted(ranges):
        raise ArtifactError(f"the graph's inputs are {', '.join(there)}; its spec says {', '.join(ranges)}")
    for name, shapes in ranges.items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"TensorRT takes no profile of {dict(ranges)}")


def _open_timing_cache(config: Any, content: bytes | None) -> Any:
    """The timing cache that the builder reads and adds to; None for TensorRT for RTX, which times nothing."""
    cache = config.create_timing_cache(content or b"")
    # ignore_mismatch=False: a cache of another card or version is refused, and an empty one takes its place.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def _build_error(library: Library, said: str) -> BuildError:
    lowered = said.lower()
    if "out of memory" in lowered or "outofmemory" in lowered or "insufficient memory" in lowered:
        return BuildError(
            f"{library.title} ran out of GPU memory while building: {said}",
            hint="a smaller `profile` or `workspace_bytes` 1GiB needs less; `nvidia-smi` shows which programs use"
            " memory",
        )
    if "could not find any implementation" in lowered:
        return BuildError(
            f"{library.title} found no way to run a layer: {said}",
            hint="`workspace_bytes` 8GiB lets it try more tactics",
        )
    if "nvinfer_lean" in lowered:
        return BuildError(
            f"{library.title} does not find its lean runtime, which it puts into a version-compatible engine: {said}",
            hint=f"pip install tensorrt-lean=={library.version}",
        )
    return BuildError(f"{library.title} built no engine: {said}")


def _parser_error(error: Any) -> str:
    where = f" (node {error.node_name()})" if hasattr(error, "node_name") and error.node_name() else ""
    return f"{error.desc()}{where}"


def _make_monitor(trt: Any, progress: Progress, stop: threading.Event | None) -> Any:
    """The monitor that the builder calls from threads of its own. The build ends when a step returns False."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
                progress.count(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                progress.count(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return stop is None or not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                total = self._steps.pop(phase_name, 0)
                progress.count(phase_name, total, total)

    return Monitor()
