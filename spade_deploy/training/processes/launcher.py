"""Make a process notice that torchrun (or a Ray worker), which started it, was killed; otherwise it would train on.

When a process ends, the system gives its children another parent. torchrun is the parent of this process, or an
ancestor where a script stands between them, so a parent that has changed means that torchrun or that script is gone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

POLL_S = 1.0
LOST = "the end of torchrun or of the Ray worker that started it,"
_NAMES = (b"torchrun", b"torch.distributed.run", b"torch/distributed/run", b"torch.distributed.launch")


class Launcher:
    """The ancestors of this process up to torchrun. `is_lost` is True once one of them is gone."""

    def __init__(self) -> None:
        self.is_lost = False
        self._ancestors = _ancestors_to_torchrun()

    def look(self) -> bool:
        """Look whether one of the ancestors has ended."""
        parents = [os.getppid(), *(_parent(pid) for pid in self._ancestors[:-1])]
        self.is_lost = self.is_lost or parents != self._ancestors
        return self.is_lost


@contextmanager
def watched_launcher(environment: Mapping[str, str]) -> Iterator[Launcher | None]:
    """A block in which this process gets SIGTERM if torchrun was killed before it could send that itself.

    Yields None if torchrun did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        yield None
        return
    launcher, over = Launcher(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if launcher.look():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="launcher watch", daemon=True)
    thread.start()
    try:
        yield launcher
    finally:
        over.set()
        thread.join()


def _ancestors_to_torchrun() -> list[int]:
    """The parent, its parent, and so on up to torchrun; only the parent if the system does not show which that is."""
    ancestors = [os.getppid()]
    while not _is_torchrun(ancestors[-1]):
        above = _parent(ancestors[-1])
        if above <= 1:
            return ancestors[:1]
        ancestors.append(above)
    return ancestors


def _is_torchrun(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in _NAMES)


def _parent(pid: int) -> int:
    """The parent of a process; 0 if there is no such process, or the system does not report it."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(facts.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
