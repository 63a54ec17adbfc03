"""The parent's side of a worker: it asks, and gets an answer or the reason why the worker is dead."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from spade_deploy.bench.job import Job
from spade_deploy.engines.base import ClosedByWith
from spade_deploy.errors import SpadeError, line_of
from spade_deploy.spec import Precision

ANSWER_LIMIT_S = 900.0
"""torch.compile takes minutes before the first image of a large model."""


class WorkerError(SpadeError):
    """A worker failed or died; the message says how."""


class Worker(ClosedByWith):
    """One candidate's process.

    Once it has started, `precision` is what the candidate really runs in, and `imports_s`, `load_s` and `first_run_s`
    are the parts of its cold start, in seconds.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.imports_s = self.load_s = self.first_run_s = 0.0
        self.imports_bytes: int | None = None
        self.runtime = ""
        self.precision = job.candidate.precision
        folder.mkdir()
        job.write(folder / "job.json")
        # A cache of compiled code from an earlier run would make a cold start a warm one.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        # stderr goes to a file: nobody has to read it meanwhile, and it keeps the last words of a killed worker.
        self._stderr = (folder / "stderr").open("w+b")
        self._born = time.perf_counter()
        # -P: a file in the current folder must not take the place of a library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spade_deploy.bench.worker", str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self) -> None:
        """Wait for the first image. Raises WorkerError."""
        self.imports_bytes = self._answer()["memory_bytes"]
        imported = time.perf_counter()
        answer = self._answer()
        loaded = time.perf_counter()
        self.runtime, self.precision = answer["runtime"], Precision(answer["precision"])
        self._answer()
        self.imports_s, self.load_s = imported - self._born, loaded - imported
        self.first_run_s = time.perf_counter() - loaded

    def ask(self, **message: Any) -> dict[str, Any]:
        """The answer to one message. Raises WorkerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error
        return self._answer()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # closing flushes the pipe, which fails if the process has ended
                    stream.close()
        self._stderr.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=ANSWER_LIMIT_S)
        except queue.Empty:
            raise WorkerError(f"no answer within {ANSWER_LIMIT_S:.0f} s") from None
        if line is None:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], hint=answer["hint"])
        return answer

    def _death(self) -> WorkerError:
        code = self._process.wait()
        if code < 0:
            more = ", as the system does when memory runs out" if code == -9 else ""
            return WorkerError(f"its process was killed by signal {-code}{more}")
        self._stderr.seek(0)
        said = line_of(self._stderr.read().decode("utf-8", "replace"), last=True)
        return WorkerError(f"its process ended with code {code}" + (f": {said}" if said else ""))
