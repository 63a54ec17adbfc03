"""What goes from a run's folder: old checkpoints, what a killed process left, and steps that are no longer its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from spade_deploy.files import atomic, temporary
from spade_deploy.runs import BEST_JSON, CHECKPOINTS, read_checkpoint_info, run_checkpoints

SET_ASIDE = "set_aside"
_LEFTOVER = re.compile(r"\.step_\d+\.[^.]+\.tmp")  # as version 0.1.0 and older named it
_SAMPLE = re.compile(r"step_(\d{1,12})\.png")


def prune(run: Path, count: int, kept: Collection[Path]) -> None:
    """Remove all checkpoints but the last `count` by step, and those in `kept`. Raises OSError."""
    for folder in run_checkpoints(run)[:-count]:
        if folder not in kept:
            atomic.discard(folder)


def sweep(run: Path) -> None:
    """Remove what killed processes left: of a checkpoint it is as large as one, and nothing reads it."""
    for folder in (run, run / CHECKPOINTS, run / "samples"):
        temporary.sweep(folder)
    for folder in (run / CHECKPOINTS).glob(".step_*"):
        if _LEFTOVER.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside_later(run: Path, step: int) -> str:
    """Move the checkpoints of later steps than `step`, and what was made of them, out of the way of a run that goes on
    from there: inside a run the last step counts as the newest, and theirs are of a training that was given up.

    Returns a sentence on what was moved where, '' where there was nothing. Raises OSError.
    """
    later = [folder for folder in run_checkpoints(run) if read_checkpoint_info(folder).step > step]
    if not later:
        return ""
    number = 1
    while (place := run / f"{SET_ASIDE}-{number:03d}").exists():
        number += 1
    for folder in later:
        _move(folder, place / CHECKPOINTS / folder.name)
    for picture in (run / "samples").glob("step_*.png"):
        match = _SAMPLE.fullmatch(picture.name)
        if match and int(match[1]) > step:
            _move(picture, place / "samples" / picture.name)
    if (run / BEST_JSON).is_file():
        shutil.copyfile(run / BEST_JSON, place / BEST_JSON)
    what = "the checkpoint of a later step was" if len(later) == 1 else f"{len(later)} checkpoints of later steps were"
    return f"the run goes on from step {step}: {what} moved to {place}"


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
