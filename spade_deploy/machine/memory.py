"""The physical memory that this process holds, and its peak. Needs only the standard library."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """The most physical memory that this process has held since it started; None if the system does not report it."""
    # Not ru_maxrss on Linux: it survives exec, and begins with the size of the process that started this one.
    found = _status("VmHWM")
    if found is not None or sys.platform == "win32":
        return found
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_bytes() -> int | None:
    """The physical memory that this process holds now; the peak if the system reports only that."""
    found = _status("VmRSS")
    return peak_memory_bytes() if found is None else found


def _status(key: str) -> int | None:
    table = Path("/proc/self/status")
    if not table.exists():
        return None
    for line in table.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None
