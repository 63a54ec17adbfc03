"""Where images go: what the processes that make them know of the place. A target can be pickled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import sha256_of_bytes


@dataclass(frozen=True)
class Kept:
    """An image that was handed over to its place."""

    sha256: str
    """The SHA-256 of its file."""

    content: bytes | None = None
    """The file itself, if the process that plans has to write it."""


class Target(ABC):
    """A place that takes the files of images. A name may have folders in it, as berlin/0001.png."""

    is_remote: ClassVar[bool] = False
    """Whether handing a file over mostly is waiting for another machine."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call it."""

    @abstractmethod
    def take(self, name: str, content: bytes) -> bytes | None:
        """Keep a file whole or not at all, or return it for the process that plans. Raises OSError or SpadeError."""

    def where(self, name: str) -> str:
        """What messages call the image of that name."""
        return f"{self.place.rstrip('/')}/{name}"

    def put(self, name: str, content: bytes) -> Kept:
        """Hand a file over. Raises as `take` does."""
        return Kept(sha256_of_bytes(content), self.take(name, content))


@dataclass(frozen=True)
class Folder(Target):
    """A folder on this machine's disks."""

    path: Path
    """The folder."""

    @property
    def place(self) -> str:
        return str(self.path)

    def take(self, name: str, content: bytes) -> None:
        """See `Target.take`."""
        with atomic_file(self.path / name, flush="file") as temporary:
            temporary.write_bytes(content)
