"""The processor cores that this process may use, and the limit that they set for threads and processes."""

from __future__ import annotations

import logging
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import overload

_LOG = logging.getLogger(__name__)


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@overload
def at_most_cores(asked: int, name: str) -> int: ...
@overload
def at_most_cores(asked: int | None, name: str) -> int | None: ...
def at_most_cores(asked: int | None, name: str) -> int | None:
    """How many threads or processes to use: `asked`, but at most one a core, since more would only wait.

    asked: None leaves the number to whoever starts them. name: the setting that asks for them, which the warning about
    too few cores names.
    """
    cores = usable_cores()
    if asked is None or asked <= cores:
        return asked
    _LOG.warning("`%s` %d: only %d cores may be used here, so %d are used", name, asked, cores, cores)
    return cores


def core_shares(count: int) -> list[tuple[int, ...]]:
    """The usable cores in `count` shares of about equal size. Threads of one physical core stay together.

    Where the system does not name cores, they are counted from 0. count: at most the number of usable cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cores()))
    cores.sort(key=lambda core: (_siblings(core), core))
    ends = [round(part * len(cores) / count) for part in range(count + 1)]
    return [tuple(cores[begin:end]) for begin, end in pairwise(ends)]


def _siblings(core: int) -> int:
    """The lowest number among the threads of a physical core, by Linux; the core itself where nothing says it."""
    try:
        listed = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
        return int(re.split(r"[,-]", listed.strip())[0])
    except (OSError, ValueError):
        return core
