"""The memory of a process on a CPU: how much it has held at most, and how to keep what was freed.

glibc gives every block above 32 MB back to the system at once.
The next operation then gets new pages, each of which the system clears when it is touched: for the full-resolution
tensors of a 256 x 256 generator that costs up to three times the operation itself. The peak stays what it was.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Tell glibc; other systems and libraries are left alone."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def peak_resident_bytes() -> int:
    """The most physical memory that this process has held; 0 where nothing tells.

    Linux's own figure of it, not `getrusage`: that of a new process begins with the peak of the one that started it.
    """
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # others count kilobytes
