"""Workers on this machine: each is a process that loads the model once. Jobs go to whoever has the fewest.

A worker that is killed loses nothing: its jobs go to the others, and another worker takes its place. Since one of
these jobs may have been the reason, each is then done by a worker that has no other; the one that ends a second worker
is a failure, and the rest is done.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from spade_deploy.errors import SpadeError
from spade_deploy.inference.jobs import Job, failed
from spade_deploy.inference.work import Crew, Desk, Work
from spade_deploy.inference.workers.messages import Start
from spade_deploy.inference.workers.places import Place
from spade_deploy.inference.workers.worker import Event, Worker

STOP_LIMIT_S = 30.0
"""How long a worker may take to finish the files that it is writing, before it is killed."""
_DEATHS = 2
"""Workers that a job may end before it is a failure."""
_WAIT_S = 1.0
"""How long one wait for a message takes: Windows lets Ctrl-C through only between waits."""


class LocalWorkers(Crew):
    """Several processes of this machine, each at its own place: some cores, or a GPU."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def make(self, work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        """See `Crew.make`."""
        _Shift(self._places[: max(1, len(jobs))], work, jobs, desk).run()


class _Shift:
    """One run of the workers."""

    def __init__(self, places: Sequence[Place], work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        self._places, self._work, self._desk = places, work, desk
        self._pending = deque(jobs)
        self._suspects: deque[Job] = deque()
        self._deaths: dict[str, int] = {}
        self._left = len(jobs)
        self._events: queue.Queue[Event] = queue.Queue()
        self._workers: list[Worker] = []
        self._lost_in_a_row = 0
        self._told: set[str] = set()
        self._has_begun = False  # whether the first worker is ready, and the others were started
        # Enough that a worker can read, run and write at the same time, and few enough that all end together.
        self._window = 8 + 4 * work.batch_size

    def run(self) -> None:
        try:
            self._start(0)  # alone at first, as it may measure which engine is the fastest
            while self._left:
                try:
                    worker, message = self._events.get(timeout=_WAIT_S)
                except queue.Empty:
                    continue
                if message is None:
                    self._bury(worker)
                else:
                    self._hear(worker, *message)
                self._give()
            for worker in self._workers:
                worker.end()
        finally:
            for worker in self._workers:
                worker.stop()
            deadline = time.monotonic() + STOP_LIMIT_S
            for worker in self._workers:
                worker.close(max(0.0, deadline - time.monotonic()))

    def _start(self, number: int) -> None:
        place, work = self._places[number], self._work
        if self._has_begun:
            work = replace(work, images=0)  # what the first one measured is kept
        work = replace(work, engine={**work.engine, "threads": place.threads(work.engine["threads"])})
        start = Start(work, place.cores)
        self._workers.append(Worker(number, start, place.environment, self._events))

    def _hear(self, worker: Worker, kind: str, *said: object) -> None:
        if kind == "done":
            (outcome,) = said
            if worker.given.pop(outcome.id, None) is not None:  # type: ignore[attr-defined]
                self._left -= 1
                self._lost_in_a_row = 0
                self._desk.done(outcome)  # type: ignore[arg-type]
        elif kind == "ready":
            self._desk.admit(*said)  # type: ignore[arg-type]
            worker.is_ready = True
            if not self._has_begun:
                self._has_begun = True
                for number in range(1, len(self._places)):
                    self._start(number)
        elif kind == "error":
            (error,) = said
            raise error  # type: ignore[misc]
        elif kind in ("note", "log") and str(said) not in self._told:  # every worker says the same
            self._told.add(str(said))
            if kind == "note":
                self._desk.progress.note(str(said[0]))
            else:
                name, level, text = said
                logging.getLogger(str(name)).log(int(str(level)), "%s", text)

    def _give(self) -> None:
        """Hand out jobs. Those that may have ended a worker go to one that has no other."""
        ready = [worker for worker in self._workers if worker.is_ready]
        if not ready:
            return
        expected = max(len(self._workers), 1)
        fair = -(-(len(self._pending) + sum(len(worker.given) for worker in ready)) // expected)
        room = min(self._window, max(1, fair))
        for worker in sorted(ready, key=lambda one: len(one.given)):
            if any(job in self._deaths for job in worker.given):
                continue
            if self._suspects:
                if not worker.given:
                    worker.give(self._suspects.popleft())
                    continue
                if worker is min(ready, key=lambda one: len(one.given)):
                    continue  # it is given nothing more, until it has nothing left
            while self._pending and len(worker.given) < room:
                worker.give(self._pending.popleft())

    def _bury(self, worker: Worker) -> None:
        """A worker has ended, though nobody told it to."""
        how, lost = worker.obituary(), list(worker.given.values())
        worker.close(0)
        self._workers.remove(worker)
        self._lost_in_a_row += 1
        if not worker.is_ready and not any(one.is_ready for one in self._workers):
            raise SpadeError(f"{how}, while it loaded the model", hint="fewer `workers` need less memory")
        if self._lost_in_a_row > len(self._places) + _DEATHS:
            raise SpadeError(
                f"{self._lost_in_a_row} workers ended one after another without an image; the last: {how}",
                hint="fewer `workers`, or a smaller `batch_size` or `size`, need less memory",
            )
        again = 0
        for job in lost:
            self._deaths[job.id] = self._deaths.get(job.id, 0) + 1
            if self._deaths[job.id] < _DEATHS:
                self._suspects.append(job)
                again += 1
                continue
            self._left -= 1
            reason = SpadeError(f"it ended {_DEATHS} workers, one after another; the last: {how}")
            self._desk.done(failed(job, reason))
        self._desk.lost(how, again)
        if self._left:
            self._start(worker.number)
