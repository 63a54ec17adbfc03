"""Run folders: what is newest, what an explicit path means, what is skipped and what is refused."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spade_deploy import runs
from spade_deploy.errors import ArtifactError, CheckpointError, ConfigError, NotFoundError
from spade_deploy.spec import GeneratorSpec, LabelSpec

SPEC = GeneratorSpec(LabelSpec(3), base_channels=4, hidden_channels=8, height=32, width=32)


def info(created: int = 1, step: int = 1, digest: str = "a" * 64, **changes: Any) -> runs.CheckpointInfo:
    return runs.CheckpointInfo(
        **{
            "created_unix_ns": created,
            "step": step,
            "origin": "train",
            "generator": SPEC,
            "generator_sha256": digest,
            "discriminator_sha256": "b" * 64,
            "optimizers_sha256": "c" * 64,
            **changes,
        }
    )


def make_checkpoint(run: Path, step: int, created: int, digest: str = "a" * 64, **changes: Any) -> Path:
    folder = runs.checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / runs.CHECKPOINT_JSON).write_text(json.dumps(info(created, step, digest, **changes).to_json()))
    for name in (runs.GENERATOR_FILE, runs.DISCRIMINATOR_FILE, runs.OPTIMIZERS_FILE):
        (folder / name).write_bytes(b"")
    return folder


def make_artifact(run: Path, created: int) -> Path:
    folder = run / runs.ARTIFACT
    folder.mkdir(parents=True)
    (folder / runs.MANIFEST_JSON).write_text(json.dumps({"created_unix_ns": created}))
    return folder


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class TestNewRun:
    def test_default_names_are_numbered_and_never_used_twice(self, tmp_path: Path) -> None:
        assert runs.new_run(tmp_path / "runs", prefix="earth").name == "earth-001"
        assert runs.new_run(tmp_path / "runs", prefix="earth").name == "earth-002"
        assert runs.new_run(tmp_path / "runs", prefix="coco").name == "coco-001"
        shutil.rmtree(tmp_path / "runs" / "earth-001")
        assert runs.new_run(tmp_path / "runs", prefix="earth").name == "earth-003", "numbers go on, gaps stay"

    def test_a_name_that_is_taken_is_refused_with_the_way_to_continue_it(self, tmp_path: Path) -> None:
        runs.new_run(tmp_path, "mine")
        with pytest.raises(ConfigError, match=r"`name`.*mine exists") as caught:
            runs.new_run(tmp_path, "mine")
        assert caught.value.hint is not None
        assert "--resume" in caught.value.hint

    @pytest.mark.parametrize(
        "name", ["", ".hidden", "..", "a/b", "a\\b", "/abs", "-flag", "a b", "x" * 101, "new\nline"]
    )
    def test_names_that_are_no_plain_folder_names(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="`name`"):
            runs.new_run(tmp_path / "runs", name)
        assert not (tmp_path / "runs").exists()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("")
        with pytest.raises(ConfigError, match="runs"):
            runs.new_run(tmp_path / "runs", prefix="earth")


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
        assert f"dated {time.gmtime((now + 10**18) / 1e9).tm_year}" in caplog.text
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


class TestCheckpointInfo:
    def test_json_round_trip(self) -> None:
        for one in (
            info(),
            info(train={"steps": 3}, data={}, versions={"torch": "2"}, source="x.pth", origin="import"),
        ):
            assert runs.CheckpointInfo.from_json(json.loads(json.dumps(one.to_json())), Path("x")) == one

    def test_a_newer_format_is_named(self) -> None:
        with pytest.raises(CheckpointError, match="format 2 is newer") as caught:
            runs.CheckpointInfo.from_json({**info().to_json(), "format_version": 2}, Path("x"))
        assert "upgrade" in str(caught.value.hint)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format_version", True),
            ("format_version", None),
            ("created_unix_ns", -1),
            ("step", "3"),
            ("origin", "elsewhere"),
            ("generator", []),
            ("generator", {"labels": {}}),
            ("generator_sha256", "A" * 64),
            ("optimizers_sha256", "short"),
            ("train", []),
        ],
    )
    def test_wrong_fields_are_named(self, name: str, value: Any) -> None:
        with pytest.raises(CheckpointError, match=name):
            runs.CheckpointInfo.from_json({**info().to_json(), name: value}, Path("x"))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.data())
    def test_fuzzed_json_is_read_or_refused(self, data: st.DataObject) -> None:
        value = info().to_json()
        path = data.draw(st.sampled_from([*value, "generator.labels", "generator.height", "generator.norm"]))
        *parents, last = path.split(".")
        target = value
        for parent in parents:
            target = target[parent]
        target[last] = data.draw(ANYTHING)
        try:
            read = runs.CheckpointInfo.from_json(value, Path("x"))
        except CheckpointError:
            return
        assert isinstance(read, runs.CheckpointInfo)
