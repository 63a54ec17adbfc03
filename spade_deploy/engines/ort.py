"""ONNX Runtime: the runtime that is there on every machine."""

from __future__ import annotations

import base64
import contextlib
import io
import time
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from spade_deploy.artifact import Arrays, Artifact, Graph, input_tensors, output_tensors
from spade_deploy.engines.runtime import check_inputs
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    MissingDependencyError,
    RuntimeUnavailableError,
    SpadeError,
)
from spade_deploy.patterns import check_tables, graph_inputs, lookup_tensors
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

PROBE_MODEL = base64.b64decode(
    "CAg6OwoQCgF4EgF5IghJZGVudGl0eRIFcHJvYmVaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
"""y = Identity(x), one float32: the smallest model, to see what loads. tests/engines/test_ort.py makes it."""

_QUIET = 4  # fatal errors alone: what goes wrong comes back as an exception


class OrtRuntime:
    """One graph of an artifact in an ONNX Runtime session.

    provider: the execution provider that must run it; the CPU takes what a GPU provider does not know.
    patterns_s: of a lookup graph, the seconds that the last run spent on finding patterns.
    Raises RuntimeUnavailableError where the provider does not load: there is no silent run on the CPU.
    """

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision | None = None,
        provider: str = CPU,
        threads: int | None = None,
        kind: GraphKind = GraphKind.DENSE,
    ) -> None:
        graph = artifact.graph(precision, kind)
        self.spec: GeneratorSpec = artifact.manifest.generator
        self.precision: Precision = graph.precision
        self.kind: GraphKind = kind
        self.patterns_s: float | None = None
        ort = _onnxruntime()
        if provider != CPU and not provider_loads(provider):
            raise _unavailable(provider, f"this installation has {', '.join(ort.get_available_providers())}")
        self._session = _open_session(ort, artifact, graph, provider, threads)
        loaded = self._session.get_providers()[0]
        if loaded != provider:
            raise _unavailable(provider, f"the session runs on {loaded} instead")
        self.name = f"ONNX Runtime {ort.__version__} {_short(loaded)}, {graph.name}"
        _check_contract(artifact, graph, self._session)

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """Outputs by name. Raises InputRefusedError before the session runs, RuntimeUnavailableError when it fails."""
        check_inputs(self.spec, inputs)
        start = time.perf_counter()
        fed = graph_inputs(self.spec, self.kind, inputs)
        if self.kind is GraphKind.LOOKUP:
            self.patterns_s = time.perf_counter() - start
        return self._run(fed, output_names)

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """Run a lookup graph on pattern tables that are already there, such as those of one map for several styles.

        tables: as `patterns.lookup_tensors` has them. is_checked: they come straight from `extract_patterns`.
        Raises InputRefusedError, by tensor name, for tables that do not belong to this graph.
        """
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError(f"{self.name}: pattern tables are for a lookup graph; this one takes label maps")
        if not is_checked:
            check_tables(self.spec, tables)
        return self._run(tables, output_names)

    def _run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        if self._session is None:
            raise RuntimeUnavailableError(f"{self.name}: it was closed")
        known = [tensor.name for tensor in output_tensors(self.spec)]
        names = known if output_names is None else list(output_names)
        for name in names:
            if name not in known:
                raise ConfigError(f"output {name!r} is not one of {', '.join(known)}")
        try:
            outputs = self._session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no base class
            shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in inputs.items())
            raise RuntimeUnavailableError(
                f"{self.name} failed on {shapes}: {_first_line(error)}",
                hint="where memory ran out, a smaller --batch-size or --size helps",
            ) from error
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def provider_loads(provider: str) -> bool:
    """Whether an execution provider really loads here: being listed says only that the package was built with it."""
    ort = _onnxruntime()
    if provider == CUDA:
        _preload_cuda(ort)
    if provider not in ort.get_available_providers():
        return False
    try:
        with _Silence(ort):
            session = ort.InferenceSession(PROBE_MODEL, _options(ort, 1), providers=[provider], enable_fallback=0)
            return bool(session.get_providers()[0] == provider)
    except Exception:  # whatever it says: it does not load
        return False


def _preload_cuda(ort: ModuleType) -> None:
    """CUDA libraries that pip installed are found only when they are loaded first (since 1.21; prints, warns)."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ort.preload_dlls(directory="")


def _onnxruntime() -> ModuleType:
    try:
        with warnings.catch_warnings():  # a GPU build without CUDA warns; whether CUDA loads is asked where it matters
            warnings.simplefilter("ignore")
            import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime cannot be imported: {error}", hint="pip install 'spade-deploy[cpu]' (or [gpu] for CUDA)"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _open_session(ort: ModuleType, artifact: Artifact, graph: Graph, provider: str, threads: int | None) -> Any:
    path = artifact.path_of(graph.file)
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        with _Silence(ort):
            # enable_fallback=0: otherwise a provider that fails is replaced by the CPU, with a banner on stdout.
            return ort.InferenceSession(str(path), _options(ort, threads), providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if provider != CPU:
            raise _unavailable(provider, _first_line(error)) from error
        raise ArtifactError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it: {_first_line(error)}",
            hint=f"the graph is of opset {graph.opset}: pip install --upgrade onnxruntime, or `spade export` again",
        ) from error


def _options(ort: ModuleType, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    # Threads of a session spin for a while after a run; beside a second session (dense and lookup, or label files
    # being decoded) they would take the cores from whoever works next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class _Silence:
    """ONNX Runtime's default logger, which reports providers that do not load, is quiet inside the block."""

    _WARNING = 2  # the library's own default

    def __init__(self, ort: ModuleType) -> None:
        self._ort = ort

    def __enter__(self) -> None:
        self._ort.set_default_logger_severity(_QUIET)

    def __exit__(self, *_: object) -> None:
        self._ort.set_default_logger_severity(self._WARNING)


def _check_contract(artifact: Artifact, graph: Graph, session: Any) -> None:
    spec = artifact.manifest.generator
    fed = input_tensors(spec) if graph.kind is GraphKind.DENSE else lookup_tensors(spec)
    for what, tensors, found in (
        ("inputs", fed, session.get_inputs()),
        ("outputs", output_tensors(spec), session.get_outputs()),
    ):
        expected = sorted((tensor.name, f"tensor({tensor.dtype.replace('float32', 'float')})") for tensor in tensors)
        there = sorted((tensor.name, tensor.type) for tensor in found)
        if there != expected:
            raise ArtifactError(f"{artifact.path / graph.file}: its {what} are {there}, the manifest says {expected}")


def _unavailable(provider: str, reason: str) -> SpadeError:
    return RuntimeUnavailableError(
        f"ONNX Runtime's {provider} does not load here: {reason}",
        hint="`spade doctor` says what is missing; --backend cpu runs without it",
    )


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
