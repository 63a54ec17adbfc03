"""One process alone writes a folder; the second one says who holds it; a killed holder's lock is free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spade_deploy.errors import FolderBusyError
from spade_deploy.files.locks import LOCK, locked

HOLD = (
    "import sys, time; from pathlib import Path; from spade_deploy.files.locks import locked\n"
    "with locked(Path(sys.argv[1]), 'holding it for a test'):\n    print('held', flush=True); time.sleep(60)"
)


def test_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderBusyError) as caught, locked(tmp_path, "a second one"):
            pytest.fail("two processes hold one lock")
        assert f"process {holder.pid} on " in caught.value.message
        assert "holding it for a test, since 20" in caught.value.message
        assert str(tmp_path) in caught.value.message
        # The refused one has changed nothing: the holder is still named.
        assert f'"pid": {holder.pid}' in (tmp_path / LOCK).read_text()
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path, "after a kill"):  # the lock went with the process
        pass


def test_lock_is_free_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path, "failing"):
        raise ValueError("inside")
    with locked(tmp_path, "x" * 300), pytest.raises(FolderBusyError, match="x" * 300), locked(tmp_path, "short"):
        pass
    with locked(tmp_path, "short"):
        assert (tmp_path / LOCK).read_text().endswith("}")  # nothing of the longer text before is left


def test_damaged_lock_file_still_locks(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"\xff\x00not json")
    with locked(tmp_path, "first"), pytest.raises(FolderBusyError, match="first"), locked(tmp_path, "second"):
        pass


def test_lock_may_lie_beside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with locked(folder, "first", file=tmp_path / ".artifact.lock"):
        assert not folder.exists()
        with (
            pytest.raises(FolderBusyError, match="artifact"),
            locked(folder, "second", file=tmp_path / ".artifact.lock"),
        ):
            pass
