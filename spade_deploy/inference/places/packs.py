"""Results in shards: tar files as WebDataset has them, or Parquet files. The process that plans writes them.

A shard appears whole: it gets its name once it is full, or at the end of the run, also if that ends with an error. A
killed process loses the images of one shard, which the next run makes again.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.inference.jobs import Outcome
from spade_deploy.inference.places.names import pure
from spade_deploy.inference.places.origins import Member
from spade_deploy.inference.places.parquet_file import opened_table, pyarrow
from spade_deploy.inference.places.shards import members_of
from spade_deploy.inference.places.store import Appender, FolderStore, Store
from spade_deploy.inference.places.target import Target
from spade_deploy.inference.places.url_store import UrlStore

SUFFIXES = (".tar", ".parquet")
_NUMBER = re.compile(r"\{(\d+)\.\.\d*\}|%0(\d+)d")
_ROW_GROUP = 64


@dataclass(frozen=True)
class Carried(Target):
    """A target that hands each image to the process that plans."""

    shards: str
    """What messages call the shards."""

    @property
    def place(self) -> str:
        return self.shards

    def take(self, name: str, content: bytes) -> bytes:
        """See `Target.take`."""
        return content


class _Writer(Protocol):
    def add(self, name: str, content: bytes) -> None: ...

    def close(self) -> None: ...


class PackStore(Store):
    """Shards in a folder, which also has the record and the list of results."""

    def __init__(self, inner: FolderStore | UrlStore, pattern: str, per_shard: int, logged: Iterable[str]) -> None:
        """Look at the shards that are there.

        pattern: their names, as {000000..}.tar. per_shard: the most images in one. logged: files in the list of
        results, as 000000.tar/0001.png; behind a URL, a shard that is listed there is not read again.
        """
        self._inner, self._per_shard = inner, per_shard
        self._before, self._width, self._after = _split(pattern)
        self.name = f"{inner.name.rstrip('/')}/{pattern}"
        self.target = Carried(self.name)
        self._held: dict[str, str] = {}
        """The shard of each image that is there."""
        self._next = 0
        self._open: _OpenShard | None = None
        self._look(logged)

    def prepare(self) -> None:
        """See `Store.prepare`."""
        self._inner.prepare()

    def holds(self, name: str, *, overwrite: bool, redo_before_ns: int | None) -> bool:
        """See `Store.holds`."""
        return name in self._held

    def images(self, *, in_folders: bool) -> list[str]:
        """See `Store.images`."""
        return sorted(self._held)

    def digest(self, name: str) -> tuple[str, str]:
        """See `Store.digest`."""
        shard = self._held[name]
        for known, content in _contents(self._place(shard)):
            if known == name:
                return f"{shard}/{name}", sha256_of_bytes(content())
        raise LabelMapError(f"{shard} has lost {name}")

    def read(self, name: str, most_bytes: int) -> bytes:
        """See `Store.read`."""
        return self._inner.read(name, most_bytes)

    def write(self, name: str, content: bytes) -> int:
        """See `Store.write`."""
        return self._inner.write(name, content)

    def appender(self) -> Appender:
        """See `Store.appender`."""
        return self._inner.appender()

    def locked(self, doing: str) -> Any:
        """See `Store.locked`."""
        return self._inner.locked(doing)

    def keep(self, outcome: Outcome) -> list[Outcome]:
        """See `Store.keep`."""
        if outcome.file is None or outcome.content is None:
            return [outcome]
        if self._open is None:
            shard = f"{self._before}{self._next:0{self._width}d}{self._after}"
            self._next += 1
            self._open = _OpenShard(self._inner, shard)
        self._open.add(outcome.file, outcome.content)
        self._open.outcomes.append(replace(outcome, file=f"{self._open.shard}/{outcome.file}", content=None))
        return self.finish() if len(self._open.outcomes) >= self._per_shard else []

    def finish(self) -> list[Outcome]:
        """See `Store.finish`."""
        if self._open is None:
            return []
        shard, self._open = self._open, None
        shard.close()
        return shard.outcomes

    def _place(self, shard: str) -> Path | str:
        if isinstance(self._inner, FolderStore):
            return self._inner.path / shard
        return f"{self._inner.target.url.rstrip('/')}/{shard}"

    def _look(self, logged: Iterable[str]) -> None:
        if isinstance(self._inner, FolderStore):
            path = self._inner.path
            names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
            listed: dict[str, list[str]] = {}
        else:
            names, listed = self._inner.names(), {}
            for file in logged:
                shard, _, name = file.partition("/")
                listed.setdefault(shard, []).append(name)
        own = re.compile(rf"{re.escape(self._before)}(\d+){re.escape(self._after)}")
        for shard in names:
            match = own.fullmatch(shard)
            if match is None:
                continue
            self._next = max(self._next, int(match[1]) + 1)
            try:
                found = listed.get(shard) or [name for name, _ in _contents(self._place(shard))]
            except LabelMapError as error:
                raise ConfigError(
                    f"`out`: {error.message}", hint="remove that shard, whose images are then made again"
                ) from error
            for name in found:
                self._held[name] = shard


class _OpenShard:
    """A shard that is being filled, under a temporary name."""

    def __init__(self, inner: FolderStore | UrlStore, shard: str) -> None:
        self.shard = shard
        self.outcomes: list[Outcome] = []
        self._inner = inner
        self._stack = ExitStack()
        if isinstance(inner, FolderStore):
            self._path = self._stack.enter_context(atomic_file(inner.path / shard))
        else:
            self._path = self._stack.enter_context(scratch_folder("shard")) / shard
        self._writer: _Writer = _Tar(self._path) if shard.endswith(".tar") else _Parquet(self._path)

    def add(self, name: str, content: bytes) -> None:
        self._do(lambda: self._writer.add(name, content))

    def close(self) -> None:
        """Give it its name. Raises OSError, PlaceError."""

        def end() -> None:
            self._writer.close()
            if isinstance(self._inner, UrlStore):
                self._inner.upload(self.shard, str(self._path))

        self._do(end)
        self._stack.close()

    def _do(self, what: Any) -> None:
        """Do something; if it fails, the temporary file goes."""
        with ExitStack() as doing:
            doing.push(self._stack.__exit__)
            what()
            doing.pop_all()


class _Tar(_Writer):
    def __init__(self, path: Path) -> None:
        self._archive = tarfile.open(path, "w")  # noqa: SIM115

    def add(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # without a time and an owner, so that the same images make the same file
        info.size = len(content)
        self._archive.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        self._archive.close()


class _Parquet(_Writer):
    def __init__(self, path: Path) -> None:
        self._module = pyarrow()
        import pyarrow as arrow

        self._schema = arrow.schema([("id", arrow.string()), ("file", arrow.string()), ("image", arrow.binary())])
        self._table = arrow.Table
        self._writer = self._module.ParquetWriter(path, self._schema, compression="none")  # PNG is compressed already
        self._rows: list[dict[str, Any]] = []

    def add(self, name: str, content: bytes) -> None:
        self._rows.append({"id": pure(name), "file": name, "image": content})
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def pack_parts(out: Path | str) -> tuple[Path | str, str]:
    """The folder and the name pattern of shards, as `out` names them. Raises ConfigError."""
    folder, _, name = str(out).rpartition("/")
    if _NUMBER.search(name) is None:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem}-{{000000..}}{dot}{suffix}"
    if len(_NUMBER.findall(name)) > 1 or re.search(r"[{}*?\[\]%]", _NUMBER.sub("", name)):
        raise ConfigError(f"`out`: {name!r} has more than one number", hint="name shards as {000000..}.tar")
    return (Path(folder or ".") if isinstance(out, Path) else folder), name


def _split(pattern: str) -> tuple[str, int, str]:
    match = _NUMBER.search(pattern)
    assert match is not None
    return pattern[: match.start()], len(match[1] or "") or int(match[2]), pattern[match.end() :]


def _contents(shard: Path | str) -> Iterable[tuple[str, Any]]:
    """Name of each image in a shard, and a function that reads it. Raises LabelMapError, PlaceError."""
    if str(shard).endswith(".tar"):
        for member, _ in members_of(shard):
            yield member.name, lambda member=member: _bytes(member)
        return
    with opened_table(shard) as table:
        for batch in table.iter_batches(batch_size=_ROW_GROUP, columns=["file", "image"]):
            for file, image in zip(batch.column(0), batch.column(1), strict=True):
                yield file.as_py(), image.as_py


def _bytes(member: Member) -> bytes:
    return member.load().content
