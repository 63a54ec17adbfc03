"""Import ONNX Runtime, find out if one of its providers loads, and open its sessions: the one place that does so.

The runtime, the proofs of the export, the validation, the metrics and the benchmarks all open their sessions here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from spade_deploy.engines.ort.messages import PROBE_MODEL
from spade_deploy.errors import ArtifactError, MissingDependencyError, SpadeError, reason_of
from spade_deploy.machine.signals import interrupts_wait

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

INSTALL = "pip install 'spade-deploy[cpu]'"
_QUIET = 4  # only fatal errors are logged: what goes wrong comes back as an exception
_NUMPY_TYPES = MappingProxyType({"tensor(float)": "float32", "tensor(double)": "float64"})
_ON_THE_CPU: Mapping[str, Mapping[str, str]] = MappingProxyType({CPU: MappingProxyType({})})


class Optimization(StrEnum):
    """How far ONNX Runtime may rewrite a graph: as far as it can, without joining nodes into one, or not at all."""

    ALL = "ORT_ENABLE_ALL"
    BASIC = "ORT_ENABLE_BASIC"
    NONE = "ORT_DISABLE_ALL"


@dataclass(frozen=True)
class SessionSetup:
    """How a session runs."""

    threads: int | None = None
    """The number of CPU threads. None leaves it to ONNX Runtime, which takes one a core."""
    optimization: Optimization = Optimization.ALL
    """How far the graph may be rewritten."""
    weights_folder: Path | None = None
    """The folder with the weight files of a model that is given as bytes."""
    stops_spinning: bool = True
    """Whether the threads rest after a run. By default ONNX Runtime lets them spin for a while, and they would take
    the cores from other work, such as a second session or the decoding of label files."""

    never_spins: bool = False
    """Whether a thread that waits for another one sleeps at once, also during a run. Nothing that is timed does so: for
    small operators it is slower. Where others use the cores, it takes less processor time."""

    plans_memory: bool = True
    """Whether ONNX Runtime plans one block of memory for each set of input shapes that comes, as it does by default. It
    keeps the block beside the memory of the first run. Without it the first run's memory serves all later ones."""

    def options(self, ort: ModuleType) -> Any:
        """ONNX Runtime's own `SessionOptions`."""
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        if self.optimization is not Optimization.ALL:  # it is the library's default
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self.optimization)
        if not self.plans_memory:
            options.enable_mem_pattern = False
        if self.stops_spinning:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.never_spins:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.weights_folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self.weights_folder)
            )
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        return options


def load_onnxruntime(what: str = "ONNX Runtime", *, hint: str = f"{INSTALL} (or [gpu] for CUDA)") -> ModuleType:
    """Import ONNX Runtime.

    what: the subject of the sentence "... cannot be imported". Raises MissingDependencyError.
    """
    try:
        # A GPU build without CUDA warns; whether CUDA loads is asked where it matters.
        with interrupts_wait(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"{what} cannot be imported: {error}", hint=hint) from error
    module: ModuleType = onnxruntime
    return module


def open_session(
    model: Path | bytes,
    setup: SessionSetup | None = None,
    providers: Mapping[str, Mapping[str, str]] = _ON_THE_CPU,
    *,
    failed: Callable[[Exception], SpadeError] | None = None,
) -> Any:
    """Open a session of a file, or of a model's bytes; nothing is written to the terminal.

    providers: each execution provider with its options, the preferred one first; the CPU alone by default. The caller
    asks the session which provider it got. failed: makes the error to raise from what ONNX Runtime raised; without it
    that is an ArtifactError. Raises MissingDependencyError.
    """
    ort = load_onnxruntime()
    options = (setup or SessionSetup()).options(ort)
    try:
        with _QuietDefaultLogger(ort):
            return ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=list(providers),
                provider_options=[dict(told) for told in providers.values()],
                # Without it, a provider that fails is replaced by the CPU, with a banner on stdout.
                enable_fallback=0,
            )
    except Exception as error:  # onnxruntime's exceptions share no base class
        if failed is not None:
            raise failed(error) from error
        what = "the model" if isinstance(model, bytes) else str(model)
        raise ArtifactError(
            f"{what}: ONNX Runtime {ort.__version__} cannot load it: {reason_of(error)}",
            hint="pip install --upgrade onnxruntime",
        ) from error


def types_of(tensors: Iterable[Any]) -> list[tuple[str, str]]:
    """Name and type, as NumPy calls it, of a session's inputs or outputs; a type of ONNX alone keeps its name."""
    return [(one.name, _NUMPY_TYPES.get(one.type, one.type.removeprefix("tensor(").rstrip(")"))) for one in tensors]


def provider_loads(provider: str) -> bool:
    """Whether an execution provider really loads here. That it is listed says only what the package was built with."""
    ort = load_onnxruntime()
    if provider not in ort.get_available_providers():
        return False
    _preload(ort, provider)
    try:
        session = open_session(PROBE_MODEL, SessionSetup(threads=1), {provider: {}})
        return bool(session.get_providers()[0] == provider)
    except Exception:  # whatever the reason is, the provider does not load
        return False


def _preload(ort: ModuleType, provider: str) -> None:
    """Open the libraries of CUDA and TensorRT that pip installed: ONNX Runtime finds them only then (since 1.21).

    It prints and warns about each library that it does not find.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if provider in (CUDA, TENSORRT) and hasattr(ort, "preload_dlls"):
            with contextlib.suppress(Exception):
                ort.preload_dlls(directory="")
        if provider == TENSORRT:
            with contextlib.suppress(Exception):
                importlib.import_module("tensorrt_libs")  # its import opens the libraries and does nothing else


class _QuietDefaultLogger:
    """Keeps ONNX Runtime's default logger, which reports providers that do not load, quiet inside the block."""

    _WARNING = 2  # the library's own default

    def __init__(self, ort: ModuleType) -> None:
        self._ort = ort

    def __enter__(self) -> None:
        self._ort.set_default_logger_severity(_QUIET)

    def __exit__(self, *_: object) -> None:
        self._ort.set_default_logger_severity(self._WARNING)
