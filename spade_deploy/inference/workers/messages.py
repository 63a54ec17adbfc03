"""What the process that plans and its workers say to each other, over the worker's stdin and stdout.

A message is a tuple whose first part says what it is. To a worker: ("work", Start), ("job", Job), ("end",). From it:
("ready", Maker, name), ("done", Outcome), ("note", text), ("log", logger, level, text), ("error", exception), ("end",).
Both sides are the same program, so messages are pickles.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import IO, Any

from spade_deploy.inference.work import Work

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Start:
    """The first message to a worker."""

    work: Work
    """What it makes."""

    cores: tuple[int, ...]
    """The cores that it keeps to, where the system has that; empty for all."""


def send(stream: IO[bytes], *message: Any) -> None:
    """Write one message. Raises OSError if nobody reads it."""
    content = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Any, ...] | None:
    """Read one message; None if the other side has ended, also in the middle of a message."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    content = stream.read(_LENGTH.unpack(head)[0])
    if len(content) < _LENGTH.unpack(head)[0]:
        return None
    message: tuple[Any, ...] = pickle.loads(content)
    return message
