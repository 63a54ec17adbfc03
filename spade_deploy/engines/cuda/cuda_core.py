"""The device through cuda-core: its streams, events and graph builder. Memory comes from the driver calls beneath it.

cuda-core's own buffers are not used: they come from a pool that keeps what was freed, and they are copied as a whole.
An engine needs a few allocations that stay, and copies only the beginning of each.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from spade_deploy.engines.cuda.device import (
    OUT_OF_MEMORY,
    CapturedGraph,
    DeviceMemory,
    Event,
    Handle,
    PinnedMemory,
    Stream,
    check_copy,
    driver_errors,
    out_of_memory,
)
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.errors import RuntimeUnavailableError


class CudaCoreDevice:
    """The `Device` of cuda-core and cuda-bindings. If they are missing it raises what their import raises."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._core: Any = importlib.import_module("cuda.core")
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self.name = f"cuda-core {self._core.__version__} on {gpu.name}"
        with driver_errors(self.name, "open the GPU"), self.active():
            pass

    @contextmanager
    def active(self) -> Iterator[None]:
        with driver_errors(self.name, "make the GPU the thread's own"):
            # cuda-core has a device object for each thread, so this thread's object is asked for each time. That also
            # starts the driver; before that no context could be current.
            device = self._core.Device(self.gpu.index)
            (before,) = self._call("cuCtxGetCurrent")
            device.set_current()
        try:
            yield
        finally:
            self._call("cuCtxSetCurrent", before)

    def make_stream(self) -> Stream:
        with driver_errors(self.name, "make a stream"):
            raw = self._core.Device(self.gpu.index).create_stream()
            return Stream(int(raw.handle), raw)

    def make_event(self) -> Event:
        with driver_errors(self.name, "make an event"):
            return Event(self._core.Device(self.gpu.index).create_event())

    def allocate(self, size_bytes: int) -> DeviceMemory:
        (pointer,) = self._call("cuMemAlloc", size_bytes, asked=("GPU", size_bytes))
        return DeviceMemory(int(pointer), size_bytes, pointer)

    def allocate_pinned(self, size_bytes: int) -> PinnedMemory:
        (pointer,) = self._call("cuMemHostAlloc", size_bytes, 0, asked=("pinned host", size_bytes))
        content = (ctypes.c_uint8 * size_bytes).from_address(int(pointer))
        return PinnedMemory(np.ctypeslib.as_array(content), int(pointer))

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size_bytes: int, stream: Stream) -> None:
        check_copy(target, source, size_bytes)
        self._call("cuMemcpyHtoDAsync", target.raw, source.raw, size_bytes, stream.raw.handle)

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size_bytes: int, stream: Stream) -> None:
        check_copy(source, target, size_bytes)
        self._call("cuMemcpyDtoHAsync", target.raw, source.raw, size_bytes, stream.raw.handle)

    def record(self, event: Event, stream: Stream) -> None:
        with driver_errors(self.name, "record an event"):
            stream.raw.record(event.raw)

    def wait(self, stream: Stream, event: Event) -> None:
        with driver_errors(self.name, "make a stream wait"):
            stream.raw.wait(event.raw)

    def synchronize(self, what: Stream | Event) -> None:
        with driver_errors(self.name, "wait for the GPU"):
            what.raw.sync()

    def capture(self, stream: Stream, work: Callable[[], None]) -> CapturedGraph:
        with driver_errors(self.name, "capture a CUDA graph"):
            builder = stream.raw.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(Exception):  # what `work` raised says more
                        builder.end_building()
                    raise
                return CapturedGraph(builder.end_building().complete())
            finally:
                builder.close()

    def launch(self, graph: CapturedGraph, stream: Stream) -> None:
        with driver_errors(self.name, "launch a CUDA graph"):
            graph.raw.launch(stream.raw)

    def free(self, handle: Handle) -> None:
        if isinstance(handle, DeviceMemory):
            self._call("cuMemFree", handle.raw)
        elif isinstance(handle, PinnedMemory):
            self._call("cuMemFreeHost", handle.raw)
        else:
            with driver_errors(self.name, f"free a {type(handle).__name__}"):
                handle.raw.close()

    def close(self) -> None:
        """Do nothing: the primary context belongs to cuda-core as long as the process lives."""

    def _call(self, name: str, *arguments: Any, asked: tuple[str, int] | None = None) -> tuple[Any, ...]:
        with driver_errors(self.name, f"call {name}"):
            status, *values = getattr(self._driver, name)(*arguments)
        if int(status) == 0:
            return tuple(values)
        if asked is not None and int(status) == OUT_OF_MEMORY:
            raise out_of_memory(self.name, *asked, self._free_bytes() if asked[0] == "GPU" else None)
        raise RuntimeUnavailableError(
            f"{self.name}: {name} failed with {getattr(status, 'name', status)}",
            hint="after an error in a kernel every later call fails: restart the process; `nvidia-smi` says more",
        )

    def _free_bytes(self) -> int | None:
        status, *values = self._driver.cuMemGetInfo()
        return int(values[0]) if int(status) == 0 else None
