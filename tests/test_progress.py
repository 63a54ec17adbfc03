"""The progress of a job: who listens hears it, and who does not is no trouble."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from spade_deploy.progress import NO_FIGURES, SILENT, Figures, Progress, Silent, StepTimes
from tests.support.listener import Listener


def job(progress: Progress = SILENT) -> None:
    progress.step("counting")
    for done in range(3):
        progress.count("things", done, 2, Figures(per_second=5.0))
    progress.count("other things", 1, 1)
    progress.note("there were two")


def test_nobody_has_to_listen() -> None:
    job()


def test_a_listener_hears_all_of_it_in_order() -> None:
    heard = Listener()
    job(heard)
    assert heard.steps == ["counting"]
    assert heard.counts == [("things", 0, 2), ("things", 1, 2), ("things", 2, 2), ("other things", 1, 1)]
    assert [figures.per_second for figures in heard.figures] == [5.0] * 3 + [None]
    assert heard.figures[-1] is NO_FIGURES
    assert heard.notes == ["there were two"]


def test_a_listener_overrides_what_it_wants_to_hear() -> None:
    said: list[str] = []

    class Steps(Silent):
        def step(self, what: str) -> None:
            said.append(what)

    job(Steps())
    assert said == ["counting"]


def test_a_listener_that_raises_ends_the_job() -> None:
    class Raising(Listener):
        def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
            super().count(what, done, total, figures)
            if done == 1:
                raise RuntimeError("enough")

    heard = Raising()
    with pytest.raises(RuntimeError, match="enough"):
        job(heard)
    assert heard.counts == [("things", 0, 2), ("things", 1, 2)]


def test_figures_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NO_FIGURES.per_second = 1.0  # type: ignore[misc]


def test_it_loads_nothing_but_itself() -> None:
    code = (
        "import sys, spade_deploy.progress; print(*(name for name in sys.modules if name.startswith('spade_deploy.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"spade_deploy.progress", "spade_deploy.version"}


def test_each_step_is_timed_until_the_next_one_begins() -> None:
    clock = iter([10.0, 12.5, 20.0])
    heard = Listener()
    timed = StepTimes(heard, lambda: next(clock))
    timed.step("first")
    timed.count("things", 1, 2)
    timed.note("a note")
    timed.step("second")
    assert timed.seconds() == (("first", 2.5), ("second", 7.5))
    assert heard.steps == ["first", "second"]
    assert heard.notes == ["a note"]


def test_a_job_without_steps_has_no_times() -> None:
    assert StepTimes(SILENT).seconds() == ()
