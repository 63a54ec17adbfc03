"""Load an engine from its bytes, check that its tensors are those of our graphs, and make its execution contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spade_deploy.artifact import TensorInfo, graph_tensors, output_tensors
from spade_deploy.engines.cuda.device import DeviceMemory
from spade_deploy.engines.input_shapes import Shape, tensor_ranges
from spade_deploy.engines.tensorrt.library import NO_REASON, Library, make_messages, make_runtime
from spade_deploy.errors import ArtifactError, RuntimeUnavailableError, reason_of
from spade_deploy.lookup.tables import lookup_tensors
from spade_deploy.spec import Flavour, GeneratorSpec, GraphKind, Precision, ShapeProfile

_REBUILD = "`spade build` makes the engine again, with the TensorRT and for the GPU that are here"
_TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT"}


@dataclass(frozen=True)
class EngineModel:
    """The graph that an engine was built from, and the shapes that it was built for."""

    spec: GeneratorSpec
    """The model that it computes."""
    precision: Precision
    """The precision of its graph."""
    kind: GraphKind
    """The kind of its graph, which decides what its inputs are."""
    profile: ShapeProfile
    """The sizes of images that it takes."""
    version_compatible: bool = False
    """Whether it was built to run with later versions of TensorRT, and so brings code: see `make_runtime`."""


class Engine:
    """A deserialised engine of one profile.

    inputs: the least, best and most shape of every input, in the graph's order. input_types, outputs: types by name.
    scratch_bytes: device memory that each running context needs; None where TensorRT allocates it itself.
    captures_itself: TensorRT for RTX makes CUDA graphs of its own.
    Raises ArtifactError for bytes that this TensorRT does not load or that are another model's engine.
    """

    def __init__(self, library: Library, content: bytes, model: EngineModel, *, graphs: bool = True) -> None:
        spec = model.spec
        self.title = library.title
        self.inputs: dict[str, tuple[Shape, Shape, Shape]] = tensor_ranges(spec, model.kind, model.profile)
        fed = graph_tensors(spec) if model.kind is GraphKind.DENSE else lookup_tensors(spec)
        self.input_types = {tensor.name: np.dtype(tensor.dtype) for tensor in fed}
        self.outputs = {tensor.name: np.dtype(tensor.dtype) for tensor in output_tensors(spec)}
        self._trt: Any = library.module
        self._messages = make_messages(self._trt)
        # The runtime must outlive its engine, and its logger both.
        self._runtime: Any = make_runtime(library, self._messages, version_compatible=model.version_compatible)
        self._engine: Any = self._load(content)
        self._check_tensors(fed, output_tensors(spec))
        self._check_profile(model.profile)
        self.captures_itself = graphs and library.flavour is Flavour.RTX and hasattr(self._trt, "CudaGraphStrategy")
        manages = hasattr(self._trt, "ExecutionContextAllocationStrategy")
        # At least 256 bytes, since 0 bytes cannot be allocated.
        self.scratch_bytes = max(256, int(self._engine.device_memory_size_v2)) if manages else None

    def make_context(self, scratch: DeviceMemory | None) -> Any:
        """An execution context that works in `scratch`, which contexts on one stream may share."""
        try:
            context = self._make_context()
            if context is not None and scratch is not None:
                context.set_device_memory(scratch.address, scratch.size_bytes)
        except Exception as error:  # its exceptions share no base class
            raise self.failed("cannot make an execution context", error) from error
        if context is None:
            raise self.failed("cannot make an execution context")
        return context

    def bind(self, context: Any, shapes: dict[str, Shape], memory: dict[str, DeviceMemory]) -> dict[str, Shape]:
        """Give a context its inputs' shapes and every tensor's memory. Returns the outputs' shapes."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self.failed(f"refuses the shape {times(shape)} of {name}")
        for name, buffer in memory.items():
            if not context.set_tensor_address(name, buffer.address):
                raise self.failed(f"refuses the memory of {name}")
        found = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in self.outputs}
        for name, shape in found.items():
            if min(shape, default=0) < 0:
                raise self.failed(f"does not know the shape of {name}")
        return found

    def execute(self, context: Any, stream: int) -> None:
        """Put one run on the stream."""
        try:
            done = context.execute_async_v3(stream)
        except Exception as error:  # its exceptions share no base class
            raise self.failed("cannot run the engine", error) from error
        if not done:
            raise self.failed("cannot run the engine")

    def make_profiler(self, times_ms: dict[str, float]) -> Any:
        """A profiler that writes each layer's milliseconds of the last run into `times_ms`."""
        return _make_profiler(self._trt, times_ms)

    def close(self) -> None:
        """Free the engine. All of its contexts must have been freed before."""
        self._engine = None
        self._runtime = None

    def failed(self, what: str, error: Exception | None = None) -> RuntimeUnavailableError:
        """The error for a call that failed, with the message that TensorRT logged."""
        said = self._messages.take() or (reason_of(error) if error else NO_REASON)
        return RuntimeUnavailableError(
            f"{self.title} {what}: {said}",
            hint="if memory ran out, an engine with a smaller `profile` helps; otherwise `spade build` it again",
        )

    def _load(self, content: bytes) -> Any:
        error: Exception | None = None
        try:
            engine = self._runtime.deserialize_cuda_engine(content)
        except Exception as raised:  # its exceptions share no base class
            engine, error = None, raised
        if engine is None:
            said = self._messages.take() or (reason_of(error) if error else NO_REASON)
            raise ArtifactError(f"{self.title} cannot load the engine: {said}", hint=_REBUILD) from error
        return engine

    def _make_context(self) -> Any:
        strategy = None
        if self.scratch_bytes is not None:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.captures_itself:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if strategy is not None:
                config.set_execution_context_allocation_strategy(strategy)
            return self._engine.create_execution_context(config)
        return self._engine.create_execution_context(*([] if strategy is None else [strategy]))

    def _check_tensors(self, fed: tuple[TensorInfo, ...], answered: tuple[TensorInfo, ...]) -> None:
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for what, mode, tensors in (("inputs", modes.INPUT, fed), ("outputs", modes.OUTPUT, answered)):
            there = sorted(
                f"{name} {engine.get_tensor_dtype(name).name}" for name in names if engine.get_tensor_mode(name) == mode
            )
            expected = sorted(f"{tensor.name} {_TYPES[tensor.dtype]}" for tensor in tensors)
            if there != expected:
                raise ArtifactError(
                    f"the engine's {what} are {', '.join(there)}; the model's are {', '.join(expected)}", hint=_REBUILD
                )

    def _check_profile(self, profile: ShapeProfile) -> None:
        for name, expected in self.inputs.items():
            found = tuple(tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
            if found != expected:
                raise ArtifactError(
                    f"the engine takes {name} from {' to '.join(map(times, found[::2]))}, which is not the profile"
                    f" {profile} of its manifest",
                    hint=_REBUILD,
                )


def _make_profiler(trt: Any, times_ms: dict[str, float]) -> Any:
    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times_ms[layer_name] = ms

    return LayerTimes()


def times(shape: Shape) -> str:
    """A shape in words: '2 x 64 x 64'."""
    return " x ".join(map(str, shape))
