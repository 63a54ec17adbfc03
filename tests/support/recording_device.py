"""A CUDA device without a GPU: real memory in NumPy, lazy streams, and a judge of every call.

Nothing that is put on a stream runs until the host waits for it, so whatever reads too early reads what was there
before. Beside that, each stream and the host have a clock of what they know to be done (vector clocks); two accesses
to the same memory, one of them a write, of which neither is known to come after the other, are a fault, whether or not
they would have shown in the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from spade_deploy.engines.cuda.device import (
    Bytes,
    CapturedGraph,
    DeviceMemory,
    Event,
    Handle,
    PinnedMemory,
    Stream,
    out_of_memory,
)
from spade_deploy.engines.cuda.driver import Gpu

FAKE_GPU = Gpu(0, "Fake GPU", (8, 9), 1 << 30, "13.0")
Clock = dict[int, int]
"""Steps that are known to be done, by stream."""


class MisuseError(BaseException):  # no Exception: nothing that handles those may make it good
    """A call that a real device would not survive, or not always."""


@dataclass
class Work:
    """Something on a stream. reads, writes: memory, by identity."""

    what: str
    do: Callable[[], None]
    reads: Sequence[Any]
    writes: Sequence[Any]
    stream: int = 0
    step: int = 0
    is_done: bool = False
    graph: CapturedGraph | None = None


@dataclass
class _History:
    """Accesses to one memory since its last write; the write first."""

    write: Work | None = None
    reads: list[Work] = field(default_factory=list)


class RecordedPinned(PinnedMemory):
    """Asking for its array is an access of the host."""

    def __init__(self, device: RecordingDevice, size_bytes: int) -> None:
        super().__init__(np.full(size_bytes, 0xCD, np.uint8))
        self._device = device

    @property
    def array(self) -> Bytes:
        self._device.host_touches(self)
        return self._array

    def raw_bytes(self) -> Bytes:
        return self._array


class RecordingDevice:
    """`Device`. calls: every call's name and its subject, in order. complaints: what was wrong, also raised."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.gpu = FAKE_GPU
        self.name = "recording device"
        self.calls: list[tuple[str, Any]] = []
        self.complaints: list[str] = []
        self.free_bytes = memory_bytes
        self.fails: dict[str, Exception] = {}
        self.closed = 0
        self._alive: dict[Handle, None] = {}
        self._content: dict[DeviceMemory, Bytes] = {}
        self._address = 0x7000_0000_0000
        self._host: Clock = {}
        self._clocks: dict[int, Clock] = {}
        self._events: dict[Event, Clock | None] = {}
        self._history: dict[Any, _History] = {}
        self._queue: list[Work] = []
        self._capturing: dict[int, list[Work]] = {}
        self._local = threading.local()
        self._lock = threading.RLock()

    # --- Device ------------------------------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def make_stream(self) -> Stream:
        with self._call("make_stream", None):
            stream = Stream(len(self._clocks) + 1, None)
            self._clocks[stream.handle] = {}
            return self._born(stream)

    def make_event(self) -> Event:
        with self._call("make_event", None):
            event = Event(None)
            self._events[event] = None
            return self._born(event)

    def allocate(self, size_bytes: int) -> DeviceMemory:
        with self._call("allocate", size_bytes):
            if size_bytes < 1:
                self.complain(f"allocates {size_bytes} bytes")
            if size_bytes > self.free_bytes:
                raise out_of_memory(self.name, "GPU", size_bytes, self.free_bytes)
            self.free_bytes -= size_bytes
            memory = DeviceMemory(self._address, size_bytes)
            self._address += -(-size_bytes // 256) * 256 + 256
            self._content[memory] = np.full(size_bytes, 0xAB, np.uint8)
            return self._born(memory)

    def allocate_pinned(self, size_bytes: int) -> PinnedMemory:
        with self._call("allocate_pinned", size_bytes):
            return self._born(RecordedPinned(self, size_bytes))

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size_bytes: int, stream: Stream) -> None:
        with self._call("copy_in", target):
            self._check_copy(target, source, size_bytes)
            assert isinstance(source, RecordedPinned)
            content, host = self._content[target], source.raw_bytes()
            self._put(stream.handle, Work("copy in", _copy(content, host, size_bytes), [source], [target]))

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size_bytes: int, stream: Stream) -> None:
        with self._call("copy_out", source):
            self._check_copy(source, target, size_bytes)
            assert isinstance(target, RecordedPinned)
            content, host = self._content[source], target.raw_bytes()
            self._put(stream.handle, Work("copy out", _copy(host, content, size_bytes), [source], [target]))

    def record(self, event: Event, stream: Stream) -> None:
        with self._call("record", event):
            self._check_alive(event, stream)
            self._events[event] = dict(self._now(stream.handle))

    def wait(self, stream: Stream, event: Event) -> None:
        with self._call("wait", event):
            self._check_alive(event, stream)
            _merge(self._clocks[stream.handle], self._recorded(event))

    def synchronize(self, what: Stream | Event) -> None:
        with self._call("synchronize", what):
            self._check_alive(what)
            clock = self._clocks[what.handle] if isinstance(what, Stream) else self._recorded(what)
            _merge(self._host, clock)
            self._run_until(clock)

    def capture(self, stream: Stream, work: Callable[[], None]) -> CapturedGraph:
        with self._call("capture", stream):
            self._check_alive(stream)
            self._capturing[stream.handle] = []
            try:
                work()
                return self._born(CapturedGraph(self._capturing[stream.handle]))
            finally:
                del self._capturing[stream.handle]

    def launch(self, graph: CapturedGraph, stream: Stream) -> None:
        with self._call("launch", graph):
            self._check_alive(graph, stream)
            for work in graph.raw:
                self._put(stream.handle, Work(work.what, work.do, work.reads, work.writes, graph=graph))

    def free(self, handle: Handle) -> None:
        with self._call("free", handle):
            self._check_alive(handle)
            if isinstance(handle, (DeviceMemory, PinnedMemory)):
                self._order(handle, Work("free", lambda: None, [], [handle]), self._host)
            if isinstance(handle, DeviceMemory):
                self._content.pop(handle)
                self.free_bytes += handle.size_bytes
            if isinstance(handle, Stream) and any(w.stream == handle.handle and not w.is_done for w in self._queue):
                self.complain("frees a stream that has work left")
            if isinstance(handle, CapturedGraph) and any(w.graph is handle and not w.is_done for w in self._queue):
                self.complain("frees a graph that is under way")
            del self._alive[handle]

    def close(self) -> None:
        self.calls.append(("close", None))
        self.closed += 1
        if self._alive:
            self.complain(f"closed while {sorted(type(handle).__name__ for handle in self._alive)} are not freed")

    # --- What a fake TensorRT needs ----------------------------------------------------------------------------------

    def memory_at(self, address: int) -> DeviceMemory:
        found = next((memory for memory in self._content if memory.address == address), None)
        if found is None:
            self.complain(f"address {address:#x} is no memory, or was freed")
        return found

    def content(self, memory: DeviceMemory) -> Bytes:
        """The bytes of live memory, for work that runs."""
        if memory not in self._content:
            self.complain("a kernel reads or writes memory that was freed")
        return self._content[memory]

    def enqueue(self, stream: int, work: Work) -> None:
        """Put a kernel on a stream, or into the graph that is being captured of it."""
        with self._call("enqueue", work.what):
            if stream not in self._clocks:
                self.complain(f"stream {stream} is none of this device")
            for memory in (*work.reads, *work.writes):
                self._check_alive(memory)
            self._put(stream, work)

    def host_touches(self, memory: PinnedMemory) -> None:
        with self._lock:
            self._check_alive(memory)
            self._order(memory, Work("the host", lambda: None, [], [memory], is_done=True), self._host)

    # --- The judge ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self, name: str, subject: Any) -> Iterator[None]:
        with self._lock:
            if not getattr(self._local, "depth", 0):
                self.complain(f"{name} outside of active()")
            if self.closed:
                self.complain(f"{name} after close()")
            self.calls.append((name, subject))
            if name in self.fails:
                raise self.fails[name]
            yield

    def _born(self, handle: Any) -> Any:
        self._alive[handle] = None
        return handle

    def _check_alive(self, *handles: Handle) -> None:
        for handle in handles:
            if handle not in self._alive:
                self.complain(f"a {type(handle).__name__} is used or freed that is not (or no more) of this device")

    def _check_copy(self, memory: DeviceMemory, pinned: PinnedMemory, size_bytes: int) -> None:
        if not isinstance(pinned, RecordedPinned):
            self.complain("a copy of pageable memory")
        self._check_alive(memory, pinned)
        if not 0 < size_bytes <= min(memory.size_bytes, pinned.size_bytes):
            self.complain(f"a copy of {size_bytes} bytes: {memory.size_bytes} there, {pinned.size_bytes} here")

    def _put(self, stream: int, work: Work) -> None:
        if stream in self._capturing:
            self._capturing[stream].append(work)
            return
        clock = self._now(stream)
        clock[stream] = clock.get(stream, 0) + 1
        work.stream, work.step = stream, clock[stream]
        for memory in work.reads:
            self._order(memory, work, clock, is_write=False)
        for memory in work.writes:
            self._order(memory, work, clock)
        self._queue.append(work)

    def _now(self, stream: int) -> Clock:
        """What a stream knows: whatever the host knew when it put work there was done before."""
        return _merge(self._clocks[stream], self._host)

    def _order(self, memory: Any, work: Work, clock: Clock, *, is_write: bool = True) -> None:
        history = self._history.setdefault(memory, _History())
        before = [history.write, *(history.reads if is_write else [])]
        for earlier in before:
            if earlier is not None and earlier.stream and clock.get(earlier.stream, 0) < earlier.step:
                self.complain(f"{work.what} is not ordered after {earlier.what} of the same memory")
        if is_write:
            history.write, history.reads = work, []
        else:
            history.reads.append(work)

    def _recorded(self, event: Event) -> Clock:
        clock = self._events[event]
        if clock is None:
            self.complain("waits for an event that was never recorded")
        return clock or {}

    def _run_until(self, clock: Clock) -> None:
        left = []
        for work in self._queue:
            if work.step <= clock.get(work.stream, 0):
                work.do()
                work.is_done = True
            else:
                left.append(work)
        self._queue = left

    def complain(self, what: str) -> NoReturn:
        self.complaints.append(what)
        raise MisuseError(what)


def _merge(clock: Clock, other: Clock) -> Clock:
    for stream, step in other.items():
        clock[stream] = max(step, clock.get(stream, 0))
    return clock


def _copy(target: Bytes, source: Bytes, size_bytes: int) -> Callable[[], None]:
    def copy() -> None:
        target[:size_bytes] = source[:size_bytes]

    return copy
