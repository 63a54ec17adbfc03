"""One case: a folder, a seed, the good files, and the watch over what is tried with a damaged one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .corpus import Corpus
from .watch import Watch

FOLDERS = ("in", "out", "runs", "tmp", "cwd")


@dataclass
class Case:
    """in: the damaged input, which no command may write to. out, runs, tmp, cwd: what commands may write to.

    damages: what was done to the input, for people.
    """

    rng: random.Random
    folder: Path
    corpus: Corpus
    watch: Watch
    damages: list[str] = field(default_factory=list)

    @property
    def input(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def write(self, name: str, damaged: tuple[bytes, str]) -> Path:
        """Put a damaged file into the input folder, under its name."""
        content, what = damaged
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.damages.append(f"{name}: {what}")
        return path

    def copy(self, source: Path, name: str | None = None) -> Path:
        """Copy a good file or folder into the input folder."""
        target = self.input / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target


Reader = Callable[[Case], None]
