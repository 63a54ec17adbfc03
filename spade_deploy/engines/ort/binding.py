"""Run an ONNX Runtime session whose inputs and outputs lie in device memory that is kept from run to run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays

KEPT_SHAPES = 4
"""How many sets of shapes keep memory of their own; with CUDA graphs, how many graphs are recorded."""
_NO_GRAPH = -1  # ONNX Runtime's number for a run that is neither recorded nor replayed

Key = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Slot:
    """The memory of one set of shapes."""

    binding: Any
    """ONNX Runtime's binding of the memory to the session's tensors."""
    inputs: dict[str, Any]
    """The memory of each input."""
    outputs: dict[str, Any]
    """The memory of each output."""
    graph: int
    """The number of its CUDA graph, `_NO_GRAPH` where it has none."""


class DeviceBinding:
    """Copies each input to the device once, lets the session write into kept memory, and copies the answer back.

    device: 'cuda', or 'cpu' for the same steps without a GPU. cuda_graph: the session was opened with it; the first
    `KEPT_SHAPES` sets of shapes are replayed from their graphs, later ones run as usual.
    Safe to be called by several threads, which then take turns.
    """

    def __init__(
        self, ort: ModuleType, session: Any, *, device: str = "cuda", index: int = 0, cuda_graph: bool = False
    ) -> None:
        self._ort, self._session = ort, session
        self._device, self._index, self._cuda_graph = device, index, cuda_graph
        self._slots: OrderedDict[Key, _Slot] = OrderedDict()
        self._recorded = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> Arrays:
        """Run once. outputs: shape and NumPy type of each wanted output. The returned arrays belong to the caller."""
        with self._lock:
            try:
                return self._run(inputs, outputs)
            except BaseException:
                self._slots.clear()  # it may have failed for lack of the memory that is kept here
                raise

    def _run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, tuple[tuple[int, ...], str]]) -> Arrays:
        key: Key = tuple((name, array.shape) for name, array in inputs.items())
        key += tuple((name, shape) for name, (shape, _) in outputs.items())
        slot = self._slots.get(key) or self._add(key, inputs, outputs)
        self._slots.move_to_end(key)
        for name, array in inputs.items():
            # The copy is of plain bytes: an array of another layout would arrive scrambled.
            slot.inputs[name].update_inplace(np.ascontiguousarray(array))
        slot.binding.synchronize_inputs()
        options = self._ort.RunOptions()
        if self._cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(slot.graph))
        self._session.run_with_iobinding(slot.binding, options)
        slot.binding.synchronize_outputs()
        arrays = {name: value.numpy() for name, value in slot.outputs.items()}
        # Arrays from a GPU are copies. On the CPU they are the kept memory itself, which the next run overwrites.
        return {name: array.copy() for name, array in arrays.items()} if self._device == "cpu" else arrays

    def _add(
        self, key: Key, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> _Slot:
        graph = _NO_GRAPH
        if self._cuda_graph and self._recorded < KEPT_SHAPES:
            # A graph's number is never reused: the session would replay the old graph, at addresses that were freed.
            self._recorded += 1
            graph = self._recorded
        self._make_room()
        binding = self._session.io_binding()
        # New memory is allocated: an OrtValue made of the array would, on the CPU, be the caller's own memory.
        fed = {name: self._allocate(array.shape, array.dtype.name) for name, array in inputs.items()}
        made = {name: self._allocate(shape, dtype) for name, (shape, dtype) in outputs.items()}
        for name, value in fed.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in made.items():
            binding.bind_ortvalue_output(name, value)
        slot = _Slot(binding, fed, made, graph)
        self._slots[key] = slot
        return slot

    def _make_room(self) -> None:
        # A recorded graph always reads and writes at the same addresses, so only memory without a graph can be freed.
        free = [key for key, slot in self._slots.items() if slot.graph == _NO_GRAPH]
        while len(free) >= KEPT_SHAPES:
            del self._slots[free.pop(0)]

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype).type, self._device, self._index
        )
