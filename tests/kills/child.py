"""`spade` in a process that ends itself: `python -m tests.kills.child KILL_AT COUNT_FILE COMMAND...`.

KILL_AT: the number of the change of the file system before which the process kills itself; 0 for never.
COUNT_FILE: where the number of changes is written when the command ends by itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def main() -> None:
    kill_at, count_file = int(sys.argv[1]), Path(sys.argv[2])
    from spade_deploy.cli import app

    owner, seen = os.getpid(), [0]

    def on_audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not isinstance(flags, int) or not flags & WRITING:
                return
            if os.fsdecode(path) == os.devnull:
                return
        elif event not in CHANGES:
            return
        if os.getpid() != owner:
            return
        seen[0] += 1
        if seen[0] == kill_at:
            os.kill(owner, signal.SIGKILL)

    sys.addaudithook(on_audit)
    atexit.register(lambda: count_file.write_text(str(seen[0])))
    app(sys.argv[3:], prog_name="spade")


if __name__ == "__main__":
    main()
