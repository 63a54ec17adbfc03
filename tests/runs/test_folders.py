"""Run folders: what is newest, what an explicit path means, what is skipped and what is refused."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from spade_deploy import runs
from spade_deploy.errors import ArtifactError, CheckpointError, NotFoundError
from tests.support.checkpoints import checkpoint_info


def make_checkpoint(run: Path, step: int, created: int, digest: str = "a" * 64, **changes: Any) -> Path:
    folder = runs.checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / runs.CHECKPOINT_JSON).write_text(json.dumps(checkpoint_info(created, step, digest, **changes).to_json()))
    for name in (runs.GENERATOR_FILE, runs.DISCRIMINATOR_FILE, runs.OPTIMIZERS_FILE):
        (folder / name).write_bytes(b"")
    return folder


def make_artifact(run: Path, created: int) -> Path:
    folder = run / runs.ARTIFACT
    folder.mkdir(parents=True)
    (folder / runs.MANIFEST_JSON).write_text(json.dumps({"created_unix_ns": created}))
    return folder


class TestNewest:
    def test_the_recorded_time_counts_and_not_the_files_own(self, tmp_path: Path) -> None:
        newer = make_checkpoint(tmp_path / "a", 10, created=200)
        older = make_checkpoint(tmp_path / "b", 20, created=100)
        os.utime(newer / runs.CHECKPOINT_JSON, (1, 1))
        os.utime(older / runs.CHECKPOINT_JSON, (2_000_000_000, 2_000_000_000))
        assert runs.newest_checkpoint(tmp_path) == newer

    def test_inside_a_run_the_step_counts_and_not_the_clock(self, tmp_path: Path) -> None:
        """A clock that went back: the later step has the earlier date."""
        first = make_checkpoint(tmp_path / "a", 9, created=300)
        second = make_checkpoint(tmp_path / "a", 10, created=200)
        last = make_checkpoint(tmp_path / "a", 100, created=100)
        assert runs.run_checkpoints(tmp_path / "a") == [first, second, last]
        assert runs.resolve_checkpoint(tmp_path / "a", tmp_path) == last
        assert runs.newest_checkpoint(tmp_path) == last
        other = make_checkpoint(tmp_path / "b", 1, created=150)
        assert runs.newest_checkpoint(tmp_path) == other, "between runs it is the date of the last step"
        assert runs.newest_run_to_resume(tmp_path) == tmp_path / "b"

    def test_a_later_checkpoint_that_is_damaged_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Otherwise an export after a crash would silently be of an older model."""
        early = make_checkpoint(tmp_path / "a", 1, created=100)
        good = make_checkpoint(tmp_path / "a", 2, created=200)
        (early / runs.CHECKPOINT_JSON).write_text("{")
        assert runs.resolve_checkpoint(tmp_path / "a", tmp_path) == good
        assert caplog.text == "", "an older one that is damaged changes nothing"
        bad = make_checkpoint(tmp_path / "a", 3, created=300)
        (bad / runs.CHECKPOINT_JSON).write_text("{")
        for find in (
            lambda: runs.resolve_checkpoint(tmp_path / "a", tmp_path),
            lambda: runs.newest_checkpoint(tmp_path),
        ):
            caplog.clear()
            assert find() == good
            assert f"{good} is used, since the later checkpoint {bad.name} is damaged" in caplog.text

    @pytest.mark.parametrize("find", ["checkpoint", "artifact", "run_to_resume"])
    def test_a_date_in_the_future_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, find: str) -> None:
        now = time.time_ns()
        make_checkpoint(tmp_path / "now", 1, created=now)
        make_artifact(tmp_path / "now", created=now)
        search = getattr(runs, f"newest_{find}")
        search(tmp_path)
        assert caplog.text == "", "a date of today is nothing to tell"
        make_checkpoint(tmp_path / "later", 1, created=now + 10**18)
        make_artifact(tmp_path / "later", created=now + 10**18)
        assert "later" in search(tmp_path).as_posix()
        assert str(tmp_path / "later") in caplog.text
        assert f"its date {time.gmtime((now + 10**18) / 1e9).tm_year}" in caplog.text
        assert "in the future" in caplog.text
        make_checkpoint(tmp_path / "never", 1, created=1 << 200)
        make_artifact(tmp_path / "never", created=1 << 200)
        assert "later" in search(tmp_path).as_posix(), "a date beyond 64 bits is damage"

    def test_ties_go_to_the_last_path(self, tmp_path: Path) -> None:
        for run in ("b", "c", "a"):
            make_checkpoint(tmp_path / run, 1, created=5)
        assert runs.newest_checkpoint(tmp_path).parent.parent.name == "c"

    @pytest.mark.parametrize(
        "damage", ["", "{", "[]", '{"created_unix_ns": "late"}', '{"created_unix_ns": true}', "\x00"]
    )
    def test_damaged_ones_are_skipped_in_a_search(self, tmp_path: Path, damage: str) -> None:
        good = make_checkpoint(tmp_path / "a", 1, created=1)
        bad = make_checkpoint(tmp_path / "b", 1, created=9)
        (bad / runs.CHECKPOINT_JSON).write_text(damage)
        artifact = make_artifact(tmp_path / "a", 1)
        (make_artifact(tmp_path / "b", 9) / runs.MANIFEST_JSON).write_text(damage)
        assert runs.newest_checkpoint(tmp_path) == good
        assert runs.newest_artifact(tmp_path) == artifact

    def test_what_is_being_written_and_what_lacks_weights_is_skipped(self, tmp_path: Path) -> None:
        good = make_checkpoint(tmp_path / "a", 1, created=1)
        writing = make_checkpoint(tmp_path / "a", 2, created=2)
        writing.rename(writing.with_name(".step_00000002.x.tmp"))
        (make_checkpoint(tmp_path / "a", 3, created=3) / runs.GENERATOR_FILE).unlink()
        assert runs.newest_checkpoint(tmp_path) == good
        assert runs.run_checkpoints(tmp_path / "a") == [good]

    def test_nothing_to_find_names_the_command_that_makes_it(self, tmp_path: Path) -> None:
        for find, command in (
            (runs.newest_checkpoint, "spade train"),
            (runs.newest_checkpoint, "spade import"),
            (runs.newest_artifact, "spade export"),
            (runs.newest_run_to_resume, "spade train"),
        ):
            with pytest.raises(NotFoundError) as caught:
                find(tmp_path / "runs")
            assert command in str(caught.value.hint)

    def test_the_run_to_resume_is_the_newest_with_a_training_state(self, tmp_path: Path) -> None:
        make_checkpoint(tmp_path / "trained", 5, created=1)
        make_checkpoint(
            tmp_path / "imported", 0, created=9, origin="import", discriminator_sha256="", optimizers_sha256=""
        )
        (make_checkpoint(tmp_path / "partly", 5, created=8) / runs.OPTIMIZERS_FILE).unlink()
        assert runs.newest_run_to_resume(tmp_path) == tmp_path / "trained"


class TestResolve:
    def test_a_checkpoint_a_file_inside_it_and_its_run(self, tmp_path: Path) -> None:
        first = make_checkpoint(tmp_path / "a", 1, created=1)
        second = make_checkpoint(tmp_path / "a", 2, created=2)
        other = make_checkpoint(tmp_path / "b", 1, created=3)
        assert runs.resolve_checkpoint(first, tmp_path) == first
        assert runs.resolve_checkpoint(first / runs.GENERATOR_FILE, tmp_path) == first
        assert runs.resolve_checkpoint(first / runs.CHECKPOINT_JSON, tmp_path) == first
        assert runs.resolve_checkpoint(tmp_path / "a", tmp_path) == second
        assert runs.resolve_checkpoint(None, tmp_path) == other

    def test_a_released_file_is_pointed_to_import(self, tmp_path: Path) -> None:
        (tmp_path / "latest_net_G.pth").write_bytes(b"")
        with pytest.raises(CheckpointError, match="is a file") as caught:
            runs.resolve_checkpoint(tmp_path / "latest_net_G.pth", tmp_path)
        assert "spade import" in str(caught.value.hint)

    def test_paths_that_are_nothing_of_the_kind(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "fresh" / runs.CHECKPOINTS).mkdir(parents=True)
        for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "fresh"):
            with pytest.raises(NotFoundError, match=path.name):
                runs.resolve_checkpoint(path, tmp_path)
            with pytest.raises(NotFoundError, match=path.name):
                runs.resolve_artifact(path, tmp_path)

    def test_an_explicit_damaged_checkpoint_is_an_error_also_through_its_run(self, tmp_path: Path) -> None:
        bad = make_checkpoint(tmp_path / "a", 1, created=1)
        (bad / runs.CHECKPOINT_JSON).write_text("{")
        for path in (bad, tmp_path / "a"):
            with pytest.raises(CheckpointError, match=r"checkpoint\.json.*cannot be read as JSON"):
                runs.resolve_checkpoint(path, tmp_path)
        (bad / runs.CHECKPOINT_JSON).unlink()
        with pytest.raises(CheckpointError, match="is missing"):
            runs.resolve_checkpoint(bad, tmp_path)

    def test_an_artifact_its_manifest_and_its_run(self, tmp_path: Path) -> None:
        artifact = make_artifact(tmp_path / "a", 1)
        newer = make_artifact(tmp_path / "b", 2)
        for path in (artifact, artifact / runs.MANIFEST_JSON, tmp_path / "a"):
            assert runs.resolve_artifact(path, tmp_path) == artifact
        assert runs.resolve_artifact(None, tmp_path) == newer
        (artifact / runs.MANIFEST_JSON).write_text("{")
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            runs.resolve_artifact(tmp_path / "a", tmp_path)
        (artifact / "model.onnx").write_bytes(b"")
        with pytest.raises(ArtifactError, match="is a file"):
            runs.resolve_artifact(artifact / "model.onnx", tmp_path)

    def test_by_digest_the_own_run_comes_first(self, tmp_path: Path) -> None:
        near = make_checkpoint(tmp_path / "runs" / "a", 1, created=1, digest="d" * 64)
        make_checkpoint(tmp_path / "runs" / "b", 1, created=2, digest="d" * 64)
        far = make_checkpoint(tmp_path / "runs" / "b", 2, created=3, digest="e" * 64)
        artifact = make_artifact(tmp_path / "runs" / "a", 1)
        found = runs.find_checkpoint_by_digest("d" * 64, artifact, tmp_path / "runs")
        assert found is not None
        assert found.samefile(near)
        assert runs.find_checkpoint_by_digest("e" * 64, artifact, tmp_path / "runs") == far
        assert runs.find_checkpoint_by_digest("f" * 64, artifact, tmp_path / "runs") is None
        assert runs.find_checkpoint_by_digest("e" * 64, tmp_path, tmp_path / "absent") is None
