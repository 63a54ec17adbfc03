"""The runtime of ONNX Runtime, which every machine can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from spade_deploy.artifact import Arrays, Artifact, Graph, output_tensors
from spade_deploy.engines.base import GraphRuntime, check_contract, output_names_of
from spade_deploy.engines.cuda.driver import require_gpu
from spade_deploy.engines.ort import session as sessions
from spade_deploy.engines.ort.binding import DeviceBinding
from spade_deploy.engines.ort.messages import explain, unavailable, why_it_does_not_load
from spade_deploy.engines.ort.providers import (
    GpuOptions,
    cache_folder,
    check_profile,
    provider_options,
)
from spade_deploy.engines.ort.session import CPU, CUDA, TENSORRT, SessionSetup
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    RuntimeUnavailableError,
    SpadeError,
    reason_of,
)
from spade_deploy.files.user_cache import make_private
from spade_deploy.lookup.tables import extent_of
from spade_deploy.retrieval.bank_file import bank_of
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision


class OrtRuntime(GraphRuntime):
    """One graph of an artifact in an ONNX Runtime session.

    provider: the execution provider that must run it. CUDA runs the operators that the TensorRT provider does not have,
    and the CPU those that a GPU provider does not have. threads: the number of CPU threads. gpu: the options for a GPU.
    Raises RuntimeUnavailableError if the provider does not load; it never falls back to the CPU in silence.
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
        self.bank = bank_of(artifact)
        ort = sessions.load_onnxruntime()
        if provider != CPU and not sessions.provider_loads(provider):
            raise why_it_does_not_load(ort, provider)
        self._session = _open_session(ort, artifact, graph, provider, threads, options)
        loaded = self._session.get_providers()[0]
        if loaded != provider:
            raise unavailable(provider, f"the session runs on {loaded} instead")
        self.provider: str = loaded
        self._profile = options.profile
        self._binding: DeviceBinding | None = None
        if provider in (CUDA, TENSORRT):
            self._binding = DeviceBinding(ort, self._session, index=options.device, cuda_graph=options.cuda_graph)
        self.name = f"ONNX Runtime {ort.__version__} {_short(loaded)}, {graph.name}"
        found = (sessions.types_of(self._session.get_inputs()), sessions.types_of(self._session.get_outputs()))
        check_contract(artifact, graph, *found)

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, for callers that bind memory of their own. None once it is closed."""
        return self._session

    def _run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        if self._session is None:
            raise RuntimeUnavailableError(f"{self.name}: it was closed")
        names = output_names_of(self.spec, output_names)
        if self._profile is not None:
            check_profile(self.spec, self.kind, self._profile, inputs)
        try:
            if self._binding is not None:
                return self._binding.run(inputs, self._output_shapes(inputs, names))
            outputs = self._session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no base class
            meaning = explain(str(error)) if self._binding is not None else None
            if meaning is None:
                raise self._failed(inputs, reason_of(error)) from error
            raise self._failed(inputs, meaning.sentence, meaning.hint) from error
        return dict(zip(names, outputs, strict=True))

    def _output_shapes(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        sizes = dict(zip("NHW", extent_of(self.spec, self.kind, inputs), strict=True))
        tensors = {tensor.name: tensor for tensor in output_tensors(self.spec)}
        # The tensors of a model with a style vector have numbers for height and width, all others have letters.
        return {
            name: (
                tuple(part if isinstance(part, int) else sizes[part] for part in tensors[name].shape),
                tensors[name].dtype,
            )
            for name in names
        }

    def close(self) -> None:
        self._binding = None
        self._session = None


def _open_session(
    ort: ModuleType, artifact: Artifact, graph: Graph, provider: str, threads: int | None, gpu: GpuOptions
) -> Any:
    names = {CPU: [CPU], TENSORRT: [TENSORRT, CUDA, CPU]}.get(provider, [provider, CPU])
    card = None
    if provider == TENSORRT:
        card = require_gpu(gpu.device)
        make_private(cache_folder(artifact, gpu), "`cache_folder`")
    # Operators that TensorRT leaves to CUDA get CUDA's usual options.
    providers = {name: provider_options(name, artifact, graph, card, gpu, ort.__version__) for name in names}
    with artifact.vouched(graph.file) as path:

        def failed(error: Exception) -> SpadeError:
            if provider != CPU:
                return unavailable(provider, str(error) if explain(str(error)) else reason_of(error))
            return ArtifactError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it: {reason_of(error)}",
                hint=f"the graph is of opset {graph.opset}: pip install --upgrade onnxruntime, or `spade export` again",
            )

        # Each map brings other numbers of patterns, and so a block of memory of its own that no other map can use.
        setup = SessionSetup(threads, plans_memory=provider != CPU)
        return sessions.open_session(path, setup, providers, failed=failed)


def _short(provider: str) -> str:
    return "TensorRT" if provider == TENSORRT else provider.removesuffix("ExecutionProvider")
