"""The real console script, run as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT


@dataclass(frozen=True)
class Mission:
    """The README's three commands, run in an empty folder through the console script; `said` is what each printed."""

    folder: Path
    commands: tuple[str, ...]
    said: tuple[str, ...]


def readme_blocks() -> list[list[str]]:
    """The commands of the README's shell blocks, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in blocks]


def spade(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real console script of this environment."""
    script = Path(sys.executable).with_name("spade")
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )
