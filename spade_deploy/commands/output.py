"""How a command reports: as text for people, as one JSON document (`json`), as errors alone (`quiet`), to a log file.

Every command has these options, since `options.RequestCommand` adds them: a handler prints as usual, with
`console.stdout` and its siblings, and calls `report` once with its result. With `--json` all text goes to stderr, and
when the command ends, `finish` prints the one document to stdout:

    {"command": "export", "exit_code": 0, "result": {...}, "files": {...}, "notes": [...], "next": [...], "error": null}
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.settings import setting
from spade_deploy.version import __version__

GROUP = "Output"
"""The heading of these options in `--help`."""


@dataclass(frozen=True)
class OutputOptions:
    """What every command takes beside its own options."""

    json: bool = setting(False, help="Print one JSON document to stdout; everything else goes to stderr.", group=GROUP)
    quiet: bool = setting(False, help="Print only errors.", group=GROUP)
    log_file: Path | None = setting(
        None, help="Append everything that is printed to this file, with the time.", group=GROUP, metavar="FILE"
    )


@dataclass
class _Output:
    """What the running command has reported so far. A process runs one command at a time."""

    options: OutputOptions = field(default_factory=OutputOptions)
    command: str = ""
    args: tuple[str, ...] = ()
    result: Any = None
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    log: TextIO | None = None


_running = _Output()


def begin(command: str, args: Sequence[str]) -> None:
    """A command begins with this command line, which is not checked yet: its errors are reported as it asks, too."""
    finish_log()
    own = list(args[: args.index("--")] if "--" in args else args)
    _running.__dict__.update(_Output(OutputOptions("--json" in own, "--quiet" in own), command, tuple(own)).__dict__)


def running_command() -> str:
    """The words of the command that runs, without `spade`."""
    return _running.command


def typed_value(flag: str) -> str | None:
    """What was typed after a flag, the last time; None if it was not typed."""
    found = None
    for word, following in zip(_running.args, [*_running.args, ""][1:], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def was_typed(flag: str) -> bool:
    """Whether a flag stands in the command line, with its value behind it or after an equals sign."""
    return any(word == flag or word.startswith(f"{flag}=") for word in _running.args)


def typed_words() -> list[str]:
    """The command that runs, as it was typed, without `spade`."""
    return [*_running.command.split(), *_running.args]


def use(options: OutputOptions) -> None:
    """The command line was understood: from now on its options hold. Raises SpadeError if no log can be written."""
    _running.options = options
    if options.log_file is None:
        return
    try:
        options.log_file.parent.mkdir(parents=True, exist_ok=True)
        _running.log = options.log_file.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SpadeError(
            f"`log_file`: {options.log_file} cannot be written: {reason_of(error)}", hint="name another file"
        ) from error
    log(f"spade-deploy {__version__}: spade {_running.command} {shlex.join(_running.args)}".rstrip())


def leave_to_main() -> None:
    """Another process reports for this one, too: it prints no document, writes no log, and prints errors alone."""
    finish_log()
    _running.options = OutputOptions(quiet=True)


def is_json() -> bool:
    """Whether stdout belongs to the JSON document."""
    return _running.options.json


def is_quiet() -> bool:
    """Whether errors alone are printed."""
    return _running.options.quiet


def has_log() -> bool:
    """Whether a log file is written."""
    return _running.log is not None


def log(text: str) -> None:
    """Append lines to the log file, each with the time."""
    if _running.log is not None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        _running.log.writelines(f"{now} {line}\n" for line in text.splitlines() if line.strip())
        _running.log.flush()


def report(result: Any) -> None:
    """The result of the command for `--json`: a mapping, a list or a dataclass of what JSON can hold."""
    _running.result = result


def add_file(what: str, path: Path) -> None:
    """A file or folder that the command made, and what it is."""
    _running.files[what] = str(path)


def add_note(text: str) -> None:
    """Something that the reader should know."""
    _running.notes.append(text)


def add_next(command: str) -> None:
    """The next command to type."""
    _running.next.append(command)


def fail(kind: str, message: str, hint: str | None) -> None:
    """The error with which the command ends."""
    _running.error = {"type": kind, "message": message, "next": hint}


def finish(exit_code: int) -> int:
    """Print the JSON document, if one was asked for, and close the log.

    Returns the exit code: not 0 if the document cannot be written, as to a full disk or a pipe that nobody reads.
    """
    if is_json():
        document = {
            "command": _running.command,
            "exit_code": exit_code,
            "result": plain(_running.result),
            "files": _running.files,
            "notes": _running.notes,
            "next": _running.next,
            "error": _running.error,
        }
        try:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True) + "\n")
            sys.stdout.flush()
        except OSError as error:
            exit_code = exit_code or 1
            said = f"error: the JSON document cannot be written: {reason_of(error)}"
            log(said)
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{said}\nnext: what the command made is there; only the document is missing\n")
            _leave_stdout()
    log(f"exit code {exit_code}")
    finish_log()
    _running.options = OutputOptions()
    return exit_code


def _leave_stdout() -> None:
    """Let what is still in the buffer of stdout go nowhere, since Python writes it at its end, and would fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def finish_log() -> None:
    """Close the log file."""
    if _running.log is not None:
        _running.log.close()
        _running.log = None


def plain(value: Any) -> Any:
    """A value as JSON holds it; numbers that JSON does not know, such as infinity, become null."""
    from spade_deploy.fields import to_json

    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if hasattr(value, "item") and not hasattr(value, "__len__"):  # a number of NumPy
        return plain(value.item())
    return plain(value.to_json() if hasattr(value, "to_json") else to_json(value))
