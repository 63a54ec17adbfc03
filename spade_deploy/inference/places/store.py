"""Where images go, as the process that plans sees it: what is there, the record, the lock, the list of results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.locks import locked
from spade_deploy.files.reading import read_regular, sha256_of
from spade_deploy.inference.jobs import Outcome
from spade_deploy.inference.places.target import Folder, Target
from spade_deploy.inference.results import is_done
from spade_deploy.labels.files import RESULT_SUFFIXES

LOG = "results.jsonl"
"""The list of results, a line for each image or failure."""


class Appender(Protocol):
    """A text file that grows. What was added is there for good after `close`, and soon after `add` in any case."""

    def add(self, lines: Iterable[str]) -> None:
        """Append lines, whole."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """A place of results. Its own errors are OSErrors or SpadeErrors."""

    name: str
    """What messages call it."""

    target: Target
    """What the processes that make images know of it."""

    def prepare(self) -> None:
        """Make the folder, and see that one may write there. Raises SpadeError."""
        ...

    def holds(self, name: str, *, overwrite: bool, redo_before_ns: int | None) -> bool:
        """Whether the image of that name is there and need not be made again.

        redo_before_ns: what is older does not count. Raises LabelMapError where no image of that name can be written.
        """
        ...

    def images(self, *, in_folders: bool) -> list[str]:
        """The names of all images in it. in_folders: also of those in its folders, as berlin/0001.png."""
        ...

    def digest(self, name: str) -> tuple[str, str]:
        """Of an image that is there: the name of its file, and the SHA-256 of the image."""
        ...

    def read(self, name: str, most_bytes: int) -> bytes:
        """A file beside the images. Raises FileNotFoundError, OSError."""
        ...

    def write(self, name: str, content: bytes) -> int:
        """Write a file beside the images; returns its time, in nanoseconds, by the clock of the place."""
        ...

    def appender(self) -> Appender:
        """The list of results, to be continued. A line that a killed run left unfinished is removed."""
        ...

    def locked(self, doing: str) -> AbstractContextManager[None]:
        """Hold the place. Raises FolderBusyError."""
        ...

    def keep(self, outcome: Outcome) -> list[Outcome]:
        """Take an image that was made; returns those that are there for good by now, under their final names."""
        ...

    def finish(self) -> list[Outcome]:
        """Nothing more comes, also after an error. Returns what `keep` returns."""
        ...


class FolderStore(Store):
    """A folder on this machine's disks."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.target = path, str(path), Folder(path)

    def prepare(self) -> None:
        """See `Store.prepare`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpadeError(f"{self.path} cannot be made: {error.strerror}", hint="choose another folder") from error

    def holds(self, name: str, *, overwrite: bool, redo_before_ns: int | None) -> bool:
        """See `Store.holds`."""
        result = self.path / name
        if not is_done(result, overwrite=overwrite):
            return False
        return redo_before_ns is None or result.stat().st_mtime_ns >= redo_before_ns

    def images(self, *, in_folders: bool) -> list[str]:
        """See `Store.images`."""
        if not in_folders:
            return sorted(entry.name for entry in os.scandir(self.path) if is_image(entry.name))
        return sorted(
            (Path(folder) / name).relative_to(self.path).as_posix()
            for folder, _, names in os.walk(self.path)
            for name in names
            if is_image(name)
        )

    def digest(self, name: str) -> tuple[str, str]:
        """See `Store.digest`."""
        return name, sha256_of(self.path / name)

    def read(self, name: str, most_bytes: int) -> bytes:
        """See `Store.read`."""
        return read_regular(self.path / name, most_bytes)

    def write(self, name: str, content: bytes) -> int:
        """See `Store.write`."""
        with atomic_file(self.path / name) as temporary, temporary.open("wb") as stream:
            stream.write(content)
        return (self.path / name).stat().st_mtime_ns

    def appender(self) -> Appender:
        """See `Store.appender`."""
        return _FileAppender(self.path / LOG)

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """See `Store.locked`."""
        with locked(self.path, doing):
            yield

    def keep(self, outcome: Outcome) -> list[Outcome]:
        """See `Store.keep`."""
        return [outcome]

    def finish(self) -> list[Outcome]:
        """See `Store.finish`."""
        return []


class _FileAppender(Appender):
    """Each call is one write to the end of the file, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
            self._cut()
        except OSError as error:
            raise SpadeError(f"{path} cannot be written: {reason_of(error)}", hint="choose another folder") from error

    def add(self, lines: Iterable[str]) -> None:
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            with suppress(OSError):
                self._cut()
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        os.close(self._file)

    def _cut(self) -> None:
        """Remove an unfinished last line."""
        size = os.fstat(self._file).st_size
        end = size
        while end:
            start = max(0, end - (1 << 16))
            os.lseek(self._file, start, os.SEEK_SET)
            found = os.read(self._file, end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)


def is_image(name: str) -> bool:
    """Whether a result may have this name."""
    return Path(name).suffix.lower() in RESULT_SUFFIXES
