"""Label maps in tar shards, as WebDataset has them: NAME.png or NAME.label.png, and NAME.instance.png beside it.

A shard's headers are read from its beginning to its end, and its images later, one by one: nothing is held in memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from spade_deploy.errors import LabelMapError, NotFoundError, SpadeError, reason_of
from spade_deploy.files.reading import open_regular
from spade_deploy.inference.jobs import failure
from spade_deploy.inference.places.found import Finder, Found
from spade_deploy.inference.places.listing import expanded
from spade_deploy.inference.places.origins import Member
from spade_deploy.inference.places.urls import PlaceError, filesystem, shown, url_error

LABELS = ("label.png", "label.bmp", "png", "bmp")
"""The extensions of a label map; an earlier one is taken before a later one."""
INSTANCES = ("instance.png", "instance.bmp")
_COPY_AGAIN = "copy the shard again, or make it anew; the same command goes on"


def find_in_shards(labels: Path | str) -> Found:
    """The samples of all shards that a path, a URL or a pattern names."""
    finder = Finder()
    for shard in expanded(labels, "shards"):
        try:
            _add(shard, finder)
        except PlaceError:
            raise
        except SpadeError as error:
            finder.failures.append(failure(_Shard(shard), error))
    found = finder.found()
    if not (found.items or found.failures):
        raise NotFoundError(
            f"{shown(labels)} holds no label maps", hint="they are members called NAME.png or NAME.label.png"
        )
    return found


class _Shard(Member):
    """A whole shard, as the subject of a failure."""

    def __init__(self, shard: Path | str) -> None:
        super().__init__(shard, "", 0, 0)

    def __str__(self) -> str:
        return shown(self.shard)


def _add(shard: Path | str, finder: Finder) -> None:
    """Add a shard's samples. Raises LabelMapError where it is cut off, after everything before that was added."""
    samples: dict[str, dict[str, Member]] = {}
    try:
        for member, problem in members_of(shard):
            key, _, extension = _parts(member.name)
            if problem is not None:
                finder.refuse(member, problem)
            elif extension in (*LABELS, *INSTANCES):
                known = samples.setdefault(key, {})
                if extension in known:
                    finder.refuse(member, "the shard has two members of this name")
                    continue
                known[extension] = member
            else:
                samples.setdefault(key, {})
    finally:
        for key, parts in samples.items():
            label = next((parts[extension] for extension in LABELS if extension in parts), None)
            if label is not None:
                instance = next((parts[extension] for extension in INSTANCES if extension in parts), None)
                finder.add(key, label, instance)
            elif parts:
                finder.refuse(next(iter(parts.values())), "there is no label map for it: NAME.png or NAME.label.png")


def _parts(name: str) -> tuple[str, str, str]:
    """Key, dot and extension: a key ends at the first dot of the last part of the path."""
    path = PurePosixPath(name.removeprefix("./"))
    stem, dot, extension = path.name.partition(".")
    if not stem:
        stem, dot, extension = path.name, "", ""
    folder = name.removeprefix("./").rpartition("/")[0]
    return (f"{folder}/{stem}" if folder else stem), dot, extension.lower()


def members_of(shard: Path | str) -> Iterator[tuple[Member, str | None]]:
    """The files of a shard in order, each with what is wrong with it, if anything is.

    Raises LabelMapError where the shard cannot be read, or at the place where it is cut off; PlaceError.
    """
    name = shown(shard)
    with _opened(shard) as (stream, size):
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (entry := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                    member = Member(shard, entry.name, entry.offset_data, entry.size)
                    if entry.isdir():
                        continue
                    if not entry.isreg():
                        yield member, "it is a link or a device, not a file"
                    elif entry.offset_data + entry.size > size:
                        raise LabelMapError(
                            f"{name} is cut off in {member.name}, at {size:,} bytes; what comes after it is missing",
                            hint=_COPY_AGAIN,
                        )
                    else:
                        yield member, None
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise LabelMapError(
                        f"{name} has no end mark: it is cut off or damaged at byte {archive.offset:,} of {size:,}",
                        hint=_COPY_AGAIN,
                    )
        except tarfile.TarError as error:
            raise LabelMapError(
                f"{name}: it is not a complete tar file: {reason_of(error)}", hint=_COPY_AGAIN
            ) from error


@contextmanager
def _opened(shard: Path | str) -> Iterator[tuple[IO[bytes], int]]:
    """A shard's stream and its size. Errors of the place inside the block become LabelMapError or PlaceError."""
    if isinstance(shard, Path):
        try:
            with open_regular(shard) as stream:
                yield stream, shard.stat().st_size
        except OSError as error:
            raise LabelMapError(f"{shard}: cannot be read: {reason_of(error)}") from error
        return
    fs, path = filesystem(shard)
    try:
        with fs.open(path, "rb", block_size=8 << 20, cache_type="readahead") as remote:
            yield remote, int(remote.size)
    except (SpadeError, tarfile.TarError, GeneratorExit):
        raise
    except Exception as error:
        raise url_error(error, shard, "read") from error
