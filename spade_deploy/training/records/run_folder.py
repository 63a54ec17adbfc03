"""Clean up a run's folder: remove old checkpoints, and set abandoned steps aside."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from spade_deploy.files import atomic
from spade_deploy.runs import BEST_JSON, CHECKPOINTS, read_checkpoint_info, run_checkpoints

SET_ASIDE = "set_aside"
_SAMPLE = re.compile(r"step_(\d{1,12})\.png")


def prune(run: Path, count: int, kept: Collection[Path]) -> None:
    """Remove all checkpoints but the last `count` by step, and those in `kept`. Raises OSError."""
    for folder in run_checkpoints(run)[:-count]:
        if folder not in kept:
            atomic.discard(folder)


def set_aside_later(run: Path, step: int) -> str:
    """Move the checkpoints and sample grids of later steps than `step` out of the way of a run that resumes there.

    Otherwise the last of them would count as the run's newest checkpoint, although that training was abandoned. Returns
    a sentence on what was moved where, which is empty if nothing was. Raises OSError.
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
    return f"the run continues from step {step}: {what} moved to {place}"


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
