"""From the field that an error names to the flag that a user typed.

Below `commands/` a message names a setting by its field, in backticks: "`batch_size`: 0 is not in 1..4096". When the
command line prints it, the flag of the running command takes its place: "--batch-size: 0 is not in 1..4096".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMED = re.compile(r"`([a-z_][a-z0-9_.]*)`")
_running: Mapping[str, str] = {}


def in_flags(text: str, table: Mapping[str, str] | None = None) -> str:
    """The text with every `name` in backticks that the table knows replaced by its flag.

    table: by default that of the command that runs. Other words in backticks, such as whole command lines, stay.
    """
    flags = _running if table is None else table
    return _NAMED.sub(lambda match: flags.get(match[1], match[0]), text)


def use_flags(table: Mapping[str, str]) -> None:
    """Replace names by the flags of this table from now on. It is called once, when a command begins.

    The table is that of the whole process, not of a thread: threads of data loaders warn, too.
    """
    global _running
    _running = table
