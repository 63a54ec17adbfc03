"""An engine on PyTorch's memory and stream, so that ours and a plain one are timed by the same CUDA events.

The product's own runtime times nothing on the card, and takes engines of our graphs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.errors import ArtifactError, RuntimeUnavailableError

TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "INT32": torch.int32,
    "UINT8": torch.uint8,
}


class DeviceEngine:
    """A loaded engine with its tensors bound, ready to run.

    inputs: on the device, by name; what `outputs` holds is written by `run`. The work goes on PyTorch's current stream.
    """

    def __init__(self, library: Library, content: bytes, inputs: Mapping[str, Tensor]) -> None:
        trt: Any = library.module
        self._name = library.title
        # Everything that TensorRT works on must outlive it.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise ArtifactError(f"{self._name} does not load the engine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeUnavailableError(f"{self._name} makes no execution context: out of memory?")
        if not all(tensor.is_contiguous() for tensor in inputs.values()):
            raise ValueError("TensorRT reads its inputs row by row; a copy would not see what is written later")
        self._inputs = dict(inputs)
        for name, tensor in self._inputs.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise ArtifactError(f"{self._name} refuses the shape {tuple(tensor.shape)} of {name}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self.outputs: dict[str, Tensor] = {}
        device = next(iter(self._inputs.values())).device
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if name in self._inputs:
                continue
            shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
            dtype = TYPES[self._engine.get_tensor_dtype(name).name]
            self.outputs[name] = torch.empty(shape, dtype=dtype, device=device)
            self._context.set_tensor_address(name, self.outputs[name].data_ptr())

    def run(self) -> None:
        """Put one run on the current stream."""
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeUnavailableError(f"{self._name} does not run the engine")
