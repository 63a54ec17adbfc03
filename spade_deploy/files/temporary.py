"""Temporary files and folders: how they are named, and what killed processes left of them.

A temporary name says which process makes it, so that what a killed one left is removed by the next one that writes
there, and what a living one is writing is never touched.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spade_deploy.files.reading import sha256_of_bytes

NAME_MAX_BYTES = 255
"""The longest name that every file system of today takes, in bytes; a Chinese character takes three of them."""

FOREIGN_AGE_S = 24 * 3600.0
"""The age at which what a process of another machine or container left is removed: nobody here knows if it lives."""

_MARK = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}(\.old)?\.tmp(\.[^.]{1,8})?", re.DOTALL)
_LONGEST_SUFFIX = 9


def beside(path: Path, suffix: str) -> Path:
    """A hidden name beside `path` that belongs to it, such as that of its lock; as short as file systems want it."""
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        return path / suffix  # nothing is beside the root folder
    room = NAME_MAX_BYTES - 1 - len(os.fsencode(suffix))
    name = path.name
    if len(os.fsencode(name)) > room:
        name = f"{_cut(name, room - 17)}~{sha256_of_bytes(os.fsencode(name))[:16]}"
    return path.with_name(f".{name}{suffix}")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is one that was never finished, or is being written."""
    return _MARK.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes left of their writing in `folder`; a folder that one had moved aside comes back.

    What belongs to a process that lives is left alone, and so is whatever cannot be removed.
    """
    for entry in _leftovers(folder):
        if entry.name.endswith(".old.tmp"):
            _bring_back(Path(entry.path))
        remove(Path(entry.path))


def bring_back(path: Path) -> None:
    """Where `path` is missing: if a process was killed in the moment of replacing it, its old content comes back.

    Only file systems that cannot exchange two names know that moment.
    """
    if not os.path.lexists(path):
        for entry in _leftovers(path.parent):
            if entry.name.endswith(".old.tmp") and os.path.lexists(Path(entry.path) / path.name):
                _bring_back(Path(entry.path))
                remove(Path(entry.path))


def _bring_back(aside: Path) -> None:
    with suppress(OSError):
        for old in aside.iterdir():
            if not os.path.lexists(aside.parent / old.name):
                old.rename(aside.parent / old.name)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder among the system's temporary ones, gone after the block; those of killed processes are removed first.

    purpose: a word that is part of its name.
    """
    place = Path(tempfile.gettempdir())
    for entry in _leftovers(place, prefix=f".spade-{purpose}."):
        if not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            remove(Path(entry.path))
    folder = place / temporary_name(f"spade-{purpose}", ".tmp")
    folder.mkdir(mode=0o700)  # what others may read is written elsewhere
    try:
        yield folder
    finally:
        remove(folder)


def temporary_name(name: str, ending: str, suffix: str = "") -> str:
    """A hidden name for what will be `name`, which says that this process makes it.

    ending: '.tmp', or '.old.tmp' of what is moved aside. suffix: of a file, for libraries that ask for it.
    """
    suffix = suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ""
    pid = os.getpid()
    mark = f".{_place()}-{pid}-{_started(pid)}-{secrets.token_hex(4)}{ending}{suffix}"
    return f".{_cut(name, NAME_MAX_BYTES - 1 - len(os.fsencode(mark)))}{mark}"


def _cut(name: str, most_bytes: int) -> str:
    """As much of a name as fits, without half a character."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    cut = most_bytes
    while cut > 0 and encoded[cut] & 0xC0 == 0x80:
        cut -= 1
    return os.fsdecode(encoded[:cut])


@functools.cache
def _place() -> str:
    """Where a process number means something: this host, and on Linux this space of process numbers (a container)."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return sha256_of_bytes(f"{socket.gethostname()}/{space}".encode())[:8]


def _started(pid: int) -> int:
    """When a process began, in the kernel's ticks, since numbers are used again; 0 where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_alive(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's process
        pass
    return started in (0, _started(pid))


def _leftovers(folder: Path, prefix: str = ".") -> list[os.DirEntry[str]]:
    """Entries of `folder` that were made here by processes that are gone, or elsewhere long ago."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _MARK.fullmatch(entry.name) if entry.name.startswith(prefix) else None
            if match is None:
                continue
            place, pid, started = match[1], int(match[2]), int(match[3])
            if place == _place():
                is_left = not _is_alive(pid, started)
            else:
                is_left = time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_AGE_S
            if is_left:
                found.append(entry)
    return found


_swept: set[Path] = set()


def sweep_once(folder: Path) -> None:
    """Sweep a folder before this process first writes there; not each time, since it may have 100,000 entries."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # without following links: cheap
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as it can be removed."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
