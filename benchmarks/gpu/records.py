"""What a step finds, written down as it comes: a step that dies keeps what it had found."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from spade_deploy.errors import MissingDependencyError, RuntimeUnavailableError, SpadeError, reason_of
from spade_deploy.files.atomic import write_json


class Status(StrEnum):
    """Skipped: what the step needs is not here. Failed: something that was measured is wrong, or the step broke."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size.

    figures: numbers by name, the unit in the name. times_ms: every single time by what was timed ('device',
    'end_to_end'). failures: why it has no figures or wrong ones, in words. note: what a reader should know.
    """

    name: str
    batch: int | None = None
    figures: dict[str, float | None] = field(default_factory=dict)
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    note: str = ""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        return cls(**{**value, "failures": tuple(value["failures"])})


@dataclass
class Outcome:
    """A step and all it found. facts: what is no row, such as the versions of what ran."""

    step: str
    status: Status = Status.RUNNING
    reason: str = ""
    hint: str = ""
    seconds: float | None = None
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows": [{**vars(row), "failures": list(row.failures)} for row in self.rows]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Outcome:
        rows = [Row.from_json(row) for row in value["rows"]]
        return cls(**{**value, "status": Status(value["status"]), "rows": rows})


class Book:
    """An outcome that is written to its file with every entry. Without a path it is only kept."""

    def __init__(self, step: str, path: Path | None = None) -> None:
        self.outcome = Outcome(step)
        self._path = path
        self._write()

    def add(self, row: Row) -> None:
        self.outcome.rows.append(row)
        self._write()

    def note(self, name: str, value: Any) -> None:
        """Keep a fact."""
        self.outcome.facts[name] = value
        self._write()

    def finish(self, status: Status, reason: str = "", hint: str | None = None) -> None:
        self.outcome.status, self.outcome.reason, self.outcome.hint = status, reason, hint or ""
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, self.outcome.to_json())


def run_step(book: Book, step: Callable[[Book], None]) -> Outcome:
    """Run a step to its end, whatever that is: nothing but an interruption comes out of it."""
    try:
        step(book)
    except (MissingDependencyError, RuntimeUnavailableError) as error:
        book.finish(Status.SKIPPED, error.message, error.hint)
    except SpadeError as error:
        book.finish(Status.FAILED, error.message, error.hint)
    except Exception as error:  # a defect of one step must not take the others with it
        where = traceback.extract_tb(error.__traceback__)[-1]
        book.finish(Status.FAILED, f"{error_text(error)} ({Path(where.filename).name}:{where.lineno})")
    else:
        wrong = [row for row in book.outcome.rows if row.failures]
        if wrong:
            count = f"{len(wrong)} of {len(book.outcome.rows)} failed"
            book.finish(Status.FAILED, f"{count}; {wrong[0].name}: {wrong[0].failures[0]}")
        else:
            book.finish(Status.DONE)
    return book.outcome


def read_outcome(step: str, path: Path, died: str) -> Outcome:
    """What a process wrote of its step. died: why it ended without finishing, '' where it ended well."""
    try:
        outcome = Outcome.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        outcome = Outcome(step)
    if outcome.status is Status.RUNNING:
        outcome.status = Status.FAILED
        outcome.reason = died or "its process ended without a result"
    return outcome


def error_text(error: BaseException) -> str:
    """An exception in one line: its message where it is one for people, else with its type."""
    said = reason_of(error)
    return said if isinstance(error, SpadeError) else f"{type(error).__name__}: {said}"
