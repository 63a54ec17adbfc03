"""A run that is killed between a checkpoint and what follows it, and resumed, is the unbroken run in every file."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spade_deploy import runs
from spade_deploy.training.loop import train
from tests.support.killed_runs import POINTS, Measured, setup
from tests.support.paths import ROOT

AT_THE_END = ("before the grid", "before measuring", "after the mark of the best")
KILLS = [f"{point} 1" for point in POINTS] + [f"{point} 2" for point in AT_THE_END]
"""In step 2 of 4 or, what comes once a run, in the last; and some of the first kind in the last step, too."""


def contents(run: Path) -> dict[str, Any]:
    """All that a run leaves, without the time that it took."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        elif path.name == runs.CHECKPOINT_JSON:
            found[name] = json.loads(path.read_text()) | {"created_unix_ns": 0, "optimizers_sha256": ""}
        elif path.suffix == ".safetensors":
            found[name] = {key: tensor.tolist() for key, tensor in load_file(path).items()}
        elif path.suffix == ".pt":
            found[name] = str(torch.load(path, weights_only=True))
        elif path.name == "data.json":
            found[name] = json.loads(path.read_text()) | {"run": ""}
        elif path.is_file() and path.suffix != ".lock":
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    run.mkdir()
    assert train(setup(), run=run, source=Measured()).notes == ()
    found = contents(run)
    assert {"best.json", "metrics.csv", "metrics.png", "classes.json", "timeline.png", "samples.gif"} < set(found)
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.support.killed_runs", str(folder), *KILLS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == "", "every point was reached"
    return folder


@pytest.mark.parametrize("name", KILLS)
def test_resuming_makes_up_what_was_due(killed: Path, unbroken: dict[str, Any], name: str) -> None:
    run = killed / name
    assert contents(run) != unbroken, "the kill left something undone"
    resumed = train(setup(), run=run, source=Measured(), resume=runs.run_checkpoints(run)[-1])
    assert resumed.step == 4
    found = contents(run)
    assert set(found) == set(unbroken)
    for file, value in unbroken.items():
        assert found[file] == value, file


def test_a_finished_run_has_nothing_left_to_do_and_says_so(tmp_path: Path, unbroken: dict[str, Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = train(setup(), run=run, source=Measured())
    again = train(setup(), run=run, source=Measured(), resume=first.checkpoint)
    assert (again.step, again.losses, again.checkpoint) == (4, first.losses, first.checkpoint)
    assert len(again.notes) == 1
    assert again.notes[0].startswith("nothing was left to do: ")
    assert "is at step 4 of 4" in again.notes[0]
    assert contents(run) == unbroken
