"""Files and folders appear whole or not at all, under any name that fits; what the dead left is removed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spade_deploy.files import atomic
from spade_deploy.files.atomic import atomic_file, atomic_folder, write_text
from spade_deploy.files.temporary import beside, bring_back, sweep
from tests.support.temporary_names import of_a_dead_process

LONGEST = ["a" * 255, "漢" * 85, "a" * 251 + ".png", "漢" * 83 + "xy.png", "b." + "s" * 253, "\udcff" * 200 + ".png"]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


class TestNames:
    @pytest.mark.parametrize("name", LONGEST, ids=range(len(LONGEST)))
    def test_a_name_that_fits_can_be_written(self, tmp_path: Path, name: str) -> None:
        assert len(os.fsencode(name)) <= 255
        write_text(tmp_path / name, "there")
        assert (tmp_path / name).read_text() == "there"
        with atomic_folder(tmp_path / ("f" + name[1:])) as folder:
            (folder / "inside").write_text("there")
        assert (tmp_path / ("f" + name[1:]) / "inside").read_text() == "there"
        assert hidden(tmp_path) == []

    def test_a_name_that_does_not_fit_is_an_error_of_that_name(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="too long") as caught:
            write_text(tmp_path / ("漢" * 86), "x")
        assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(tmp_path / ("漢" * 86)))
        assert list(tmp_path.iterdir()) == []

    def test_names_beside_a_long_name_fit_and_differ(self, tmp_path: Path) -> None:
        one, other = beside(tmp_path / ("漢" * 84 + "a"), ".lock"), beside(tmp_path / ("漢" * 84 + "b"), ".lock")
        assert one != other
        assert max(len(os.fsencode(path.name)) for path in (one, other)) <= 255
        assert beside(tmp_path / "artifact", ".lock") == tmp_path / ".artifact.lock"

    def test_text_that_is_no_utf_8_is_written_as_what_it_is(self, tmp_path: Path) -> None:
        write_text(tmp_path / "skipped.txt", "b\udcff.png")
        assert (tmp_path / "skipped.txt").read_bytes() == b"b\\udcff.png"


class TestModes:
    @pytest.mark.parametrize(
        ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0, 0o666, 0o777)]
    )
    def test_everything_follows_the_umask_of_the_moment(
        self, tmp_path: Path, mask: int, file: int, folder: int
    ) -> None:
        before = os.umask(mask)
        try:
            with atomic_file(tmp_path / "weights") as temporary:
                temporary.unlink()  # as a library does that renames a private file of its own
                os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
            with atomic_folder(tmp_path / "folder") as temporary:
                (temporary / "golden").mkdir(mode=0o700)
                for name in ("weights", "golden/inputs"):
                    os.close(os.open(temporary / name, os.O_CREAT | os.O_WRONLY, 0o600))
        finally:
            os.umask(before)
        found = {
            path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
        }
        assert found == {
            "weights": file,
            "folder": folder,
            "folder/golden": folder,
            "folder/weights": file,
            "folder/golden/inputs": file,
        }


class TestReplacing:
    def test_a_folder_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        for content in ("old", "new"):
            with atomic_folder(tmp_path / "folder") as folder:
                (folder / content).write_text(content)
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
        assert hidden(tmp_path) == []

    def test_a_failure_leaves_the_old_folder_and_nothing_else(self, tmp_path: Path) -> None:
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "old").write_text("old")
        with pytest.raises(ValueError, match="on the way"), atomic_folder(tmp_path / "folder") as folder:
            raise ValueError("on the way")
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
        assert hidden(tmp_path) == []

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        with atomic_folder(tmp_path / "link") as folder:
            (folder / "new").write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "new").read_text() == "new"

    def test_a_file_is_no_folder_and_stays(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
            pytest.fail("it began")
        assert (tmp_path / "file").read_text() == "mine"

    def test_devices_pipes_and_folders_are_not_replaced_by_a_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "null").symlink_to("/dev/null")
        (tmp_path / "folder").mkdir()
        for name in ("pipe", "null", "folder"):
            with pytest.raises(OSError, match=r"not a regular file|directory"):
                write_text(tmp_path / name, "x")
        assert (tmp_path / "null").is_symlink()
        assert (tmp_path / "pipe").is_fifo()

    @pytest.mark.parametrize("exchanges", [True, False])
    def test_a_reader_sees_the_old_or_the_new_at_every_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
    ) -> None:
        """Without an exchange there is a moment without either; a kill in it is mended by whoever comes next."""
        if not exchanges:
            monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "content").write_text("old")
        seen, rename = [], os.rename

        def watched(source: Path, target: Path) -> None:
            rename(source, target)
            seen.append((tmp_path / "folder").exists())

        monkeypatch.setattr(atomic.os, "rename", watched)
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "content").write_text("new")
        assert seen == ([] if exchanges else [False, True])
        assert (tmp_path / "folder" / "content").read_text() == "new"
        assert hidden(tmp_path) == []

    def test_a_failed_second_rename_brings_the_old_folder_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "content").write_text("old")
        rename, calls = os.rename, []

        def failing(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.EIO, "broken", str(target))
            rename(source, target)

        monkeypatch.setattr(atomic.os, "rename", failing)
        with pytest.raises(OSError, match="broken"), atomic_folder(tmp_path / "folder") as folder:
            (folder / "content").write_text("new")
        assert (tmp_path / "folder" / "content").read_text() == "old"
        assert hidden(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from spade_deploy.files import atomic
path, stage = Path(sys.argv[1]), sys.argv[2]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if stage == "after exchange":
    atomic._flush_folder = lambda folder: kill() if folder == path.parent else None
if stage == "between renames":
    atomic._exchange = lambda *_: False
    rename = os.rename
    atomic.os.rename = lambda source, target: (rename(source, target), kill())
with atomic.atomic_folder(path) as folder:
    (folder / "content").write_text("new")
    if stage == "writing":
        kill()
"""


class TestKilled:
    @pytest.mark.parametrize(
        ("stage", "content"), [("writing", "old"), ("after exchange", "new"), ("between renames", "old")]
    )
    def test_old_or_new_is_there_and_nothing_else_stays(self, tmp_path: Path, stage: str, content: str) -> None:
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "content").write_text("old")
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "folder"), stage], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(hidden(tmp_path)) >= 1
        bring_back(tmp_path / "folder")  # a reader's part
        assert (tmp_path / "folder" / "content").read_text() == content
        sweep(tmp_path)  # a writer's part
        assert hidden(tmp_path) == []
        assert (tmp_path / "folder" / "content").read_text() == content

    def test_the_first_writing_of_a_process_sweeps(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        of_a_dead_process(tmp_path / "out", "0001.png").write_text("half")
        write_text(tmp_path / "out" / "0002.png", "x")
        assert hidden(tmp_path / "out") == []


def test_files_and_folders_are_flushed_before_their_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace, exchange = os.fsync, os.replace, atomic._exchange

    def seen(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        done.append(("flush", "temporary" if path.name.startswith(".") else path.name))
        fsync(handle)

    monkeypatch.setattr(atomic.os, "fsync", seen)
    monkeypatch.setattr(atomic.os, "replace", lambda *two: (replace(*two), done.append(("rename", "file"))))
    monkeypatch.setattr(atomic, "_exchange", lambda *two: (done.append(("rename", "folder")), exchange(*two))[1])
    write_text(tmp_path / "file", "x")
    assert done == [("flush", "temporary"), ("rename", "file"), ("flush", tmp_path.name)]
    (tmp_path / "folder").mkdir()
    done.clear()
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "golden").mkdir()
        (folder / "golden" / "inputs").write_text("x")
    flushed = [("flush", "inputs"), ("flush", "golden"), ("flush", "temporary")]
    assert done == [*flushed, ("rename", "folder"), ("flush", tmp_path.name)]


def test_errors_without_a_name_or_a_number_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="encoder error -2") as caught, atomic_file(tmp_path / "a.png"):
        raise OSError("encoder error -2 when writing image file")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "a.png"))
    monkeypatch.setattr(atomic, "_is_full", lambda folder: True)
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "a.npy"):
        raise OSError("8192 requested and 4096 written")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
