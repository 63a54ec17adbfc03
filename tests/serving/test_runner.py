"""The queue in front of the runtimes: order, batches, deadlines, and what is dropped before it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import LABEL, PIXELS, Arrays
from spade_deploy.serving.runner import (
    BatchRule,
    DeadlineError,
    OvertakenError,
    QueueFullError,
    Runner,
    StoppedError,
    Work,
)


class Gate:
    """A runtime that waits until it is opened, and answers with the ids that it was fed."""

    patterns_s = 0.0

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[int] = []
        self.values: list[int] = []
        """The id of the first map of each batch."""

    def run(self, inputs: Mapping[str, Any], output_names: Sequence[str] | None = None) -> Arrays:
        self.begun.release()
        assert self.go.wait(20)
        self.batches.append(len(inputs[LABEL]))
        self.values.append(int(inputs[LABEL][0, 0, 0]))
        if (inputs[LABEL] == 255).any():
            raise ValueError("a bad map")
        return {PIXELS: np.repeat(inputs[LABEL][..., None], 3, 3)}

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=20)


def work(gate: Any, value: int = 1, seconds: float = 20, rule: BatchRule | None = None, side: int = 4) -> Work:
    inputs = {LABEL: np.full((1, side, side), value, np.uint8)}
    return Work(gate, inputs, rule or BatchRule(), time.monotonic() + seconds)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def runner(gate: Gate) -> Iterator[Runner]:
    found = Runner(4)
    yield found
    gate.go.set()
    found.close()


def value_of(one: Work) -> int:
    return int(one.result.result(20).pixels[0, 0, 0])


def test_everyone_gets_the_own_image_in_order(runner: Runner, gate: Gate) -> None:
    gate.go.set()
    works = []
    for value in range(20):
        while runner.is_full:
            time.sleep(0.001)
        works.append(work(gate, value))
        runner.submit(works[-1])
    assert [value_of(one) for one in works] == list(range(20))
    assert gate.batches == [1] * 20


def test_more_than_may_wait_are_refused_and_the_others_run(runner: Runner, gate: Gate) -> None:
    first = work(gate)
    runner.submit(first)
    gate.wait_begun()
    waiting = [work(gate, value) for value in range(4)]
    for one in waiting:
        runner.submit(one)
    with pytest.raises(QueueFullError):
        runner.submit(work(gate, 9))
    gate.go.set()
    assert [value_of(one) for one in (first, *waiting)] == [1, 0, 1, 2, 3]


def test_a_request_that_was_given_up_makes_room(runner: Runner, gate: Gate) -> None:
    runner.submit(work(gate))
    gate.wait_begun()
    waiting = [work(gate, value) for value in range(4)]
    for one in waiting:
        runner.submit(one)
    assert waiting[1].result.cancel()
    late = work(gate, 9)
    runner.submit(late)
    gate.go.set()
    assert value_of(late) == 9
    assert gate.batches == [1] * 5, "what was given up never ran"


def test_nothing_is_begun_after_its_deadline(runner: Runner, gate: Gate) -> None:
    runner.submit(work(gate))
    gate.wait_begun()
    late, other = work(gate, seconds=0.01), work(gate, 5)
    runner.submit(late)
    runner.submit(other)
    time.sleep(0.05)
    gate.go.set()
    with pytest.raises(DeadlineError):
        late.result.result(20)
    assert value_of(other) == 5
    assert gate.batches == [1, 1]


def test_a_newer_map_takes_the_place_of_the_older_one(runner: Runner, gate: Gate) -> None:
    first = work(gate)
    runner.submit(first)
    gate.wait_begun()
    older, between = work(gate, 2), work(gate, 3)
    runner.submit(older)
    runner.submit(between)
    newer = work(gate, 4)
    runner.submit(newer, instead_of=older)
    with pytest.raises(OvertakenError):
        older.result.result(20)
    assert runner.waiting == 2
    gate.go.set()
    assert [value_of(newer), value_of(between)] == [4, 3]
    assert gate.values == [1, 4, 3]
    after = work(gate, 6)
    runner.submit(after, instead_of=first)  # it ran long ago
    assert value_of(after) == 6
    assert value_of(first) == 1


def test_batches_hold_what_fits_together_and_one_bad_map_spoils_no_other(runner: Runner, gate: Gate) -> None:
    rule = BatchRule(3, 0.0)
    runner.submit(work(gate, rule=rule))
    gate.wait_begun()
    works = [
        work(gate, 1, rule=rule),
        work(gate, 255, rule=rule),
        work(gate, 2, rule=rule, side=8),
        work(gate, 3, rule=rule),
    ]
    for one in works:
        runner.submit(one)
    gate.go.set()
    assert [value_of(works[0]), value_of(works[3]), value_of(works[2])] == [1, 3, 2]
    with pytest.raises(ValueError, match="a bad map"):
        works[1].result.result(20)
    assert gate.batches == [1, 3, 1, 1, 1, 1], "three at once, then each alone, then the other size"
    assert works[2].result.result().batch == 1


def test_a_batch_waits_for_others_as_long_as_the_rule_says(runner: Runner, gate: Gate) -> None:
    gate.go.set()
    rule = BatchRule(2, 20.0)
    first, second = work(gate, 1, rule=rule), work(gate, 2, rule=rule)
    runner.submit(first)
    runner.submit(second)
    assert [value_of(first), value_of(second)] == [1, 2]
    assert gate.batches == [2]
    alone = work(gate, 3, rule=BatchRule(2, 0.01))
    runner.submit(alone)
    assert value_of(alone) == 3


def test_closing_runs_what_waits_or_refuses_it(gate: Gate) -> None:
    runner = Runner(4)
    first, second = work(gate), work(gate, 2)
    runner.submit(first)
    gate.wait_begun()
    runner.submit(second)
    threading.Timer(0.05, gate.go.set).start()
    runner.close(drain_s=20)
    assert [value_of(first), value_of(second)] == [1, 2]
    with pytest.raises(StoppedError):
        runner.submit(work(gate))

    shut, other = Gate(), Runner(4)
    begun, waits = work(shut), work(shut, 2)
    other.submit(begun)
    shut.wait_begun()
    other.submit(waits)
    other.close(drain_s=0)
    with pytest.raises(StoppedError):
        waits.result.result(20)
    shut.go.set()
    assert value_of(begun) == 1
