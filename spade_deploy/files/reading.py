"""Read files that somebody else made: only regular files, of a bounded size. Also their SHA-256 and their JSON.

A path may be a pipe, a device, or a link to one. Opening a pipe waits for a writer, and reading /dev/zero never ends,
so every reader of an input opens it through this module. Errors are `OSError`s whose `strerror` is for people; the
caller wraps them in the error of its own kind and adds what to do next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from spade_deploy.errors import quoted

MAX_JSON_BYTES = 16 << 20
"""The largest JSON file that is read: a manifest or checkpoint.json is a few kB. As Python objects one of this size was
measured to take up to 420 MB."""

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
        # Python allocates all the bytes that are asked for, so this never asks for the limit, which may be gigabytes.
        # One more byte is asked for, since a file may grow, and files in /proc have size 0.
        content = stream.read(min(max_bytes, os.fstat(stream.fileno()).st_size) + 1)
        while len(content) <= max_bytes and (more := stream.read(min(1 << 20, max_bytes + 1 - len(content)))):
            content += more
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes, the most that is read", str(path))
    return content


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file, as hexadecimal. It is read in chunks, since weights may exceed the memory.

    Raises OSError.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """The SHA-256 of some bytes, as hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file.

    Raises OSError where the file cannot be read, ValueError, whose text is for people, as `parse_json` does.
    """
    return parse_json(read_regular(path, max_bytes))


def parse_json(content: bytes | str) -> dict[str, Any]:
    """A JSON object, from UTF-8 with or without a byte order mark.

    It is stricter than Python's own reader: NaN, infinity (1e999 is one), integers beyond 64 bits and repeated keys are
    refused, so that one can compute with every number of the result. Texts may hold halves of surrogate pairs, as file
    names that are no UTF-8 do; `printable` escapes them. Raises ValueError, also for JSON that is nested too deeply or
    is no object.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        if not text.strip("\ufeff \t\r\n\0"):
            raise ValueError("it is empty")
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"holds {type(value).__name__}, not an object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"an integer of {len(digits.lstrip('-'))} digits is beyond 64 bits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{quoted(digits)} is no finite number")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} stands there twice")
    return value
