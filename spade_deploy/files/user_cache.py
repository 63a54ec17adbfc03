"""The user's own cache: what was computed once on this machine and can be computed again, outside every artifact."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spade_deploy.errors import ConfigError, reason_of

VARIABLE = "SPADE_CACHE_DIR"
"""The environment variable that puts the cache elsewhere."""


def user_cache(name: str) -> Path:
    """The folder of that name in the user's cache, which need not exist.

    The cache is $SPADE_CACHE_DIR where it is set, else `spade-deploy` in the system's folder for caches:
    $XDG_CACHE_HOME or ~/.cache, and %LOCALAPPDATA% on Windows. Raises ConfigError for a user without a home folder.
    """
    chosen = os.environ.get(VARIABLE)
    caches = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute() / name
        return (Path(caches) if caches else Path.home() / ".cache").absolute() / "spade-deploy" / name
    except RuntimeError as error:  # pathlib's word for: the system knows no home folder of this user
        raise ConfigError("there is no home folder for a cache", hint=f"{VARIABLE} names another place") from error


def make_private(folder: Path, what: str) -> None:
    """Make a folder for its owner alone: whoever could write to a cache of programs could get a program run.

    what: the setting that names the folder. Raises ConfigError if it cannot be made, or if others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise ConfigError(
            f"{what}: {folder} cannot be made: {reason_of(error)}", hint="give a folder that you may write to"
        ) from error
    if hasattr(os, "getuid") and (facts.st_uid != os.getuid() or facts.st_mode & 0o022):
        raise ConfigError(
            f"{what}: other users may write to {folder}, and the files there are code that is run",
            hint=f"chmod go-w {folder}, if it is yours; else give another folder",
        )
