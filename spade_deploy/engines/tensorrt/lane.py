"""A lane: streams, buffers, an execution context and captured graphs, in which one run follows another.

A run goes over three streams, so that a run's copies overlap with its neighbours' computing:

    copy in   [in 0][in 1]       [in 2]
    compute         [run 0][run 1]     [run 2]
    copy out               [out 0][out 1]

Each of the two slots has buffers of its own; a slot gets new inputs only after its last outputs were waited for. Plain
runs use one execution context, which changes from run to run. A captured graph needs the context that it was captured
from, so each graph has a context of its own that is never changed again. All contexts of a lane share one scratch
memory, since the compute stream runs one at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays
from spade_deploy.engines.cuda.device import CapturedGraph, Device, DeviceMemory, Event, Handle, PinnedMemory, Stream
from spade_deploy.engines.input_shapes import Shape
from spade_deploy.engines.tensorrt.engine import Engine
from spade_deploy.errors import RuntimeUnavailableError

SLOTS = 2
_REMEMBERED = 64
"""How many shapes that have run are remembered. A shape that comes again gets a captured graph."""

Shapes = dict[str, Shape]
_H = TypeVar("_H", bound=Handle)
_Key = tuple[int, tuple[tuple[str, Shape], ...]]


@dataclass
class _Slot:
    """The buffers and events of one run at a time."""

    memory: dict[str, DeviceMemory]
    """Memory of the card for every tensor, at its largest."""
    copied_in: Event
    """This event is reached when the inputs are on the card."""
    computed: Event
    """This event is reached when the engine has run."""
    copied_out: Event
    """This event is reached when the outputs are on the host."""
    pinned: dict[str, PinnedMemory] = field(default_factory=dict)
    """Memory of the host by tensor, made when it is first used."""
    outputs: Shapes = field(default_factory=dict)
    """The shapes of the outputs that are under way."""


@dataclass
class _Captured:
    """A context that is bound to its memory for good, and the graph that was captured from it."""

    context: Any
    """TensorRT's execution context."""
    outputs: Shapes
    """The shapes of its outputs."""
    graph: CapturedGraph | None = None
    """The graph, once the context has run."""


class Lane:
    """One run at a time, or two that overlap. Every call is made inside `device.active()`, by one thread at a time.

    graphs: how many captured graphs are kept; the one that was not used for longest is dropped first. 0 captures none.
    on_note: called once with a sentence if capturing fails.
    """

    def __init__(self, engine: Engine, device: Device, graphs: int, on_note: Callable[[str], None]) -> None:
        self._engine = engine
        self._device = device
        self._most_graphs = 0 if engine.captures_itself else graphs
        self._on_note = on_note
        self._owned: list[Handle] = []
        self._slots: dict[int, _Slot] = {}
        self._ran: OrderedDict[_Key, None] = OrderedDict()
        self._captured: OrderedDict[_Key, _Captured] = OrderedDict()
        self._context: Any = None
        self._streams: list[Stream] = []
        try:
            self._copy_in, self._compute, self._copy_out = streams = [self._own(device.make_stream()) for _ in range(3)]
            self._streams = streams
            size = engine.scratch_bytes
            self._scratch = None if size is None else self._own(device.allocate(size))
            self._context = engine.make_context(self._scratch)
            self._output_bytes = self._largest_outputs()
            self._slots[0] = self._make_slot()
        except BaseException:
            self.close()
            raise

    def submit(self, index: int, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str]) -> None:
        """Put a run on the streams: copies of inputs, the engine, copies of these outputs. `collect` waits for it."""
        try:
            self._submit(index, inputs, output_names)
        except BaseException:
            with contextlib.suppress(RuntimeUnavailableError):
                self.drain()  # copies of the failed run must not overlap with those of the next one
            raise

    def collect(self, index: int) -> Arrays:
        """Wait for a slot's run. Returns its outputs by name, in new arrays."""
        slot = self._slots[index]
        self._device.synchronize(slot.copied_out)
        return {
            name: _view(slot.pinned[name], shape, self._engine.outputs[name]).copy()
            for name, shape in slot.outputs.items()
        }

    def report_to(self, profiler: Any) -> None:
        """Attach a TensorRT profiler. From now on no graphs are used, and each run waits for its layers one by one."""
        self._most_graphs = 0
        self._context.profiler = profiler

    def drain(self) -> None:
        """Wait for whatever is under way, so that buffers may be used or freed."""
        for stream in self._streams:
            self._device.synchronize(stream)

    def close(self) -> None:
        """Free everything, in a safe order. Errors of a driver that has failed already are not raised again."""
        with contextlib.suppress(RuntimeUnavailableError):
            self.drain()
        while self._captured:
            with contextlib.suppress(RuntimeUnavailableError):
                self._drop(self._captured.popitem()[1])
        self._context = None
        while self._owned:
            with contextlib.suppress(RuntimeUnavailableError):
                self._device.free(self._owned.pop())
        self._slots.clear()

    def _submit(self, index: int, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str]) -> None:
        device = self._device
        if index not in self._slots:
            self._slots[index] = self._make_slot()
        slot = self._slots[index]
        for name, array in inputs.items():
            pinned = self._pinned(slot, name)
            np.copyto(_view(pinned, array.shape, array.dtype), array)
            device.copy_in(slot.memory[name], pinned, array.nbytes, self._copy_in)
        device.record(slot.copied_in, self._copy_in)
        device.wait(self._compute, slot.copied_in)
        outputs = self._enqueue(index, slot, {name: array.shape for name, array in inputs.items()})
        device.record(slot.computed, self._compute)
        device.wait(self._copy_out, slot.computed)
        slot.outputs = {name: outputs[name] for name in output_names}
        for name, shape in slot.outputs.items():
            size = math.prod(shape) * self._engine.outputs[name].itemsize
            device.copy_out(self._pinned(slot, name), slot.memory[name], size, self._copy_out)
        device.record(slot.copied_out, self._copy_out)

    def _enqueue(self, index: int, slot: _Slot, shapes: Shapes) -> Shapes:
        """Put one run of the engine on the compute stream. Returns the outputs' shapes.

        A shape's first run is a plain one. The second is plain too, but in a context of its own: TensorRT delays some
        work until a context's first run with a shape, and that work must not be captured. From the third run on the
        captured graph is launched.
        """
        key = (index, tuple(shapes.items()))
        try:
            kept = self._kept(key, slot, shapes)
        except RuntimeUnavailableError as error:  # capturing would fail on every run, so it is not tried again
            self._most_graphs = 0
            self._on_note(f"runs without CUDA graphs, as one cannot be captured: {error.message}")
            self._captured.pop(key, None)
            kept = None
        if kept is None:
            outputs = self._engine.bind(self._context, shapes, slot.memory)
            self._engine.execute(self._context, self._compute.handle)
            self._remember(key)
            return outputs
        if kept.graph is None:
            self._engine.execute(kept.context, self._compute.handle)
        else:
            self._device.launch(kept.graph, self._compute)
        return kept.outputs

    def _kept(self, key: _Key, slot: _Slot, shapes: Shapes) -> _Captured | None:
        """The context that is kept for a shape in a slot, or None for a plain run.

        It is made on the shape's second run, and its graph is captured on the third.
        """
        kept = self._captured.get(key)
        if kept is None:
            if not self._most_graphs or key not in self._ran:
                return None
            if len(self._captured) >= self._most_graphs:
                self._device.synchronize(self._compute)
                self._drop(self._captured.popitem(last=False)[1])
            context = self._engine.make_context(self._scratch)
            self._captured[key] = kept = _Captured(context, self._engine.bind(context, shapes, slot.memory))
            return kept
        if kept.graph is None:
            if not self._most_graphs:
                return None
            context = kept.context
            kept.graph = self._device.capture(
                self._compute, lambda: self._engine.execute(context, self._compute.handle)
            )
        self._captured.move_to_end(key)
        return kept

    def _remember(self, key: _Key) -> None:
        self._ran[key] = None
        self._ran.move_to_end(key)
        if len(self._ran) > _REMEMBERED:
            self._ran.popitem(last=False)

    def _drop(self, kept: _Captured) -> None:
        if kept.graph is not None:
            self._device.free(kept.graph)
        kept.graph = kept.context = None

    def _largest_outputs(self) -> dict[str, int]:
        most = {name: shapes[2] for name, shapes in self._engine.inputs.items()}
        shapes = self._engine.bind(self._context, most, {})
        return {name: math.prod(shape) * self._engine.outputs[name].itemsize for name, shape in shapes.items()}

    def _make_slot(self) -> _Slot:
        device, before = self._device, len(self._owned)
        try:
            memory = {name: self._own(device.allocate(size)) for name, size in self._sizes().items()}
            copied_in, computed, copied_out = (self._own(device.make_event()) for _ in range(3))
            return _Slot(memory, copied_in, computed, copied_out)
        except RuntimeUnavailableError:
            while len(self._owned) > before:  # a slot with only a part of its memory is useless
                device.free(self._owned.pop())
            raise

    def _pinned(self, slot: _Slot, name: str) -> PinnedMemory:
        if name not in slot.pinned:
            slot.pinned[name] = self._own(self._device.allocate_pinned(slot.memory[name].size_bytes))
        return slot.pinned[name]

    def _sizes(self) -> dict[str, int]:
        inputs = {
            name: math.prod(most) * self._engine.input_types[name].itemsize
            for name, (_, _, most) in self._engine.inputs.items()
        }
        return inputs | self._output_bytes

    def _own(self, handle: _H) -> _H:
        self._owned.append(handle)
        return handle


def _view(pinned: PinnedMemory, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    return pinned.array[:size].view(dtype).reshape(shape)
