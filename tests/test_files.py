"""Reading files that somebody else made: only regular ones, never more than a limit, and never a wait."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from spade_deploy.files import open_regular, read_regular, sha256_of


def test_regular_file_is_read_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with open_regular(path) as stream:
        assert stream.read() == b"abc"
    assert read_regular(path, 3) == b"abc"
    assert sha256_of(path) == hashlib.sha256(b"abc").hexdigest()


def test_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 10) == b"abc"


def test_larger_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    with pytest.raises(OSError, match="is larger than 3 bytes"):
        read_regular(path, 3)


@pytest.mark.parametrize(
    ("kind", "message"), [("pipe", "is a pipe"), ("device", "is a device"), ("folder", "is a folder")]
)
@pytest.mark.parametrize("through_link", [False, True])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, message: str, through_link: bool) -> None:
    path = tmp_path / "input"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    if through_link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    with pytest.raises(OSError, match=message):
        read_regular(path, 10)


def test_socket_and_dangling_link_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OSError):  # noqa: PT011 - the system's own words
            open_regular(tmp_path / "s")
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "link")


def test_refusal_leaves_no_open_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="is a folder"):
            open_regular(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
