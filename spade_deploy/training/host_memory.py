"""Keep freed memory in the process; by default glibc returns every block above 32 MB to the system at once.

The next operation would then get new pages, each of which the system clears when it is touched. For the full-resolution
tensors of a 256 x 256 generator on a CPU that costs up to three times the operation itself. The peak of memory stays
what it was.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory. On other systems and with other C libraries nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
