"""The modules of pycuda and of cuda-core as the devices call them, over memory in NumPy; streams run at once.

They check how the two devices use their libraries where there is no GPU; whether the libraries are so is known from the
same tests on a GPU.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

import numpy as np

MEMORY_BYTES = 1 << 20


class Chip:
    """Memory and streams. current: the context that is current; a list, as pycuda has a stack of them."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        self.free_bytes = MEMORY_BYTES
        self.current: list[str] = []
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.streams = 0

    def allocate(self, size: int) -> int:
        """0 where there is not enough."""
        assert self.current
        if size > self.free_bytes:
            return 0
        self.free_bytes -= size
        array = np.zeros(size, np.uint8)
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        assert self.current
        self.free_bytes += self.memory.pop(address).size

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert self.current
        into, out_of = self.memory[target], self.memory[source]

        def work() -> None:
            into[:size] = out_of[:size]

        self.capturing[stream].append(work) if stream in self.capturing else work()

    def new_stream(self) -> int:
        self.streams += 1
        return self.streams

    def end_capture(self, stream: int) -> int:
        self.graphs[len(self.graphs) + 1] = self.capturing.pop(stream)
        return len(self.graphs)

    def launch(self, graph: int) -> None:
        for work in self.graphs[graph]:
            work()


class _Allocation:
    """pycuda's, of the device or of the host."""

    def __init__(self, chip: Chip, size: int) -> None:
        self.chip, self.address = chip, chip.allocate(size)
        if not self.address:
            raise MemoryError("cuMemAlloc failed: out of memory")
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.chip.free(self.address)


class _Ordered:
    """A stream or an event of either library."""

    def __init__(self, handle: int = 0) -> None:
        self.handle = handle
        self.is_recorded = False

    def record(self, other: _Ordered) -> None:
        self.is_recorded = other.is_recorded = True  # pycuda: event.record(stream); cuda-core: stream.record(event)

    def wait(self, event: _Ordered) -> None:
        assert event.is_recorded

    wait_for_event = wait

    def sync(self) -> None: ...

    synchronize = sync

    def close(self) -> None: ...


def pycuda_modules(chip: Chip) -> dict[str, Any]:
    class Context:
        @staticmethod
        def pop() -> None:
            chip.current.pop()

        def push(self) -> None:
            chip.current.append("primary")

        def detach(self) -> None:
            assert not chip.current

    def copy_in(target: int, source: Any, stream: _Ordered) -> None:
        chip.copy(target, source.ctypes.data, source.size, stream.handle)

    def copy_out(target: Any, source: int, stream: _Ordered) -> None:
        chip.copy(target.ctypes.data, source, target.size, stream.handle)

    driver = types.SimpleNamespace(
        Context=Context,
        Device=lambda index: types.SimpleNamespace(retain_primary_context=Context),
        Event=lambda flags: _Ordered(),
        MemoryError=MemoryError,
        Stream=lambda flags: _Ordered(chip.new_stream()),
        init=lambda: None,
        mem_alloc=lambda size: _Allocation(chip, size),
        mem_get_info=lambda: (chip.free_bytes, MEMORY_BYTES),
        memcpy_dtoh_async=copy_out,
        memcpy_htod_async=copy_in,
        pagelocked_empty=lambda size, dtype: np.asarray(_Allocation(chip, size)),
    )
    return {"pycuda": types.SimpleNamespace(VERSION=(2026, 1)), "pycuda.driver": driver}


def driver_library(chip: Chip) -> Any:
    """libcuda's calls for graphs."""

    def begin(stream: ctypes.c_void_p, mode: ctypes.c_int) -> int:
        assert mode.value == 1
        chip.capturing[stream.value or 0] = []
        return 0

    def end(stream: ctypes.c_void_p, graph: Any) -> int:
        graph._obj.value = chip.end_capture(stream.value or 0)
        return 0

    def instantiate(executable: Any, graph: ctypes.c_void_p, flags: ctypes.c_ulonglong) -> int:
        executable._obj.value = graph.value
        return 0

    def launch(executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        chip.launch(executable.value or 0)
        return 0

    return types.SimpleNamespace(
        cuStreamBeginCapture_v2=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiateWithFlags=instantiate,
        cuGraphLaunch=launch,
        cuGraphDestroy=lambda graph: 0,
        cuGraphExecDestroy=lambda executable: 0,
    )


def cuda_core_modules(chip: Chip) -> dict[str, Any]:
    class Builder:
        def __init__(self, stream: int) -> None:
            self.stream, self.graph = stream, 0

        def begin_building(self, mode: str) -> None:
            assert mode == "thread_local"
            chip.capturing[self.stream] = []

        def end_building(self) -> Builder:
            self.graph = chip.end_capture(self.stream)
            return self

        def complete(self) -> Any:
            return types.SimpleNamespace(launch=lambda stream: chip.launch(self.graph), close=lambda: None)

        def close(self) -> None:
            assert self.stream not in chip.capturing

    class Stream(_Ordered):
        def create_graph_builder(self) -> Builder:
            return Builder(self.handle)

    def allocate(size: int, flags: int = 0) -> tuple[int, int]:
        address = chip.allocate(size)
        return (0, address) if address else (2, 0)

    def free(address: int) -> tuple[int]:
        chip.free(address)
        return (0,)

    def copy(target: int, source: int, size: int, stream: int) -> tuple[int]:
        chip.copy(target, source, size, stream)
        return (0,)

    def set_current(context: list[str]) -> tuple[int]:
        chip.current = context
        return (0,)

    def device(index: int) -> Any:
        return types.SimpleNamespace(
            set_current=lambda: set_current(["primary"]),
            create_stream=lambda: Stream(chip.new_stream()),
            create_event=_Ordered,
        )

    driver = types.SimpleNamespace(
        cuCtxGetCurrent=lambda: (0, chip.current),
        cuCtxSetCurrent=set_current,
        cuMemAlloc=allocate,
        cuMemFree=free,
        cuMemFreeHost=free,
        cuMemGetInfo=lambda: (0, chip.free_bytes, MEMORY_BYTES),
        cuMemHostAlloc=allocate,
        cuMemcpyDtoHAsync=copy,
        cuMemcpyHtoDAsync=copy,
    )
    core = types.SimpleNamespace(__version__="1.2.3", Device=device)
    return {"cuda.core": core, "cuda.bindings.driver": driver}
