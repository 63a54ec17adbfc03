"""torchrun, as the processes see it that it started: where it is killed, nobody tells them, and they would train on.

A process whose parent ends gets another one. torchrun is the parent, or an ancestor where a script stands between.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

POLL_S = 1.0
LOST = "the end of torchrun, which started it,"
_NAMES = (b"torchrun", b"torch.distributed.run", b"torch/distributed/run", b"torch.distributed.launch")


class Launcher:
    """The processes between this one and torchrun. is_lost: whether one of them is gone."""

    def __init__(self) -> None:
        self.is_lost = False
        self._line = _line_to_torchrun()

    def look(self) -> bool:
        """Whether one of them is gone now."""
        parents = [os.getppid(), *(_parent(pid) for pid in self._line[:-1])]
        self.is_lost = self.is_lost or parents != self._line
        return self.is_lost


@contextmanager
def watched_launcher(environment: Mapping[str, str]) -> Iterator[Launcher | None]:
    """A block in which the end of torchrun is a SIGTERM, which it sends itself where it can; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        yield None
        return
    launcher, over = Launcher(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if launcher.look():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="launcher", daemon=True)
    thread.start()
    try:
        yield launcher
    finally:
        over.set()
        thread.join()


def _line_to_torchrun() -> list[int]:
    """The parent, its parent, ..., torchrun; the parent alone where the system does not tell which one is torchrun."""
    line = [os.getppid()]
    while not _is_torchrun(line[-1]):
        above = _parent(line[-1])
        if above <= 1:
            return line[:1]
        line.append(above)
    return line


def _is_torchrun(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in _NAMES)


def _parent(pid: int) -> int:
    """0 where there is no such process, or the system does not tell."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(facts.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
