"""ONNX Runtime: the runtime that is there on every machine."""

from __future__ import annotations

import contextlib
import importlib
import io
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, Artifact, Graph, input_tensors, output_tensors
from spade_deploy.engines.base import check_inputs
from spade_deploy.engines.cuda.driver import find_gpus, require_gpu
from spade_deploy.engines.ort.binding import DeviceBinding
from spade_deploy.engines.ort.messages import PROBE_MODEL, explain, loading_error
from spade_deploy.engines.ort.providers import (
    CPU,
    CUDA,
    TENSORRT,
    GpuOptions,
    cache_folder,
    check_profile,
    make_cache_folder,
    provider_options,
)
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    MissingDependencyError,
    RuntimeUnavailableError,
    SpadeError,
    line_of,
    reason_of,
)
from spade_deploy.lookup.tables import check_tables, graph_inputs, level_names, lookup_tensors, modulated_channels
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

__all__ = ["CPU", "CUDA", "PROBE_MODEL", "TENSORRT", "GpuOptions", "OrtRuntime", "provider_loads"]

_QUIET = 4  # fatal errors alone: what goes wrong comes back as an exception


class OrtRuntime:
    """One graph of an artifact in an ONNX Runtime session.

    provider: the execution provider that must run it, and that did load; CUDA takes what TensorRT does not know, and
    the CPU what a GPU provider does not know. gpu: how it runs there. threads: of the CPU.
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
        gpu: GpuOptions | None = None,
    ) -> None:
        if provider == CPU and gpu is not None:
            raise ConfigError("options of a GPU were given for a session on the CPU")
        options = gpu or GpuOptions()
        options.check(provider, kind)
        graph = artifact.graph(precision, kind)
        self.spec: GeneratorSpec = artifact.manifest.generator
        self.precision: Precision = graph.precision
        self.kind: GraphKind = kind
        self.patterns_s: float | None = None
        ort = _onnxruntime()
        if provider != CPU and not provider_loads(provider):
            raise _why_it_does_not_load(ort, provider)
        self._session = _open_session(ort, artifact, graph, provider, threads, options)
        loaded = self._session.get_providers()[0]
        if loaded != provider:
            raise _unavailable(provider, f"the session runs on {loaded} instead")
        self.provider: str = loaded
        self._profile = options.profile
        self._binding: DeviceBinding | None = None
        if provider in (CUDA, TENSORRT):
            self._binding = DeviceBinding(ort, self._session, index=options.device, cuda_graph=options.cuda_graph)
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

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """See `Runtime.run_many`; one after another: ONNX Runtime waits for each."""
        for batch in batches:
            yield self.run(batch, output_names)

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
        if self._profile is not None:
            check_profile(self.spec, self.kind, self._profile, inputs)
        try:
            if self._binding is not None:
                return self._binding.run(inputs, self._output_shapes(inputs, names))
            outputs = self._session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise self._failed(inputs, error) from error
        return dict(zip(names, outputs, strict=True))

    def _output_shapes(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        finest = LABEL if self.kind is GraphKind.DENSE else level_names(min(modulated_channels(self.spec)))[2]
        sizes = dict(zip("NHW", inputs[finest].shape, strict=True))
        tensors = {tensor.name: tensor for tensor in output_tensors(self.spec)}
        # A model with a style vector has its height and width as numbers.
        return {
            name: (
                tuple(part if isinstance(part, int) else sizes[part] for part in tensors[name].shape),
                tensors[name].dtype,
            )
            for name in names
        }

    def _failed(self, inputs: Mapping[str, NDArray[Any]], error: Exception) -> RuntimeUnavailableError:
        shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in inputs.items())
        meaning = explain(str(error)) if self._binding is not None else None
        return RuntimeUnavailableError(
            f"{self.name} failed on {shapes}: {meaning.sentence if meaning else reason_of(error)}",
            hint=meaning.hint if meaning else "where memory ran out, a smaller --batch-size or --size helps",
        )

    def close(self) -> None:
        self._binding = None
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
    if provider not in ort.get_available_providers():
        return False
    _preload(ort, provider)
    try:
        with _Silence(ort):
            session = ort.InferenceSession(PROBE_MODEL, _options(ort, 1), providers=[provider], enable_fallback=0)
            return bool(session.get_providers()[0] == provider)
    except Exception:  # whatever it says: it does not load
        return False


def _preload(ort: ModuleType, provider: str) -> None:
    """CUDA and TensorRT that pip installed are found only when they are loaded first (since 1.21; prints, warns)."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if provider in (CUDA, TENSORRT) and hasattr(ort, "preload_dlls"):
            with contextlib.suppress(Exception):
                ort.preload_dlls(directory="")
        if provider == TENSORRT:
            with contextlib.suppress(Exception):
                importlib.import_module("tensorrt_libs")  # the libraries alone: its import opens them


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


def _open_session(
    ort: ModuleType, artifact: Artifact, graph: Graph, provider: str, threads: int | None, gpu: GpuOptions
) -> Any:
    providers = {CPU: [CPU], TENSORRT: [TENSORRT, CUDA, CPU]}.get(provider, [provider, CPU])
    card = None
    if provider == TENSORRT:
        card = require_gpu(gpu.device)
        make_cache_folder(cache_folder(artifact, gpu))
    # What TensorRT leaves to CUDA runs as it would there.
    told = [provider_options(name, artifact, graph, card, gpu, ort.__version__) for name in providers]
    with artifact.vouched(graph.file) as path:
        try:
            with _Silence(ort):
                # enable_fallback=0: otherwise a provider that fails is replaced by the CPU, with a banner on stdout.
                return ort.InferenceSession(
                    str(path), _options(ort, threads), providers=providers, provider_options=told, enable_fallback=0
                )
        except Exception as error:  # onnxruntime's exceptions share no base class
            if provider != CPU:
                raise _unavailable(provider, str(error) if explain(str(error)) else reason_of(error)) from error
            raise ArtifactError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it: {reason_of(error)}",
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


def _why_it_does_not_load(ort: ModuleType, provider: str) -> SpadeError:
    available = ort.get_available_providers()
    if provider not in available:
        return _unavailable(provider, f"this installation has {', '.join(available)}")
    try:
        if not find_gpus():
            return _unavailable(provider, "the NVIDIA driver is here, but sees no GPU")
    except RuntimeUnavailableError as error:  # no driver: ONNX Runtime's own reason would be a consequence of it
        return RuntimeUnavailableError(f"{_does_not_load(provider)}: {error.message}", hint=error.hint)
    return _unavailable(provider, loading_error(provider))


def _unavailable(provider: str, said: str) -> SpadeError:
    """said: a reason in words, or all that ONNX Runtime had to say."""
    meaning = explain(said)
    if meaning is not None:
        return RuntimeUnavailableError(f"{_does_not_load(provider)}: {meaning.sentence}", hint=meaning.hint)
    return RuntimeUnavailableError(
        f"{_does_not_load(provider)}: {line_of(said, last=True) or 'it gave no reason'}",
        hint="`spade doctor` says what is missing; --backend cpu runs without it",
    )


def _does_not_load(provider: str) -> str:
    return f"ONNX Runtime's {provider} does not load here"


def _short(provider: str) -> str:
    return "TensorRT" if provider == TENSORRT else provider.removesuffix("ExecutionProvider")
