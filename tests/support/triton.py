"""A stand-in for a Triton server that holds a model repository: config.pbtxt is read, checked and obeyed.

`ort` models run in ONNX Runtime with the options of their configuration. Python models run as Triton's Python back end
runs them, with an object in the place of `triton_python_backend_utils` that has its documented interface. It is no
Triton: it shows that what we write fits the published schema and the documented interfaces.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

Arrays = Mapping[str, NDArray[Any]]
NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


class TritonRefusal(Exception):  # noqa: N818
    """What the server itself answers to a request that does not fit a model's configuration."""


def read_config(text: str) -> Any:
    """A ModelConfig of the published schema. Raises ParseError for what is not in it."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = 1) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._output_tensors, self._error = output_tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> Sequence[Tensor]:
        return self._output_tensors


@dataclass(frozen=True)
class PreferredMemory:
    preferred_memory_type: int
    preferred_device_id: int


class LocalTriton:
    """The models of a repository. calls: the names of the models that Python models called, in order."""

    def __init__(self, repository: Path) -> None:
        self.calls: list[str] = []
        self.broken: set[str] = set()
        """Tests set it: the models that answer with an error."""
        self.models = {folder.name: _Model(self, folder) for folder in sorted(repository.iterdir()) if folder.is_dir()}

    def infer(self, model: str, inputs: Arrays, names: Sequence[str] = ("pixels",)) -> dict[str, NDArray[Any]]:
        """What a client gets. Raises TritonRefusal."""
        (response,) = self.models[model].execute([self.request(inputs, names)])
        if response.has_error():
            raise TritonRefusal(response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}

    def request(self, inputs: Arrays, names: Sequence[str] = ("pixels",), is_cancelled: bool = False) -> Any:
        tensors = [Tensor(name, array) for name, array in inputs.items()]
        return _request_class(self)(inputs=tensors, requested_output_names=list(names), is_gone=is_cancelled)


def _request_class(server: LocalTriton) -> Any:
    class InferenceRequest:
        def __init__(
            self,
            inputs: list[Tensor],
            requested_output_names: list[str],
            model_name: str = "",
            preferred_memory: PreferredMemory | None = None,
            is_gone: bool = False,
        ) -> None:
            assert isinstance(inputs, list)
            assert isinstance(requested_output_names, list)
            self._inputs, self._names = inputs, requested_output_names
            self._model, self._memory, self._is_gone = model_name, preferred_memory, is_gone

        def inputs(self) -> list[Tensor]:
            return self._inputs

        def requested_output_names(self) -> list[str]:
            return self._names

        def is_cancelled(self) -> bool:
            return self._is_gone

        def exec(self) -> InferenceResponse:
            assert self._memory == PreferredMemory(0, 0), "without it, outputs may lie in a GPU's memory"
            server.calls.append(self._model)
            if self._model in server.broken:
                return InferenceResponse(error=TritonError("out of memory"))
            try:
                made = server.infer(self._model, {one.name(): one.as_numpy() for one in self._inputs}, self._names)
            except TritonRefusal as error:
                return InferenceResponse(error=TritonError(str(error), TritonError.INVALID_ARG))
            return InferenceResponse([Tensor(name, array) for name, array in made.items()])

    return InferenceRequest


def pb_utils(server: LocalTriton) -> ModuleType:
    """The interface of `triton_python_backend_utils` as its README documents it, as far as models here use it."""

    def by_name(tensors: Sequence[Tensor], name: str) -> Tensor | None:
        return next((tensor for tensor in tensors if tensor.name() == name), None)

    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.InferenceRequest, module.PreferredMemory = _request_class(server), PreferredMemory
    module.TRITONSERVER_MEMORY_CPU = 0
    module.get_input_tensor_by_name = lambda request, name: by_name(request.inputs(), name)
    module.get_output_tensor_by_name = lambda response, name: by_name(response.output_tensors(), name)
    return module


class _Model:
    def __init__(self, server: LocalTriton, folder: Path) -> None:
        self.folder = folder
        self.config = read_config((folder / "config.pbtxt").read_text(encoding="utf-8"))
        assert self.config.name == folder.name
        (self.version,) = (path for path in folder.iterdir() if path.name.isdecimal())
        assert (self.version / self.config.default_model_filename).is_file()
        self._run = {"onnxruntime": self._open_onnx, "python": self._open_python}.get(
            self.config.backend, lambda server: None
        )(server)

    def warmup_inputs(self, sample: Any) -> dict[str, NDArray[Any]]:
        """The inputs of a warm-up request: the files hold one image, which Triton repeats for a batch."""
        inputs = {}
        for name, told in sample.inputs.items():
            content = (self.folder / "warmup" / told.input_data_file).read_bytes()
            dtype = NUMPY[model_config_pb2.DataType.Name(told.data_type)]
            array = np.frombuffer(content, dtype).reshape(list(told.dims))
            inputs[name] = np.stack([array] * sample.batch_size) if self.config.max_batch_size else array
        return inputs

    def execute(self, requests: Sequence[Any]) -> list[InferenceResponse]:
        """Run requests that the batcher has joined, after the checks that Triton makes of each."""
        for request in requests:
            self._check({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        responses: list[InferenceResponse] = self._run(requests)
        assert len(responses) == len(requests)
        return responses

    def _check(self, inputs: Arrays) -> None:
        known = {told.name: told for told in self.config.input}
        if unknown := set(inputs) - set(known):
            raise TritonRefusal(f"unexpected inference input {unknown}")
        counts = set()
        for name, told in known.items():
            if name not in inputs:
                if told.optional:
                    continue
                raise TritonRefusal(f"expected the input {name}")
            array, dims = inputs[name], list(told.dims)
            if array.dtype != NUMPY[model_config_pb2.DataType.Name(told.data_type)]:
                raise TritonRefusal(f"inference input {name}: data-type {array.dtype}")
            shape = array.shape[1:] if self.config.max_batch_size else array.shape
            if len(shape) != len(dims) or any(low not in (-1, size) for low, size in zip(dims, shape, strict=True)):
                raise TritonRefusal(f"unexpected shape for input {name}: {array.shape}, expected {dims}")
            if self.config.max_batch_size:
                counts.add(len(array))
        if len(counts) > 1 or (counts and max(counts) > self.config.max_batch_size):
            raise TritonRefusal(f"batch sizes {counts}, at most {self.config.max_batch_size}")

    def _open_onnx(self, server: LocalTriton) -> Any:
        told = {name: value.string_value for name, value in self.config.parameters.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(told.get("intra_op_thread_count", 0))
        options.enable_mem_pattern = told.get("enable_mem_pattern", "1") == "1"
        path = self.version / self.config.default_model_filename
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(requests: Sequence[Any]) -> list[InferenceResponse]:
            (request,) = requests
            names = request.requested_output_names()
            try:
                made = self.session.run(names, {one.name(): one.as_numpy() for one in request.inputs()})
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                return [InferenceResponse(error=TritonError(str(error)))]
            return [InferenceResponse([Tensor(name, array) for name, array in zip(names, made, strict=True)])]

        return run

    def _open_python(self, server: LocalTriton) -> Any:
        path = self.version / self.config.default_model_filename
        spec = importlib.util.spec_from_file_location(f"triton_model_{id(self)}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get("triton_python_backend_utils")
        sys.modules["triton_python_backend_utils"] = pb_utils(server)
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules["triton_python_backend_utils"]
            if before is not None:
                sys.modules["triton_python_backend_utils"] = before
        model = module.TritonPythonModel()
        config = json.dumps(json_format.MessageToDict(self.config, preserving_proto_field_name=True))
        model.initialize({"model_config": config, "model_name": self.config.name})
        return model.execute
