"""CUDA memory, streams, events and graphs: the few calls that an engine needs, made through one of two libraries.

cuda-core comes as wheels and is used first; pycuda is used where it alone is installed. Both work in the device's
primary context, which PyTorch and ONNX Runtime share. Everything that a device makes is a plain handle; `free` gives
the handle back to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.errors import RuntimeUnavailableError, SpadeError, reason_of

Bytes = NDArray[np.uint8]
STREAM_CAPTURE_THREAD_LOCAL = 1
"""CUstreamCaptureMode: other threads may allocate while this one captures."""
OUT_OF_MEMORY = 2
"""The CUresult for memory that ran out."""


class DeviceLibrary(StrEnum):
    """Which package makes the CUDA calls. `auto` takes the first one that is installed, in this order."""

    AUTO = "auto"
    CUDA_CORE = "cuda-core"
    PYCUDA = "pycuda"


@dataclass(frozen=True, eq=False)
class Stream:
    """A CUDA stream: work that is done in order."""

    handle: int
    """The CUstream, as TensorRT takes it."""
    raw: Any
    """The library's own object."""


@dataclass(frozen=True, eq=False)
class Event:
    """A point in a stream, which other streams or the host wait for."""

    raw: Any
    """The library's own object."""


@dataclass(frozen=True, eq=False)
class DeviceMemory:
    """Memory of the GPU, aligned to 256 bytes or more."""

    address: int
    """The address on the GPU at which it begins."""
    size_bytes: int
    """Its size in bytes."""
    raw: Any = None
    """The library's own object."""


class PinnedMemory:
    """Memory of the host that is never paged out. Only such memory can be copied while the host goes on working.

    The host may touch `array` (uint8) when no copy of it is under way; ask for it each time.
    """

    def __init__(self, array: Bytes, raw: Any = None) -> None:
        self._array = array
        self.raw = raw

    @property
    def array(self) -> Bytes:
        return self._array

    @property
    def size_bytes(self) -> int:
        return self._array.size


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A CUDA graph: the work that was put on a stream while it was captured, which is launched as one."""

    raw: Any
    """The library's own object."""


Handle = Stream | Event | DeviceMemory | PinnedMemory | CapturedGraph


class Device(Protocol):
    """One GPU. Every call but `close` is made inside `active`; any thread may make it.

    Errors of the driver are RuntimeUnavailableError; those of kernels come with a later call that waits for them.
    """

    @property
    def name(self) -> str:
        """The library and the GPU, for people."""

    @property
    def gpu(self) -> Gpu: ...

    def active(self) -> AbstractContextManager[None]:
        """Make the device the calling thread's own inside the block, and give the thread back as it was."""

    def make_stream(self) -> Stream:
        """A stream that does not wait for the default one."""

    def make_event(self) -> Event: ...

    def allocate(self, size_bytes: int) -> DeviceMemory: ...

    def allocate_pinned(self, size_bytes: int) -> PinnedMemory: ...

    def copy_in(self, target: DeviceMemory, source: PinnedMemory, size_bytes: int, stream: Stream) -> None:
        """Copy from the host to the device, from the start of both."""

    def copy_out(self, target: PinnedMemory, source: DeviceMemory, size_bytes: int, stream: Stream) -> None:
        """Copy from the device to the host, from the start of both."""

    def record(self, event: Event, stream: Stream) -> None:
        """Set the event to the point that the stream has come to."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Make the stream's further work wait for the event; the host does not wait."""

    def synchronize(self, what: Stream | Event) -> None:
        """Make the host wait until all work of a stream is done, or until an event is reached."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> CapturedGraph:
        """Capture what `work` puts on the stream, without running it.

        If `work` raises, capturing ends, and the stream can be used as before.
        """

    def launch(self, graph: CapturedGraph, stream: Stream) -> None: ...

    def free(self, handle: Handle) -> None:
        """Free a handle that this device made. No work that uses it may be under way."""

    def close(self) -> None: ...


def check_copy(device: DeviceMemory, host: PinnedMemory, size_bytes: int) -> None:
    """Raise ValueError for a copy beyond the end of a buffer, which is a defect of the caller."""
    smaller = min(device.size_bytes, host.size_bytes)
    if not 0 <= size_bytes <= smaller:
        raise ValueError(f"a copy of {size_bytes} bytes between buffers of which the smaller has {smaller}")


def out_of_memory(device: str, kind: str, asked: int, free: int | None) -> RuntimeUnavailableError:
    """The error for memory that ran out. free: the bytes that are free, None if not known."""
    left = "" if free is None else f", {free} are free"
    return RuntimeUnavailableError(
        f"{device}: out of {kind} memory: {asked} bytes were asked for{left}",
        hint="a smaller maximum helps: `spade build --profile MIN:OPT:MAX` sets it; or close other programs that"
        " use the GPU",
    )


@contextmanager
def driver_errors(device: str, doing: str) -> Iterator[None]:
    """Turn what a CUDA library raises inside the block into a RuntimeUnavailableError. doing: what failed, in words."""
    try:
        yield
    except SpadeError:
        raise
    except Exception as error:  # neither library's exceptions have a public base class of their own
        raise RuntimeUnavailableError(
            f"{device}: cannot {doing}: {reason_of(error)}",
            hint="after an error in a kernel every later call fails: restart the process; `nvidia-smi` says more",
        ) from error
