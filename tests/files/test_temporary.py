"""Temporary names, and what goes of those that killed processes left."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from spade_deploy.files import temporary
from spade_deploy.files.temporary import scratch_folder, sweep
from tests.support.temporary_names import of_a_dead_process


def test_what_a_living_process_writes_and_what_is_no_leftover_stays(tmp_path: Path) -> None:
    keep = [
        tmp_path / temporary.temporary_name("of this process", ".tmp"),
        tmp_path / ".env",
        tmp_path / ".draft.tmp",
        tmp_path / ".a.00000000-1-1-00000000.tmp",  # of another machine, new
    ]
    for path in keep:
        path.write_text("x")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(keep)


def test_what_another_machine_left_goes_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / ".a.00000000-1-1-00000000.tmp"
    path.write_text("x")
    old = time.time() - temporary.FOREIGN_AGE_S - 60
    os.utime(path, (old, old))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_life(tmp_path: Path) -> None:
    """In a container every start has the same numbers."""
    name = temporary.temporary_name("x", ".tmp")
    place, pid, started, rest = name.split(".")[2].split("-")
    (tmp_path / f".x.{place}-{pid}-{int(started) - 1}-{rest}.tmp").mkdir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scratch_folders_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary.tempfile, "gettempdir", lambda: str(tmp_path))
    left = of_a_dead_process(tmp_path, "spade-bench")
    left.mkdir()
    (left / "case-0.npz").write_text("x")
    with scratch_folder("bench") as folder, scratch_folder("bench") as other:
        assert not left.exists()
        assert folder.is_dir()
        assert other != folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []
