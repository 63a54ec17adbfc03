"""Names of runs, and the folders that are made for them."""

import shutil
from pathlib import Path

import pytest

from spade_deploy import runs
from spade_deploy.errors import ConfigError


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
