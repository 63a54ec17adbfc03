"""Files and folders that appear whole or not at all: a temporary name beside the target, then a rename.

What is renamed was flushed to the disk before, so that a loss of power leaves the old or the new, too. A temporary
name says which process makes it: what a killed one left is removed by the next one that writes there, and what a
living one is writing is never touched.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from spade_deploy.files.reading import sha256_of_bytes

NAME_MAX_BYTES = 255
"""Of one name, in bytes, on every file system of today; a Chinese character takes three of them."""

FOREIGN_AGE_S = 24 * 3600.0
"""What a process of another machine or container left is removed when it is older: its life cannot be asked about."""

_MARK = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}(\.old)?\.tmp(\.[^.]{1,8})?", re.DOTALL)
_LONGEST_SUFFIX = 9
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


Flush = Literal["all", "file", "nothing"]
"""What is on the disk before the next step. file: a loss of power may forget the file, but never leaves half of it: for
many results, each of which would wait for its folder. nothing: for what the same command makes again from the package.
"""


@contextmanager
def atomic_file(path: Path, *, flush: Flush = "all") -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends well, and vanishes when not.

    Raises OSError, which names `path`, also for what a library says without a file name.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_what_is_no_file(path)
        _sweep_once(path.parent)
        temporary, mode = _new_file(path)
    try:
        with _naming(path):
            yield temporary
            _set_mode(temporary, mode)  # a library may have put a private file of its own there
            if flush != "nothing":
                _flush(temporary)
            os.replace(temporary, path)
            if flush == "all":
                _flush_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends well.

    A folder that was there before is replaced as a whole: no reader sees files of both, and none sees nothing where the
    file system can exchange two names. A link is followed: the folder that it leads to is replaced. Raises OSError.
    """
    if path.is_symlink() or path.name in ("", ".."):
        path = Path(os.path.realpath(path))
    with _naming(path):
        if not path.name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        temporary = _new_folder(path)
    try:
        with _naming(path):
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            _settle(temporary, mode)
            _put_in_place(temporary, path)
            _flush_folder(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder among the system's temporary ones, gone after the block; those of killed processes are removed first.

    purpose: a word that is part of its name.
    """
    place = Path(tempfile.gettempdir())
    for entry in _leftovers(place, prefix=f".spade-{purpose}."):
        if not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            _remove(Path(entry.path))
    folder = place / _temporary_name(f"spade-{purpose}", ".tmp")
    folder.mkdir(mode=0o700)  # what others may read is written elsewhere
    try:
        yield folder
    finally:
        _remove(folder)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. What UTF-8 cannot hold (of a file name that is none) is written as \\udc80."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def beside(path: Path, suffix: str) -> Path:
    """A hidden name beside `path` that belongs to it, such as that of its lock; as short as file systems want it."""
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        return path / suffix  # of the root there is no beside
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
        _remove(Path(entry.path))


def discard(folder: Path) -> None:
    """Remove a folder: gone at once for every reader, and what a kill leaves of it is swept. Raises OSError."""
    doomed = folder.with_name(_temporary_name(folder.name, ".tmp"))
    os.replace(folder, doomed)
    _remove(doomed)


def bring_back(path: Path) -> None:
    """Where `path` is missing: if a process was killed in the moment of replacing it, its old content comes back.

    Only file systems that cannot exchange two names know that moment.
    """
    if not os.path.lexists(path):
        for entry in _leftovers(path.parent):
            if entry.name.endswith(".old.tmp") and os.path.lexists(Path(entry.path) / path.name):
                _bring_back(Path(entry.path))
                _remove(Path(entry.path))


def _bring_back(aside: Path) -> None:
    with suppress(OSError):
        for old in aside.iterdir():
            if not os.path.lexists(aside.parent / old.name):
                old.rename(aside.parent / old.name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name `path`, not the temporary one; libraries raise some that say neither which file nor why."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            if not any(_MARK.fullmatch(part) for part in Path(os.fsdecode(error.filename)).parts):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        number, reason = error.errno, error.strerror or str(error)
        if number is None:
            number = errno.ENOSPC if _is_full(path.parent) else errno.EIO
            reason = os.strerror(number) if number == errno.ENOSPC else reason
        raise OSError(number, reason, str(path)) from error


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 1 << 16
    except OSError:
        return False


def _refuse_what_is_no_file(path: Path) -> None:
    """A rename would put a file in the place of /dev/null."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # nothing there, or a link that leads nowhere
            return
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a device or a pipe, not a regular file", str(path))


def _new_file(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path`, and its mode, which follows the umask."""
    temporary = path.with_name(_temporary_name(path.name, ".tmp", path.suffix))
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return temporary, stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _new_folder(path: Path, ending: str = ".tmp") -> Path:
    """A new empty folder beside `path`; its mode follows the umask."""
    temporary = path.with_name(_temporary_name(path.name, ending))
    temporary.mkdir()
    return temporary


def _temporary_name(name: str, ending: str, suffix: str = "") -> str:
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


def _sweep_once(folder: Path) -> None:
    """At a process's first writing there: a folder of results may have a hundred thousand entries."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # without following links: cheap
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # of a file system without modes
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            os.chmod(path, mode)


def _settle(folder: Path, mode: int) -> None:
    """All in `folder` gets the modes that the umask asks for, and is flushed: libraries write private files."""
    for where, folders, files in os.walk(folder, topdown=False):
        for name in files:
            file = Path(where, name)
            if not file.is_symlink():
                _set_mode(file, mode & 0o666)
                _flush(file)
        for name in folders:
            if not Path(where, name).is_symlink():
                _set_mode(Path(where, name), mode)
        _flush_folder(Path(where))


def _flush(path: Path) -> None:
    """Onto the disk: a rename that survives a loss of power must not survive what it names."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # nothing that could be flushed
            raise
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    if os.name != "nt":  # where a folder cannot be opened
        with suppress(OSError):
            _flush(path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """`temporary` becomes `path`; what was `path` is `temporary` then, or gone."""
    if not os.path.lexists(path):
        os.rename(temporary, path)  # noqa: PTH104
        return
    if _exchange(temporary, path):
        return
    aside = _new_folder(path, ".old.tmp")
    try:
        os.rename(path, aside / path.name)  # noqa: PTH104
        try:
            os.rename(temporary, path)  # noqa: PTH104
        except OSError:
            os.rename(aside / path.name, path)  # noqa: PTH104
            raise
    finally:
        _remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot. Raises OSError."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # Linux alone has it; Windows takes no None
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
