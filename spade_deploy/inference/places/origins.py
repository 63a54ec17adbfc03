"""Where the bytes of a label map may lie beside a file on this machine: an object, a member of a shard, a row."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import LabelMapError, reason_of
from spade_deploy.files.reading import open_regular, read_regular
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.images.opened import MAX_FILE_BYTES
from spade_deploy.inference.places.urls import read_url, shown

_WINDOW_BYTES = 4 << 20
_MOST_WINDOWS = 8


@dataclass(frozen=True)
class Remote:
    """An object that fsspec reads whole."""

    url: str
    """Where it is."""

    def __str__(self) -> str:
        return shown(self.url)

    def load(self) -> ImageBytes:
        """See `Stored.load`."""
        return ImageBytes(str(self), read_url(self.url))


@dataclass(frozen=True)
class Member:
    """A member of a tar file, which is read without the rest of the file."""

    shard: Path | str
    """The tar file."""
    name: str
    """The member's path in it."""
    offset: int
    """Where its bytes begin in the file."""
    size: int
    """How many bytes it has."""

    def __str__(self) -> str:
        return f"{shown(self.shard)}/{self.name}"

    def load(self) -> ImageBytes:
        """See `Stored.load`."""
        if self.size > MAX_FILE_BYTES:
            raise LabelMapError(f"{self}: {self.size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
        try:
            content = _part(self.shard, self.offset, self.size)
        except OSError as error:
            raise LabelMapError(f"{self}: cannot be read: {reason_of(error)}") from error
        if len(content) < self.size:
            raise LabelMapError(f"{self}: {len(content)} of {self.size} bytes are there", hint="copy the shard again")
        return ImageBytes(str(self), content)


def file_bytes(place: Path | str) -> bytes:
    """All bytes of an image that is a file or an object. Raises LabelMapError, PlaceError."""
    if isinstance(place, str):
        return read_url(place)
    try:
        return read_regular(place, MAX_FILE_BYTES)
    except OSError as error:
        raise LabelMapError(f"{place}: cannot be read: {reason_of(error)}") from error


class _Windows:
    """Parts of remote files that were read last: neighbours in a shard cost one request, not one each."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, url: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, or fewer at the end of the file."""
        if size > _WINDOW_BYTES:
            return read_url(url, offset, offset + size)
        with self._lock:
            for (name, start), content in self._found.items():
                if name == url and start <= offset and offset + size <= start + len(content):
                    self._found.move_to_end((name, start))
                    return content[offset - start : offset - start + size]
            content = self._found[url, offset] = read_url(url, offset, offset + _WINDOW_BYTES)
            while len(self._found) > _MOST_WINDOWS:
                self._found.popitem(last=False)
            return content[:size]


_windows = _Windows()


def _part(file: Path | str, offset: int, size: int) -> bytes:
    if isinstance(file, str):
        return _windows.read(file, offset, size)
    with open_regular(file) as stream:
        stream.seek(offset)
        return stream.read(size)
