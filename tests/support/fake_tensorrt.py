"""TensorRT's bindings as the runtime uses them, played over a recording device: an engine is a NumPy function.

Everything public in the classes here exists in the real bindings under the same names (test_trt_runtime checks it).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from spade_deploy.artifact import LABEL, Arrays, input_tensors, output_tensors
from spade_deploy.engines.input_shapes import tensor_ranges
from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.lookup.tables import level_names, lookup_tensors
from spade_deploy.spec import Flavour, GeneratorSpec, GraphKind, ShapeProfile
from tests.support.recording_device import RecordingDevice, Work
from tests.support.stand_in import expected

GOOD_ENGINE = b"an engine"
COMPATIBLE_ENGINE = b"an engine that brings a runtime of its own"
"""A version-compatible engine: refused, in TensorRT's own words, unless its code is allowed."""
NO_HOST_CODE = "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false."
SCRATCH_BYTES = 4096
_CODES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT"}


def answer(spec: GeneratorSpec, kind: GraphKind, inputs: Mapping[str, Any]) -> Arrays:
    """What the stand-in model answers; of a lookup graph, the labels are read back from the finest tables."""
    if kind is GraphKind.DENSE:
        return expected(spec, inputs)
    codes, patterns, index = (inputs[name] for name in level_names(1))
    middle = spec.kernel_size**2 // 2
    return expected(spec, {**inputs, LABEL: codes[patterns[index][..., middle]][..., middle]})


class DataType(enum.Enum):
    UINT8, INT32, FLOAT = range(3)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, USER_MANAGED = range(2)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class IProfiler:
    def __init__(self) -> None: ...

    def report_layer_time(self, layer_name: str, ms: float) -> None: ...


class ILogger:
    ERROR = 1

    def __init__(self) -> None: ...

    def log(self, severity: int, message: str) -> None: ...


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._graphs = CudaGraphStrategy.DISABLED

    @property
    def cuda_graph_strategy(self) -> CudaGraphStrategy:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: CudaGraphStrategy) -> None:
        self._graphs = CudaGraphStrategy(value)

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class FakeTensorRT(ModuleType):
    """The module. Settings are of the test: what its one engine is, and what fails."""

    def __init__(self, device: RecordingDevice, spec: GeneratorSpec, kind: GraphKind, profile: ShapeProfile) -> None:
        super().__init__("fake_tensorrt")
        self.device, self.spec, self.kind = device, spec, kind
        self.ranges = tensor_ranges(spec, kind, profile)
        self.tensors = [
            *((t, TensorIOMode.INPUT) for t in (input_tensors if kind is GraphKind.DENSE else lookup_tensors)(spec)),
            *((t, TensorIOMode.OUTPUT) for t in output_tensors(spec)),
        ]
        self.contexts: list[IExecutionContext] = []
        self.refuses_shape: Callable[[str], bool] = lambda name: False
        self.fails_when_capturing = False
        self.fails_to_run = False
        self.most_contexts = 100
        self.runtimes: list[Any] = []
        fake = self

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self._logger = logger
                self._is_code_allowed = False
                fake.runtimes.append(self)

            @property
            def engine_host_code_allowed(self) -> bool:
                return self._is_code_allowed

            @engine_host_code_allowed.setter
            def engine_host_code_allowed(self, value: bool) -> None:
                self._is_code_allowed = value

            def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
                if content == COMPATIBLE_ENGINE and not self._is_code_allowed:
                    self._logger.log(1, NO_HOST_CODE)
                    return None
                if content not in (GOOD_ENGINE, COMPATIBLE_ENGINE):
                    self._logger.log(2, "a warning that is not the reason")
                    self._logger.log(1, "magic tag does not match")
                    return None
                return ICudaEngine(fake, self._logger)

        self.Runtime = Runtime
        self.IProfiler = IProfiler
        self.ILogger, self.DataType, self.TensorIOMode = ILogger, DataType, TensorIOMode
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.CudaGraphStrategy = CudaGraphStrategy

    def library(self, flavour: Flavour = Flavour.TENSORRT) -> Library:
        return Library(self, flavour, "9.9.9")


class ICudaEngine:
    def __init__(self, fake: FakeTensorRT, logger: ILogger) -> None:
        self._fake, self._logger = fake, logger

    @property
    def num_io_tensors(self) -> int:
        return len(self._fake.tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_BYTES

    def get_tensor_name(self, index: int) -> str:
        return self._fake.tensors[index][0].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(mode for tensor, mode in self._fake.tensors if tensor.name == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_CODES[next(tensor.dtype for tensor, _ in self._fake.tensors if tensor.name == name)]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        assert profile_index == 0
        return [list(shape) for shape in self._fake.ranges[name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, how: ExecutionContextAllocationStrategy | IRuntimeConfig = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if len(self._fake.contexts) >= self._fake.most_contexts:
            self._logger.log(1, "no memory for another context")
            return None
        strategy = how._strategy if isinstance(how, IRuntimeConfig) else how
        context = IExecutionContext(self._fake, self._logger, strategy, how)
        self._fake.contexts.append(context)
        return context


class IExecutionContext:
    def __init__(self, fake: FakeTensorRT, logger: ILogger, strategy: Any, how: Any) -> None:
        self._fake, self._logger, self._strategy, self._how = fake, logger, strategy, how
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: int | None = None
        self._is_captured = False
        self.profiler: IProfiler | None = None

    def _insist(self, holds: bool, complaint: str) -> None:
        if not holds:
            self._fake.device.complain(complaint)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._insist(memory % 256 == 0 and size >= SCRATCH_BYTES, "scratch memory that is too small or unaligned")
        managed = self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._insist(managed, "scratch memory for a context that has its own")
        self._scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._insist(not self._is_captured, "the context of a captured graph is modified")
        least, _, most = self._fake.ranges[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if not fits or self._fake.refuses_shape(name):
            self._logger.log(1, f"{name} is out of its profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._insist(not self._is_captured, "the context of a captured graph is modified")
        self._insist(memory % 256 == 0, f"{name} is not aligned")
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        index = LABEL if self._fake.kind is GraphKind.DENSE else level_names(1)[2]
        batch, height, width = self._shapes[index]
        return {"pixels": (batch, height, width, 3), "image": (batch, 3, height, width)}[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        fake = self._fake
        if self.profiler is not None:
            for number, name in enumerate(("node_conv_1 + node_leaky_relu", "node_conv_2"), start=1):
                self.profiler.report_layer_time(name, 0.5 * number)
        if fake.fails_to_run:
            self._logger.log(1, "out of device memory")
            return False
        if stream_handle in fake.device._capturing:
            if fake.fails_when_capturing:
                self._logger.log(1, "operation not permitted when stream is capturing")
                return False
            self._is_captured = True
        managed = self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._insist((self._scratch is not None) == managed, "no scratch memory")
        self._insist(self._addresses.keys() == {tensor.name for tensor, _ in fake.tensors}, "a tensor has no memory")
        device, shapes = fake.device, dict(self._shapes)
        memory = {name: device.memory_at(address) for name, address in self._addresses.items()}
        scratch = [] if self._scratch is None else [device.memory_at(self._scratch)]
        reads = [memory[tensor.name] for tensor, mode in fake.tensors if mode is TensorIOMode.INPUT]
        writes = [memory[tensor.name] for tensor, mode in fake.tensors if mode is TensorIOMode.OUTPUT]

        def run() -> None:
            inputs = {}
            for tensor, mode in fake.tensors:
                if mode is TensorIOMode.INPUT:
                    shape, dtype = shapes[tensor.name], np.dtype(tensor.dtype)
                    size = math.prod(shape) * dtype.itemsize
                    inputs[tensor.name] = device.content(memory[tensor.name])[:size].view(dtype).reshape(shape)
            for name, array in answer(fake.spec, fake.kind, inputs).items():
                content = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
                device.content(memory[name])[: content.size] = content

        device.enqueue(stream_handle, Work("the engine", run, reads, [*writes, *scratch]))
        return True
