"""The paths of a run's data and files: they are saved as absolute paths, and found again if run and data were moved."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import NotFoundError
from spade_deploy.labels.layouts import FOLDERS
from spade_deploy.runs.data_record import place_of_run
from spade_deploy.training.config import Setup

_DATA = {"root": "root", **{name: name.removesuffix("_dir") for name in FOLDERS}}
"""The paths in `DataConfig`, each with the field of the request that sets it."""
_FILES = ("perceptual_file", "extractor", "segmenter")
"""The paths in `TrainConfig`; the request has the same names."""


def with_absolute_paths(setup: Setup) -> Setup:
    """The setup with absolute paths, so that the run can be resumed and exported from any folder."""
    return _with_paths(setup, lambda field, path: path.absolute())


def found_again(setup: Setup, run: Path) -> tuple[Setup, tuple[str, ...]]:
    """The setup of a run to resume, with paths that exist, and a sentence for each path that is a new one.

    A path that does not exist any more is looked for at the same place relative to the run. A relative path, which
    older versions saved, is looked for in the folder that holds RUNS. Raises NotFoundError, which names the field, for
    a path that is not found.
    """
    notes: list[str] = []

    def find(field: str, path: Path) -> Path:
        if path.exists():
            return path.absolute()
        for candidate in _candidates(path, run.absolute()):
            if candidate.exists():
                notes.append(f"{path} no longer exists; it is taken from {candidate} (`{field}`)")
                return candidate
        where = "" if path.is_absolute() else f" from {Path.cwd()}"
        raise NotFoundError(
            f"{run}: `{field}` {path}, which it trains with, does not exist{where}",
            hint=f"say where it is now: spade train --resume {shlex.quote(str(run))} `{field}` PATH",
        )

    return _with_paths(setup, find), tuple(notes)


def _candidates(path: Path, run: Path) -> list[Path]:
    if not path.is_absolute():
        return [folder / path for folder in run.parents[1:2]]  # the run is RUNS/NAME: this is the folder with RUNS
    before = place_of_run(run)
    if before is None or not before.is_absolute():
        return []
    return [Path(os.path.normpath(run / os.path.relpath(path, before)))]


def _with_paths(setup: Setup, change: Callable[[str, Path], Path]) -> Setup:
    data: dict[str, Any] = {
        name: change(asked, path) for name, asked in _DATA.items() if (path := getattr(setup.data, name)) is not None
    }
    train: dict[str, Any] = {
        name: change(name, path) for name in _FILES if (path := getattr(setup.train, name)) is not None
    }
    return replace(setup, data=replace(setup.data, **data), train=replace(setup.train, **train))
