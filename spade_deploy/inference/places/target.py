"""Where images go: what the processes that make them know of the place. A target can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Kept:
    """An image that was handed over to its place."""

    sha256: str
    """The SHA-256 of its file."""

    content: bytes | None = None
    """The file itself, if the process that plans has to write it."""


class Target(Protocol):
    """A place that takes the file of an image."""

    def where(self, name: str) -> str:
        """What messages call the image of that name."""
        ...

    def put(self, name: str, content: bytes) -> Kept:
        """Keep a file whole or not at all. Raises OSError or SpadeError."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine's disks. `inference/pipeline.py` writes into it."""

    path: Path
    """The folder."""

    def where(self, name: str) -> str:
        """See `Target.where`."""
        return str(self.path / name)
