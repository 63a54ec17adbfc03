"""SIGTERM ends a command as Ctrl-C does; both wait while a library is imported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end_as_ctrl_c() -> None:
    """From now on SIGTERM raises KeyboardInterrupt in the main thread, unless the process began with it ignored.

    Without a handler SIGTERM ends a process at once, and not at all if it is the first of a container.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """A block in which SIGINT and SIGTERM wait until it ends.

    Extension modules turn a KeyboardInterrupt inside of their import into an ImportError, and some lose it: the package
    then seems not to be installed. Outside the main thread, which gets no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    # A handler that Python did not set is None, and could not be put back.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changed = {number: handler for number, handler in before.items() if callable(handler)}
    for number in changed:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
        for came_number in came[:1]:
            signal.raise_signal(came_number)
