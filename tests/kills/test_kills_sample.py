"""A sample of the kills; all of them are `python -m tests.kills --kills 50 --seed 0`."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .run import Killer, kill_all
from .scenarios import Export, Infer, Scenario, Training, leftovers, run_spade, scenarios

SEED = 3


@pytest.mark.parametrize(("scenario", "kills"), [(Training(), 3), (Infer(), 3)], ids=["train", "infer"])
def test_a_sample_of_kills_loses_nothing_and_leaves_nothing(scenario: Scenario, kills: int, tmp_path: Path) -> None:
    results = kill_all([scenario], kills, SEED, tmp_path)
    assert not [problem for result in results for problem in result.problems]
    assert sum(len(result.kills) for result in results) == kills


def test_engines_that_were_built_survive_kills(tmp_path: Path) -> None:
    build = next((scenario for scenario in scenarios() if scenario.name == "build"), None)
    if build is None:
        pytest.skip("tensorrt-rtx is not installed")
    results = kill_all([build], 2, SEED, tmp_path)
    assert not [problem for result in results for problem in result.problems]


def test_every_command_that_the_page_names_is_killed() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "kills `train`, `infer`, `export` and `build`" in page
    assert {Training.name, Infer.name, Export.name} <= {scenario.name for scenario in scenarios()}


# --- The harness sees what is lost and what is left ---


class _Careless(Scenario):
    """A command that keeps nothing: the second run finds what the first one lost."""

    name = "careless"
    command = ("infer", "data/labels", "out", "--artifact", "artifact", "--threads", "1")

    def prepare(self, folder: Path) -> None:
        Infer().prepare(folder)

    def state(self, folder: Path) -> dict[str, Any]:
        return {"always": 1}

    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / ".hidden.tmp").touch()
        yield "something was lost"

    def facts(self, folder: Path) -> dict[str, Any]:
        return {"results": sorted(path.name for path in (folder / "out").glob("[!.]*")), "at": folder.name}


def test_what_is_lost_other_or_left_is_told(tmp_path: Path) -> None:
    result = Killer(_Careless(), tmp_path, random.Random(0)).chain(1, 1)
    told = " | ".join(result.problems)
    assert "something was lost" in told
    assert "at differs from the unbroken run: unbroken -> chain-1" in told
    assert "left behind: out/.hidden.tmp" in told


def test_a_kill_is_where_it_should_be(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    Infer().prepare(folder)
    ended = run_spade(Infer.command, folder, kill_at=1)
    assert (ended.code, ended.changes) == (-signal.SIGKILL, None)
    assert not (folder / "out").exists(), "the first change is the results' folder"
    whole = run_spade(Infer.command, folder)
    assert whole.code == 0
    assert whole.changes is not None
    assert whole.changes > 12
    assert len(list((folder / "out").glob("*.png"))) == 12


def test_locks_are_no_leftovers(tmp_path: Path) -> None:
    for name in (".lock", ".out.lock", "a.png", ".a.png.x.tmp.png", "b.tmp"):
        (tmp_path / name).touch()
    assert sorted(leftovers(tmp_path, tmp_path / "none")) == [".a.png.x.tmp.png", "b.tmp"]
