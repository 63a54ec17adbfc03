"""A worker as the process that plans sees it."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any

from spade_deploy.errors import line_of
from spade_deploy.inference.jobs import Job
from spade_deploy.inference.workers.messages import Start, receive, send

Event = tuple["Worker", tuple[Any, ...] | None]
"""A worker, and what it says; None when it has ended."""


class Worker:
    """One process. It is told its work at once; `events` gets all that it says."""

    def __init__(self, number: int, start: Start, environment: dict[str, str], events: queue.Queue[Event]) -> None:
        self.number = number
        self.is_ready = False
        """Whether it has loaded the model."""
        self.has_ended = False
        """Whether it has said that it is done."""
        self.given: dict[str, Job] = {}
        """The jobs that it has, by their ids, in the order in which it was given them."""
        self._events = events
        # stderr goes to a file: nobody has to read it meanwhile, and it keeps the last words of a killed worker.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # -P: a file in the current folder must not take the place of a library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spade_deploy.inference.workers.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **environment},
        )
        self._say("work", start)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def give(self, job: Job) -> None:
        """Hand it a job."""
        self.given[job.id] = job
        self._say("job", job)

    def end(self) -> None:
        """Tell it that there are no more jobs."""
        self._say("end")

    def stop(self) -> None:
        """Tell it to finish the files that it is writing, and nothing else."""
        assert self._process.stdin is not None
        with suppress(OSError):  # closing flushes the pipe, which fails if the process has ended
            self._process.stdin.close()

    def close(self, limit_s: float) -> None:
        """Wait until it has ended; after `limit_s` seconds it is killed."""
        self.stop()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def obituary(self) -> str:
        """How it ended, in a sentence."""
        code, who = self._process.wait(), f"worker {self.number} (process {self._process.pid})"
        if code < 0:
            more = ", as the system does when memory runs out" if code == -9 else ""
            return f"{who} was killed by signal {-code}{more}"
        self._stderr.seek(0)
        said = line_of(self._stderr.read().decode("utf-8", "replace"), last=True)
        return f"{who} ended with code {code}" + (f": {said}" if said else "")

    def _say(self, *message: Any) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, which the listener finds out
            send(self._process.stdin, *message)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while (message := receive(self._process.stdout)) is not None:
            self._events.put((self, message))
        self._events.put((self, None))
