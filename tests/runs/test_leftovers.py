"""What killed trainings and exports left in run folders goes; what a living process writes stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from spade_deploy.errors import NotFoundError
from spade_deploy.files.temporary import temporary_name
from spade_deploy.release.release import export_checkpoint
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.runs.leftovers import sweep_run, sweep_runs
from tests.support.generators import build_generator
from tests.support.temporary_names import of_a_dead_process


def half_an_artifact(run: Path) -> Path:
    folder = of_a_dead_process(run, "artifact")
    folder.mkdir(parents=True)
    (folder / "generator.fp32.onnx").write_bytes(b"half")
    return folder


def test_parts_of_artifacts_go_from_every_run(tmp_path: Path) -> None:
    left = [half_an_artifact(tmp_path / name) for name in ("a-001", "b-002")]
    living = tmp_path / "a-001" / temporary_name("artifact", ".tmp")
    living.mkdir()
    sweep_runs(tmp_path)
    assert not any(folder.exists() for folder in left)
    assert living.is_dir()


def test_a_run_loses_parts_of_checkpoints_and_pictures_of_old_names_too(tmp_path: Path) -> None:
    run = tmp_path / "a-001"
    left = [of_a_dead_process(run / "checkpoints", "step_00000004"), of_a_dead_process(run / "samples", "x.png")]
    left.append(run / "checkpoints" / ".step_00000004.k2x.tmp")  # as version 0.1.0 and older named them
    for folder in left:
        folder.mkdir(parents=True)
    kept = run / "checkpoints" / "step_00000002"
    kept.mkdir()
    sweep_run(run)
    assert not any(folder.exists() for folder in left)
    assert kept.is_dir()


def test_no_folder_of_runs_is_no_error(tmp_path: Path) -> None:
    sweep_runs(tmp_path / "runs")


def test_an_export_removes_what_a_killed_one_of_another_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    run = new_run(runs, "new")
    save_checkpoint(checkpoint_folder(run, 0), build_generator(base_channels=2), step=0, origin="import")
    left = half_an_artifact(runs / "old")

    def stop(*_: object) -> None:
        raise NotFoundError("stop here")

    monkeypatch.setattr("spade_deploy.release.release.load_generator", stop)
    with pytest.raises(NotFoundError, match="stop here"):
        export_checkpoint(runs_dir=runs)
    assert not left.exists()
