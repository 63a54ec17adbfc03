"""The queue in front of the runtimes: requests in order, in batches where that helps, none after its deadline.

One thread runs everything, since a runtime takes all cores, or the GPU, by itself. Whoever waits for a result may give
up at any time: what has not begun is dropped.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import PIXELS, Arrays, joined
from spade_deploy.engines.base import Runtime
from spade_deploy.errors import SpadeError


class QueueFullError(SpadeError):
    """As many requests wait as may wait."""


class DeadlineError(SpadeError):
    """The request was not begun before its time was over."""


class OvertakenError(SpadeError):
    """A newer request of the same drawing came before this one was begun."""


class StoppedError(SpadeError):
    """The server is going down."""


@dataclass(frozen=True)
class Made:
    """An image, and what it took."""

    pixels: NDArray[np.uint8]
    """H x W x 3, RGB."""
    queue_s: float
    """Seconds that the request waited."""
    run_s: float
    """Seconds of the run that made it, patterns included."""
    patterns_s: float | None
    """Seconds of those that went into finding patterns; None where a graph without patterns ran."""
    batch: int
    """How many images that run made."""

    def stages_s(self, decode_s: float, encode_s: float) -> dict[str, float]:
        """Seconds of each stage of the request, by name, in order."""
        patterns_s = self.patterns_s or 0.0
        run_s = self.run_s - patterns_s
        return {"decode": decode_s, "queue": self.queue_s, "patterns": patterns_s, "run": run_s, "encode": encode_s}


@dataclass(frozen=True)
class BatchRule:
    """How many images a run of a model makes at most, and how long it waits for them."""

    most: int = 1
    """The largest batch."""
    delay_s: float = 0.0
    """Seconds that the first of a batch waits for others."""


@dataclass(eq=False)
class Work:
    """One image that is to be made."""

    runtime: Runtime
    """What makes it."""
    inputs: Arrays
    """The inputs of one image, as `engines.base.check_inputs` wants them."""
    rule: BatchRule
    """Of its model."""
    deadline: float
    """By `time.monotonic`: it is not begun after that."""
    result: Future[Made] = field(default_factory=Future)
    """The image, or why there is none."""
    queued: float = field(default_factory=time.monotonic)
    """When it came."""

    def fits(self, other: Work) -> bool:
        """Whether both can be one batch."""
        if self.runtime is not other.runtime:
            return False
        return {name: array.shape[1:] for name, array in self.inputs.items()} == {
            name: array.shape[1:] for name, array in other.inputs.items()
        }


class Runner:
    """Runs what is submitted, in order. most_waiting: the size of the queue."""

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._is_open = True
        self._running = 0
        self._image_s = 0.0
        self._thread = threading.Thread(target=self._loop, name="spade-runner", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many images are being made."""
        return self._running

    @property
    def is_full(self) -> bool:
        """Whether nothing more may wait. Those who gave up, or whose time is over, make room first."""
        with self._changed:
            if len(self._waiting) >= self._most:
                self._drop_dead()
            return len(self._waiting) >= self._most

    @property
    def image_s(self) -> float:
        """Seconds that an image took lately; 0 before the first one."""
        return self._image_s

    def submit(self, work: Work, instead_of: Work | None = None) -> None:
        """Queue it. Raises QueueFullError, and StoppedError once `close` was called.

        instead_of: an older request of the same drawing. If it still waits, the new one takes its place, and it ends
        with OvertakenError.
        """
        with self._changed:
            if not self._is_open:
                raise StoppedError("the server is shutting down", hint="send it to another server, or again later")
            if instead_of is not None and instead_of in self._waiting:
                self._waiting[self._waiting.index(instead_of)] = work
                _fail(instead_of, OvertakenError("a newer request for this drawing arrived"))
                return
            if self.is_full:
                raise QueueFullError(
                    f"{len(self._waiting)} requests are already waiting", hint="send it again a little later"
                )
            self._waiting.append(work)
            self._changed.notify()

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take nothing more; run what waits for at most `drain_s` seconds, and refuse the rest."""
        end = time.monotonic() + drain_s
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._running, timeout=max(0.0, drain_s))
            while self._waiting:
                _fail(self._waiting.popleft(), StoppedError("the server shut down before it began with this request"))
            self._changed.notify_all()
        self._thread.join(timeout=max(0.1, end - time.monotonic()))

    def _loop(self) -> None:
        while (batch := self._next()) is not None:
            try:
                if batch:
                    self._run(batch)
            finally:
                with self._changed:
                    self._running = 0
                    self._changed.notify_all()

    def _next(self) -> list[Work] | None:
        """The works that run now; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
            if not self._waiting:
                return None
            first = self._waiting[0]
            if first.rule.most > 1:
                due = first.queued + first.rule.delay_s
                while self._is_open and self._count_like(first) < first.rule.most:
                    if (left := due - time.monotonic()) <= 0 or not self._changed.wait(left):
                        break
            self._drop_dead()
            if not self._waiting:
                return []
            first = self._waiting[0]
            batch = [one for one in self._waiting if one.fits(first)][: first.rule.most]
            for one in batch:
                self._waiting.remove(one)
            self._running = len(batch)
            return [one for one in batch if one.result.set_running_or_notify_cancel()]

    def _count_like(self, first: Work) -> int:
        return sum(one.fits(first) for one in self._waiting)

    def _drop_dead(self) -> None:
        now = time.monotonic()
        for one in list(self._waiting):
            if one.result.cancelled():
                self._waiting.remove(one)
            elif now > one.deadline:
                self._waiting.remove(one)
                _fail(one, DeadlineError("the request waited longer than the time limit", hint="send it again later"))

    def _run(self, batch: Sequence[Work]) -> None:
        start = time.monotonic()
        try:
            made = self._make(batch)
        except Exception as error:  # whatever an engine raises ends this request, never the thread
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for one in batch:  # one of them is at fault: the others get their images
                self._run([one])
            return
        taken = (time.monotonic() - start) / len(batch)
        self._image_s = taken if not self._image_s else 0.8 * self._image_s + 0.2 * taken
        for one, image in zip(batch, made, strict=True):
            one.result.set_result(replace(image, queue_s=start - one.queued))

    def _make(self, batch: Sequence[Work]) -> list[Made]:
        runtime = batch[0].runtime
        start = time.monotonic()
        inputs = batch[0].inputs if len(batch) == 1 else joined([one.inputs for one in batch])
        pixels = runtime.run(inputs, [PIXELS])[PIXELS]
        run_s = time.monotonic() - start
        return [Made(one, 0.0, run_s, runtime.patterns_s, len(batch)) for one in pixels]


def _fail(work: Work, error: Exception) -> None:
    if work.result.set_running_or_notify_cancel():
        work.result.set_exception(error)
