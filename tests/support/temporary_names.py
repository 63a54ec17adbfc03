"""Temporary names as processes that are gone have left them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def of_a_dead_process(folder: Path, name: str, ending: str = ".tmp") -> Path:
    """A temporary name in the form of a process that is gone."""
    script = f"from spade_deploy.files import temporary; print(temporary.temporary_name({name!r}, {ending!r}))"
    return folder / subprocess.check_output([sys.executable, "-c", script], text=True).strip()
