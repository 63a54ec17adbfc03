"""The processor cores that this process may use, and the limit that they set for threads and processes."""

from __future__ import annotations

import logging
import os
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
