"""Results in an object store or another place that fsspec writes."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from spade_deploy.errors import FolderBusyError, LabelMapError, NotFoundError
from spade_deploy.files.locks import LOCK
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.files.temporary import NAME_MAX_BYTES
from spade_deploy.inference.jobs import Outcome
from spade_deploy.inference.places.store import LOG, Appender, Store, is_image
from spade_deploy.inference.places.target import Target
from spade_deploy.inference.places.urls import PlaceError, filesystem, shown, url_error

_WHOLE_AT_ONCE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "oss", "memory", "http", "https")
"""Schemes of places where an object appears whole or not at all; elsewhere a file is written aside, and renamed."""
_UPLOAD_EVERY_S = 30.0
_RENEW_EVERY_S = 30.0
_STALE_AFTER_S = 150.0


@dataclass(frozen=True)
class UrlFolder(Target):
    """A folder behind a URL."""

    is_remote = True

    url: str
    """Where it is."""

    @property
    def place(self) -> str:
        return shown(self.url)

    def take(self, name: str, content: bytes) -> None:
        """See `Target.take`. Raises PlaceError."""
        fs, path = filesystem(self.url)
        place = f"{path.rstrip('/')}/{name}"
        folder, _, last = place.rpartition("/")
        try:
            if self.url.partition("://")[0] in _WHOLE_AT_ONCE:
                fs.pipe_file(place, content)
                return
            aside = f"{folder}/.{last}.{secrets.token_hex(4)}.tmp"
            fs.makedirs(folder, exist_ok=True)
            fs.pipe_file(aside, content)
            fs.mv(aside, place)
        except Exception as error:
            raise _write_error(error, self.where(name)) from error


class UrlStore(Store):
    """A folder behind a URL. What is there is listed once, a folder in it when its first image is asked for."""

    def __init__(self, url: str) -> None:
        self.name, self.target = shown(url), UrlFolder(url)
        self._fs, self._path = filesystem(url)
        self._path = self._path.rstrip("/")
        self._listed: dict[str, dict[str, dict[str, Any]]] = {}
        """The entries of folders in it by their names there; its own has the name ''."""

    def prepare(self) -> None:
        """See `Store.prepare`. A bucket must be there; folders in it need not be made."""

    def holds(self, name: str, *, overwrite: bool, redo_before_ns: int | None) -> bool:
        """See `Store.holds`."""
        folder, _, last = name.rpartition("/")
        if len(last.encode()) > NAME_MAX_BYTES:
            raise LabelMapError(
                f"its result would have a name of {len(last.encode())} bytes, {last[:40]}...",
                hint="give the label map a shorter name",
            )
        entry = self._entries(folder).get(last)
        if entry is None or overwrite or not entry["size"]:
            return False
        # Times of object stores are whole seconds: what may be older is made again.
        return redo_before_ns is None or _time_ns(entry) > redo_before_ns

    def images(self, *, in_folders: bool) -> list[str]:
        """See `Store.images`."""
        if not in_folders:
            return [name for name in self._entries() if is_image(name)]
        try:
            names = [str(name)[len(self._path) :].lstrip("/") for name in self._fs.find(self._path)]
        except Exception as error:
            raise url_error(error, self.name, "read") from error
        return [name for name in names if is_image(name)]

    def digest(self, name: str) -> tuple[str, str]:
        """See `Store.digest`."""
        return name, sha256_of_bytes(self._get(name))

    def read(self, name: str, most_bytes: int) -> bytes:
        """See `Store.read`."""
        entry = self._entries().get(name)
        if entry is None:
            raise FileNotFoundError(name)
        if entry["size"] > most_bytes:
            raise OSError(f"is larger than {most_bytes:,} bytes, the most that is read")
        return self._get(name)

    def write(self, name: str, content: bytes) -> int:
        """See `Store.write`."""
        self.target.take(name, content)
        try:
            entry = self._fs.info(f"{self._path}/{name}")
        except Exception as error:
            raise url_error(error, self.target.where(name), "write") from error
        self._entries()[name] = entry
        return _time_ns(entry)

    def upload(self, name: str, file: str) -> None:
        """Copy a file of this machine there. Raises PlaceError."""
        try:
            self._fs.put_file(file, f"{self._path}/{name}")
        except Exception as error:
            raise _write_error(error, self.target.where(name)) from error

    def appender(self) -> Appender:
        """See `Store.appender`."""
        known = self._get(LOG) if LOG in self._entries() else b""
        return _UrlAppender(self.target, known)

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """See `Store.locked`: an object that is renewed while the run goes on, as there are no locks of the system."""
        lease = _Lease(self.target, self._fs, f"{self._path}/{LOCK}", doing)
        lease.take()
        try:
            self._listed = {}  # another run may have gone on until now
            yield
        finally:
            lease.give_back()

    def keep(self, outcome: Outcome) -> list[Outcome]:
        """See `Store.keep`."""
        return [outcome]

    def finish(self) -> list[Outcome]:
        """See `Store.finish`."""
        return []

    def names(self) -> list[str]:
        """The names of everything in it."""
        return sorted(self._entries())

    def _get(self, name: str) -> bytes:
        try:
            content: bytes = self._fs.cat_file(f"{self._path}/{name}")
        except Exception as error:
            raise url_error(error, self.target.where(name), "read") from error
        return content

    def _entries(self, folder: str = "") -> dict[str, dict[str, Any]]:
        if folder not in self._listed:
            try:
                listed = self._fs.ls(f"{self._path}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError as error:
                if "bucket" in str(error).lower():
                    raise NotFoundError(f"{self.name}: {error}", hint="see that the bucket's name is right") from error
                listed = []
            except Exception as error:
                raise url_error(error, self.name, "read") from error
            files = (one for one in listed if one["type"] == "file")
            self._listed[folder] = {str(one["name"]).rstrip("/").rpartition("/")[2]: one for one in files}
        return self._listed[folder]


class _UrlAppender(Appender):
    """An object cannot grow, so the whole of it is written again now and then, and at the end."""

    def __init__(self, target: UrlFolder, known: bytes) -> None:
        self._target = target
        self._content = bytearray(known[: known.rfind(b"\n") + 1])
        self._due = time.monotonic() + _UPLOAD_EVERY_S
        self._is_new = False

    def add(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._content += f"{line}\n".encode()
            self._is_new = True
        if time.monotonic() >= self._due:
            start = time.monotonic()
            self._upload()
            now = time.monotonic()
            self._due = now + max(_UPLOAD_EVERY_S, 20 * (now - start))

    def close(self) -> None:
        self._upload()

    def _upload(self) -> None:
        if self._is_new:
            self._target.take(LOG, bytes(self._content))
            self._is_new = False


class _Lease:
    """An object that says who works there. It is renewed; one that was not for a while belongs to a dead run."""

    def __init__(self, target: UrlFolder, fs: Any, path: str, doing: str) -> None:
        self._target, self._fs, self._path, self._doing = target, fs, path, doing
        self._mark = secrets.token_hex(8)
        self._since = time.time()
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Raises FolderBusyError, PlaceError."""
        try:
            self._fs.pipe_file(self._path, self._facts(), mode="create")
        except (FileExistsError, NotImplementedError, TypeError):  # the last two: a place that cannot refuse
            self._require_stale()
            self._target.take(LOCK, self._facts())
        except Exception as error:
            raise _write_error(error, self._target.where(LOCK)) from error
        self._renewer.start()

    def give_back(self) -> None:
        self._over.set()
        self._renewer.join()
        with suppress(Exception):  # it grows old by itself
            self._fs.rm_file(self._path)

    def _facts(self) -> bytes:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "doing": self._doing, "since": self._since}
        return json.dumps({**facts, "renewed": time.time(), "mark": self._mark}).encode()

    def _require_stale(self) -> None:
        try:
            facts = json.loads(self._fs.cat_file(self._path))
            age = time.time() - float(facts["renewed"])
            who = f"process {int(facts['pid'])} on {facts['host']!s}, {facts['doing']!s}"
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            return
        if age < _STALE_AFTER_S:
            folder = self._target.where("").rstrip("/")
            raise FolderBusyError(
                f"{folder}: another process is working on it: {who}, last seen {max(0.0, age):.0f} s ago",
                hint=f"wait until it ends, or name another place; if it is dead, its lock ends after"
                f" {_STALE_AFTER_S:.0f} s",
            )

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_EVERY_S):
            with suppress(Exception):  # the images are written with the same rights, and their errors are told
                self._target.take(LOCK, self._facts())


def _write_error(error: Exception, name: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return PlaceError(f"{name} cannot be written: {error}", hint="see that the bucket's name is right")
    found = url_error(error, name, "write")
    return found if isinstance(found, PlaceError) else PlaceError(f"{name} cannot be written: {found.message}")


def _time_ns(entry: dict[str, Any]) -> int:
    found: Any = next((entry[key] for key in ("LastModified", "mtime", "created", "updated") if entry.get(key)), 0)
    seconds = found.timestamp() if hasattr(found, "timestamp") else float(found)
    return int(seconds * 1e9)
