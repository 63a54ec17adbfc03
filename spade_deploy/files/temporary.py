"""Temporary files and folders: how they are named, and how those of killed processes are removed.

A temporary name says which process uses it. So the next process that writes there removes the files of a killed one,
and never touches those that a living process is writing.
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
"""The age at which temporary files of another machine or container are removed: from here nobody can know if their
process lives."""

_MARK = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}(\.old)?\.tmp(\.[^.]{1,8})?", re.DOTALL)
_LONGEST_SUFFIX = 9


def beside(path: Path, suffix: str) -> Path:
    """The path of a hidden file beside `path` that belongs to it, such as its lock. It is cut to NAME_MAX_BYTES."""
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        return path / suffix  # the root folder has no folder around it
    room = NAME_MAX_BYTES - 1 - len(os.fsencode(suffix))
    name = path.name
    if len(os.fsencode(name)) > room:
        name = f"{_cut(name, room - 17)}~{sha256_of_bytes(os.fsencode(name))[:16]}"
    return path.with_name(f".{name}{suffix}")


def is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary file or folder, which is being written or was never finished."""
    return _MARK.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes in `folder`; a folder that one had moved aside is moved back.

    Files of living processes stay, and so do files that cannot be removed.
    """
    for entry in _leftovers(folder):
        if entry.name.endswith(".old.tmp"):
            _bring_back(Path(entry.path))
        remove(Path(entry.path))


def bring_back(path: Path) -> None:
    """If `path` is missing since a process was killed while it replaced it, move the old content back.

    This happens only on file systems that cannot exchange two names in one step.
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
    """A temporary folder of the system, removed after the block; those of killed processes are removed first.

    purpose: a word that is part of its name.
    """
    place = Path(tempfile.gettempdir())
    for entry in _leftovers(place, prefix=f".spade-{purpose}."):
        if not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            remove(Path(entry.path))
    folder = place / temporary_name(f"spade-{purpose}", ".tmp")
    folder.mkdir(mode=0o700)  # only the owner may read it
    try:
        yield folder
    finally:
        remove(folder)


def temporary_name(name: str, ending: str, suffix: str = "") -> str:
    """A hidden name for a file or folder that will be called `name`. It says which process writes it.

    ending: '.tmp', or '.old.tmp' for a folder that is moved aside. suffix: one that a library demands of the file.
    """
    suffix = suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ""
    pid = os.getpid()
    mark = f".{_place()}-{pid}-{_started(pid)}-{secrets.token_hex(4)}{ending}{suffix}"
    return f".{_cut(name, NAME_MAX_BYTES - 1 - len(os.fsencode(mark)))}{mark}"


def _cut(name: str, most_bytes: int) -> str:
    """A name cut to `most_bytes` bytes, never inside a character."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    cut = most_bytes
    while cut > 0 and encoded[cut] & 0xC0 == 0x80:
        cut -= 1
    return os.fsdecode(encoded[:cut])


@functools.cache
def _place() -> str:
    """The place within which process numbers are unique: this host, and on Linux this container."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return sha256_of_bytes(f"{socket.gethostname()}/{space}".encode())[:8]


def _started(pid: int) -> int:
    """When a process began, in the kernel's ticks, as process numbers are used again; 0 if that is not known."""
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
    """Temporary entries of `folder` whose process has ended, or that are old and come from another place."""
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
    """Sweep a folder the first time that this process writes there; it may have 100,000 entries."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # links are not followed, which is cheap
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder. Whatever cannot be removed stays."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
