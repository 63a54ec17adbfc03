"""Remove what killed processes left in run folders: parts of checkpoints and artifacts are large; nothing reads them.

Training does it for its run, an export for every run, before they write. Nothing of a living process is touched.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from spade_deploy.files import temporary
from spade_deploy.runs.layout import CHECKPOINTS

_OLD_NAME = re.compile(r"\.step_\d+\.[^.]+\.tmp")  # the name that version 0.1.0 and older used


def sweep_run(run: Path) -> None:
    """Remove the unfinished files of killed processes from one run's folder."""
    for folder in (run, run / CHECKPOINTS, run / "samples"):
        temporary.sweep(folder)
    for folder in (run / CHECKPOINTS).glob(".step_*"):
        if _OLD_NAME.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def sweep_runs(runs_dir: Path) -> None:
    """Remove them from every run in a folder of runs, and from that folder itself."""
    temporary.sweep(runs_dir)
    with suppress(OSError):  # there may be no such folder
        for run in sorted(runs_dir.iterdir()):
            if run.is_dir() and not run.is_symlink():
                sweep_run(run)
