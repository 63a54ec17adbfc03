"""Reading files that somebody else made: only regular ones, never more than a limit, and never a wait."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from spade_deploy.files.reading import open_regular, parse_json, read_json, read_regular, sha256_of


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


def test_only_the_files_own_size_is_taken_of_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    assert read_regular(path, 1 << 60) == b"abcd"
    assert b"VmHWM" in read_regular(Path("/proc/self/status"), 1 << 20)  # its size is 0


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"[1]", "holds list, not an object"),
        (b'{"a": 1' + b"0" * 400 + b"}", "an integer of 401 digits is beyond 64 bits"),
        (b'{"a": 9223372036854775808}', "an integer of 19 digits is beyond 64 bits"),
        (b'{"a": 1e999}', "'1e999' is no finite number"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b'{"\xff": 1}', "byte 2 is not UTF-8"),
    ],
)
def test_json_that_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_json(content)


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 9223372036854775807, "b": "\\ud800"}\n')
    assert read_json(path) == {"a": (1 << 63) - 1, "b": "\ud800"}
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_json(path, 10)
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is a device"):
        read_json(tmp_path / "zero")
