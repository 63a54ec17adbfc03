"""A worker: `python -m spade_deploy.inference.workers.process`. It loads the model once, and does the jobs it is given.

Ctrl-C and SIGTERM are a matter of the process that started it. When that closes stdin, or ends in any way, the worker
finishes the files that it is writing, and ends too.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.inference.jobs import Job
from spade_deploy.inference.work import JobRunner
from spade_deploy.inference.workers.messages import Start, receive, send
from spade_deploy.progress import Silent


class _StoppedError(Exception):
    """The other side wants no more images, or is gone."""


class _Inbox(Iterator[Job]):
    """The jobs that arrive on stdin, until the message that there are no more."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._messages: queue.Queue[tuple[Any, ...] | None] = queue.Queue()
        self._is_stopped = False
        threading.Thread(target=self._listen, daemon=True).start()

    def first(self) -> Start:
        """The message that tells what to do."""
        message = self._messages.get()
        if message is None:
            raise _StoppedError
        start: Start = message[1]
        return start

    def is_ready(self) -> bool:
        """Whether the next job, or the end, is here already."""
        if self._is_stopped:
            raise _StoppedError
        return not self._messages.empty()

    def __next__(self) -> Job:
        message = self._messages.get()
        if self._is_stopped or message is None:
            raise _StoppedError
        if message[0] == "end":
            raise StopIteration
        job: Job = message[1]
        return job

    def _listen(self) -> None:
        while (message := receive(self._stream)) is not None:
            self._messages.put(message)
        self._is_stopped = True
        self._messages.put(None)


class _Voice(Silent, logging.Handler):
    """Everything that the worker says. One message at a time, from any thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        logging.Handler.__init__(self)
        self._stream, self._speaking = stream, threading.Lock()

    def say(self, *message: Any) -> None:
        with self._speaking:
            send(self._stream, *message)

    def note(self, text: str) -> None:
        """Pass on a note of the engine that is being loaded."""
        self.say("note", text)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on a warning."""
        self.say("log", record.name, record.levelno, record.getMessage())


def main() -> int:
    """Do jobs until there are no more. Returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler sends SIGTERM to all of a job
        signal.signal(number, signal.SIG_IGN)
    voice, inbox = _Voice(_take_stdout()), _Inbox(sys.stdin.buffer)
    logging.getLogger().addHandler(voice)
    try:
        start = inbox.first()
        if start.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, start.cores)
        with JobRunner(start.work, voice) as runner:
            voice.say("ready", runner.maker, runner.name)
            runner.run(inbox, lambda outcome: voice.say("done", outcome))
    except (_StoppedError, BrokenPipeError):
        return 0
    except SpadeError as error:
        voice.say("error", error)
        return error.exit_code
    except Exception as error:  # a library may raise anything, and the reason must arrive
        voice.say("error", SpadeError(f"a worker failed: {type(error).__name__}: {reason_of(error)}"))
        return 1
    voice.say("end")
    return 0


def _take_stdout() -> IO[bytes]:
    """Keep stdout for the messages alone, and return it. Whatever libraries print goes to stderr instead."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


if __name__ == "__main__":
    sys.exit(main())
