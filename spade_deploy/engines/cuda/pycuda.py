"""The device through pycuda. It has no calls for CUDA graphs: those go to the driver's library itself."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from spade_deploy.engines.cuda.device import (
    STREAM_CAPTURE_THREAD_LOCAL,
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

_NON_BLOCKING = 1  # CUstream_flags
_DISABLE_TIMING = 2  # CUevent_flags


class PycudaDevice:
    """The `Device` of pycuda. If pycuda is missing it raises what its import raises."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._cuda: Any = importlib.import_module("pycuda.driver")
        version = ".".join(map(str, importlib.import_module("pycuda").VERSION))
        self.name = f"pycuda {version} on {gpu.name}"
        with driver_errors(self.name, "open the GPU"):
            self._graphs = _Graphs()
            self._cuda.init()
            self._context: Any = self._cuda.Device(gpu.index).retain_primary_context()

    @contextmanager
    def active(self) -> Iterator[None]:
        # pycuda ends the process if a thread ends with a context on its stack, so the context is popped each time.
        with driver_errors(self.name, "make the GPU the thread's own"):
            if self._context is None:
                raise RuntimeUnavailableError(f"{self.name}: it was closed")
            self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def make_stream(self) -> Stream:
        with driver_errors(self.name, "make a stream"):
            raw = self._cuda.Stream(_NON_BLOCKING)
            return Stream(int(raw.handle), raw)

    def make_event(self) -> Event:
        with driver_errors(self.name, "make an event"):
            return Event(self._cuda.Event(_DISABLE_TIMING))

    def allocate(self, size_bytes: int) -> DeviceMemory:
        with driver_errors(self.name, "allocate"):
            try:
                raw = self._cuda.mem_alloc(size_bytes)
            except self._cuda.MemoryError as error:
                free, _ = self._cuda.mem_get_info()
                raise out_of_memory(self.name, "GPU", size_bytes, int(free)) from error
            return DeviceMemory(int(raw), size_bytes, raw)

    def allocate_pinned(self, size_bytes: int) -> PinnedMemory:
        with driver_errors(self.name, "allocate"):
            try:
                array = self._cuda.pagelocked_empty(size_bytes, np.uint8)
            except self._cuda.MemoryError as error:
                raise out_of_memory(self.name, "pinned host", size_bytes, None) from error
            return PinnedMemory(array, array.base)

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size_bytes: int, stream: Stream) -> None:
        check_copy(target, source, size_bytes)
        with driver_errors(self.name, "copy to the GPU"):
            self._cuda.memcpy_htod_async(target.address, source.array[:size_bytes], stream.raw)

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size_bytes: int, stream: Stream) -> None:
        check_copy(source, target, size_bytes)
        with driver_errors(self.name, "copy from the GPU"):
            self._cuda.memcpy_dtoh_async(target.array[:size_bytes], source.address, stream.raw)

    def record(self, event: Event, stream: Stream) -> None:
        with driver_errors(self.name, "record an event"):
            event.raw.record(stream.raw)

    def wait(self, stream: Stream, event: Event) -> None:
        with driver_errors(self.name, "make a stream wait"):
            stream.raw.wait_for_event(event.raw)

    def synchronize(self, what: Stream | Event) -> None:
        with driver_errors(self.name, "wait for the GPU"):
            what.raw.synchronize()

    def capture(self, stream: Stream, work: Callable[[], None]) -> CapturedGraph:
        with driver_errors(self.name, "capture a CUDA graph"):
            return CapturedGraph(self._graphs.capture(stream.handle, work))

    def launch(self, graph: CapturedGraph, stream: Stream) -> None:
        with driver_errors(self.name, "launch a CUDA graph"):
            self._graphs.call("cuGraphLaunch", graph.raw, ctypes.c_void_p(stream.handle))

    def free(self, handle: Handle) -> None:
        with driver_errors(self.name, f"free a {type(handle).__name__}"):
            if isinstance(handle, (DeviceMemory, PinnedMemory)):
                handle.raw.free()
            elif isinstance(handle, CapturedGraph):
                self._graphs.call("cuGraphExecDestroy", handle.raw)
            # pycuda itself frees a stream or an event when its last reference is gone.

    def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            with driver_errors(self.name, "close the GPU"):
                context.detach()


class _Graphs:
    """The driver's calls for graphs (CUDA 11.4 and newer), through ctypes."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def capture(self, stream: int, work: Callable[[], None]) -> ctypes.c_void_p:
        handle, graph, executable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", handle, ctypes.c_int(STREAM_CAPTURE_THREAD_LOCAL))
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeUnavailableError):  # what `work` raised says more
                self.call("cuStreamEndCapture", handle, ctypes.byref(graph))
                if graph:
                    self.call("cuGraphDestroy", graph)
            raise
        self.call("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self.call("cuGraphDestroy", graph)
        return executable

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise RuntimeUnavailableError(f"{name} failed with CUDA error {status}")
