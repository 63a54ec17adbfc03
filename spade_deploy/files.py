"""Reading files that somebody else made: regular files alone, with a limit on their size, and their SHA-256.

A path may be a pipe, a device, or a link to one. Opening a pipe waits for a writer, and reading /dev/zero never ends,
so every reader of an input opens it through this module. Errors are `OSError`s whose `strerror` is for people; the
caller wraps them in the error of its own kind and adds what to do next.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_JSON_BYTES = 64 << 20
"""The largest JSON file that is read: a manifest or checkpoint.json is a few kB."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; links are followed. Never blocks.

    Raises OSError where there is no such file, or where it is a folder, pipe, socket or device.
    """
    # A pipe without a writer would block in open(); a device could have side effects when it is read.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
            raise OSError(errno.EINVAL, f"is {kind}, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`. Raises OSError, also for a file that is larger."""
    with open_regular(path) as stream:
        content = stream.read(max_bytes + 1)  # not fstat's size: files of /proc say 0
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes, the most that is read", str(path))
    return content


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file, as hexadecimal, in chunks: weights may exceed the memory. Raises OSError."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
