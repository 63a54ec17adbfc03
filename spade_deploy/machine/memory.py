"""Memory, as psutil reports it: what this process holds, its peak, and what is free.

psutil tells no peak on Linux and macOS, where the system itself does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil


def peak_memory_bytes() -> int:
    """The most physical memory that this process has held since it started."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # Not ru_maxrss on Linux: it survives exec, and begins with the size of the process that started this one.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_bytes() -> int:
    """The physical memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def free_memory_bytes() -> int:
    """The memory of the machine that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def busy_seconds() -> float:
    """Processor time of all processes since the machine started, without idle time and waiting for disks."""
    times = psutil.cpu_times()
    # Linux counts the time of virtual machines (guest) in that of user and nice, too.
    parts = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")
    return float(sum(getattr(times, name, 0.0) for name in parts))
