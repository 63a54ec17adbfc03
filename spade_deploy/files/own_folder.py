"""Folders that a command writes as a whole, with a record of their files: only such a folder is ever replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.files.reading import read_json
from spade_deploy.files.temporary import bring_back


def record_text(files: Iterable[str], facts: Mapping[str, Any]) -> str:
    """The text of a record. files: every other file by its name relative to the folder, with forward slashes."""
    return json.dumps({**facts, "files": sorted(files)}, indent=2) + "\n"


def require_free(target: Path, record: str, field: str, what: str) -> None:
    """Raise ConfigError unless there is nothing at `target`, an empty folder, or an earlier result and nothing else.

    record: the name of the file that tells the files of an earlier result. field: the setting that names the folder.
    what: what such a folder is called, as in 'exists and is not a web folder'.
    """
    bring_back(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    hint = "name another folder; if nothing in it is needed, delete it first"
    try:
        known = set(read_json(target / record)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"`{field}`: {target} exists and is not a {what}, so it is not replaced", hint=hint
        ) from error
    foreign = sorted(
        name
        for path in target.rglob("*")
        if path.is_file() and (name := path.relative_to(target).as_posix()) not in known | {record}
    )
    if foreign:
        raise ConfigError(f"`{field}`: {target} holds other files, so it is not replaced ({foreign[0]})", hint=hint)
