"""Signals as a program in the foreground has them. Imports nothing of the tests: one of them copies this file."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """For a test that interrupts itself or a child: signals mean what they mean to a program in the foreground.

    A background job of a script begins with SIGINT ignored, one under nohup with SIGHUP, and children inherit that.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
