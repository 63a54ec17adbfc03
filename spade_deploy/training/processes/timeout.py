"""How long a process waits for a peer that is alive but does not answer."""

from __future__ import annotations

import math
import os

from spade_deploy.errors import ConfigError

TIMEOUT_S = 1800.0
"""The default in seconds: longer than the longest evaluation takes."""
TIMEOUT_VARIABLE = "SPADE_TIMEOUT_S"
"""The environment variable that changes it."""


def timeout_s() -> float:
    """The timeout in seconds. Raises ConfigError for a variable that is not a number from 1 to a million."""
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE}: {text!r} is not a number of seconds from 1 on")
    return seconds
