"""Files and folders that appear whole or not at all: a temporary name beside the target, then a rename.

What is renamed was flushed to the disk before, so that a loss of power leaves the old or the new, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from spade_deploy.files.temporary import is_temporary, remove, sweep_once, temporary_name

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


Flush = Literal["all", "file", "nothing"]
"""What must be on the disk before a file gets its name.

all: the file and its folder. file: the file alone; a loss of power may then lose it, but never leaves half of it. This
is for many results, which need not each wait for the folder. nothing: for files that the same command can make again
from the package.
"""


@contextmanager
def atomic_file(path: Path, *, flush: Flush = "all") -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends well, and vanishes when not.

    Raises OSError, which names `path`, also for what a library says without a file name.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_device(path)
        sweep_once(path.parent)
        temporary, mode = _new_file(path)
    try:
        with _naming(path):
            yield temporary
            _set_mode(temporary, mode)  # a library may have replaced it by a file that only its owner may read
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

    An existing folder is replaced as a whole: no reader sees files of both, and if the file system can exchange two
    names, the folder is never missing. A link is followed: the folder that it leads to is replaced. Raises OSError.
    """
    if path.is_symlink() or path.name in ("", ".."):
        path = Path(os.path.realpath(path))
    with _naming(path):
        if not path.name:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
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
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. What UTF-8 cannot hold, as a file name may have it, is written as \\udc80."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def discard(folder: Path) -> None:
    """Remove a folder. It disappears at once for every reader; if a kill leaves parts, `sweep` removes them later.

    Raises OSError.
    """
    doomed = folder.with_name(temporary_name(folder.name, ".tmp"))
    os.replace(folder, doomed)
    remove(doomed)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors inside the block into an OSError that names `path`, not the temporary file, and says the reason."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            if not any(is_temporary(part) for part in Path(os.fsdecode(error.filename)).parts):
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


def _refuse_device(path: Path) -> None:
    """Raise OSError for a device or a pipe: a rename would put a file in the place of /dev/null."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # there is no file, or a link that leads nowhere
            return
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a device or a pipe, not a regular file", str(path))


def _new_file(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path`, and its mode, which follows the umask."""
    temporary = path.with_name(temporary_name(path.name, ".tmp", path.suffix))
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return temporary, stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _new_folder(path: Path, ending: str = ".tmp") -> Path:
    """A new empty folder beside `path`; its mode follows the umask."""
    temporary = path.with_name(temporary_name(path.name, ending))
    temporary.mkdir()
    return temporary


def _set_mode(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # the file system has no modes
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            os.chmod(path, mode)


def _settle(folder: Path, mode: int) -> None:
    """Give all files in `folder` the modes of the umask, since libraries write private files, and flush them."""
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
    """Write a file or folder to the disk, so that after a loss of power a rename never leads to an empty file."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # it cannot be flushed
            raise
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    if os.name != "nt":  # Windows cannot open a folder
        with suppress(OSError):
            _flush(path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`. What had that name before is called `temporary` afterwards, or is removed."""
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
        remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot. Raises OSError."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # only Linux has this call
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
