"""A real file system with room for very little, so that it fills."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a tmpfs at a new folder. The test is skipped where this may not be done: only root may, and only on Linux.

    `size_bytes` is rounded up to whole pages; `grow` changes it.
    """
    folder.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder], capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def grow(folder: Path, size_bytes: int) -> None:
    """Give a mounted file system more room."""
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", folder], check=True)


def is_full(folder: Path) -> bool:
    """Whether not even a page is free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < 1 << 12
