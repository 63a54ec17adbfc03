"""A lock on a folder that only one process at a time may write: a run, an artifact's place, a folder of results.

The lock is the operating system's (flock through filelock): it ends with the process that holds it, however that ends.
The lock file is never removed; it names the process that holds the lock, for the message that a second process shows.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from spade_deploy.errors import FolderBusyError
from spade_deploy.files.reading import read_json

LOCK = ".lock"


@contextmanager
def locked(folder: Path, doing: str, *, file: Path | None = None) -> Iterator[None]:
    """Hold the lock of `folder` inside the block. doing: the work in words, as in 'training this run'.

    file: the lock file, `folder/.lock` if left out. A folder that is replaced as a whole has its lock beside it.
    Raises FolderBusyError, which names the holder, where another process holds it; OSError where none can be made.
    """
    path = folder / LOCK if file is None else file
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderBusyError(
            f"{folder}: another process is working on it: {_holder(path)}",
            hint="wait until it ends, stop it, or name another folder",
        ) from None
    except NotImplementedError as error:  # filelock raises this if the file system has no locks
        raise OSError(errno.ENOLCK, "the file system takes no locks", str(path)) from error
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "doing": doing, "since": time.time()}
        try:
            with path.open("r+b") as stream:  # written in place, as the lock belongs to this inode
                stream.write(json.dumps(facts).encode())
                stream.truncate()
        except OSError as error:  # the error for a full disk has no file name
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        facts = read_json(path, 1 << 16)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
        return f"process {int(facts['pid'])} on {facts['host']!s}, {facts['doing']!s}, since {since}"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return "a process that has not said yet which one it is"
