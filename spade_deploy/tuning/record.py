"""What was measured and checked of an artifact on one machine, and the file of the user's cache that keeps it.

A file that is missing, damaged, or that cannot be read or written never ends a run: what it should hold is measured
again, and one line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.fields import Rule, from_json, to_json
from spade_deploy.files.atomic import write_json
from spade_deploy.files.reading import read_json
from spade_deploy.files.user_cache import user_cache
from spade_deploy.spec import GraphChoice, GraphKind, Precision
from spade_deploy.tuning.key import TuningKey

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
MOST_BYTES = 1 << 20
MOST_SESSIONS = 8
"""The sessions that a file keeps; of more, the oldest goes."""
MOST_FILES = 200
"""The files that the folder keeps; of more, those go that were written longest ago."""


@dataclass(frozen=True)
class EngineChoice:
    """One way to run an artifact: an engine, and the arithmetic that it runs in."""

    backend: str
    """The engine."""
    precision: Precision
    """The arithmetic."""


@dataclass(frozen=True)
class GoldenCheck:
    """What the golden images say of one graph in one engine, on this machine."""

    candidate: EngineChoice
    """The engine and the precision."""
    kind: GraphKind
    """The graph."""
    failures: tuple[str, ...]
    """One sentence for each limit that its images exceed; empty if they are right."""
    psnr_db: float | None
    """The PSNR against the reference in dB; None if the images are the same."""


@dataclass(frozen=True)
class Time:
    """How fast one candidate was in a session."""

    candidate: EngineChoice
    """The engine and the precision."""
    ms: Annotated[float, Rule(lambda ms: ms > 0, "more than 0")]
    """Milliseconds for an image of the golden maps, each on the graph that the rule gives it."""
    break_even_share: Annotated[float, Rule(lambda share: 0 <= share <= 1, "in 0..1")] | None = None
    """The share of unique patterns up to which the lookup graph is faster in this engine; None if it was not measured,
    and the manifest's holds."""


@dataclass(frozen=True)
class Session:
    """Candidates that were measured side by side. Times of two sessions are never compared."""

    graph: GraphChoice
    """The graph that was asked for."""
    is_careful: bool
    """Whether `spade bench --tune` measured it."""
    unix_s: int
    """When it was, in seconds since 1970."""
    times: tuple[Time, ...]
    """The candidates that were timed."""
    left_out: tuple[EngineChoice, ...] = ()
    """The candidates that could not be opened, or whose images were wrong."""

    @property
    def candidates(self) -> frozenset[EngineChoice]:
        """All that it says something of."""
        return frozenset([*(time.candidate for time in self.times), *self.left_out])

    def covers(self, graph: GraphChoice, wanted: Sequence[EngineChoice]) -> bool:
        """Whether it says which of these candidates is the fastest."""
        return self.graph is graph and bool(self.times) and self.candidates >= set(wanted)


@dataclass(frozen=True)
class Record:
    """All that is known of an artifact on this machine."""

    key: TuningKey
    """What it holds for."""
    checks: tuple[GoldenCheck, ...] = ()
    """One for each graph in each engine that was checked."""
    sessions: tuple[Session, ...] = ()
    """What was measured, the newest last."""
    format_version: int = field(default=FORMAT_VERSION)
    """The version of this format."""

    def check_of(self, candidate: EngineChoice, kind: GraphKind) -> GoldenCheck | None:
        """What is known of a graph in an engine; None if it was not checked."""
        return next((one for one in self.checks if (one.candidate, one.kind) == (candidate, kind)), None)

    def failures_of(self, candidate: EngineChoice) -> tuple[str, ...]:
        """Why a candidate is out: a sentence for each limit that one of its graphs exceeds."""
        return tuple(
            f"{one.kind} graph: {why}" for one in self.checks if one.candidate == candidate for why in one.failures
        )

    def session_for(self, graph: GraphChoice, wanted: Sequence[EngineChoice]) -> Session | None:
        """The session that says which of these is the fastest: a careful one before others, then the newest."""
        found = [one for one in self.sessions if one.covers(graph, wanted)]
        return max(found, key=lambda one: (one.is_careful, one.unix_s), default=None)

    def with_check(self, check: GoldenCheck) -> Record:
        """The record with one more check, in place of an older one of the same graph."""
        others = [one for one in self.checks if (one.candidate, one.kind) != (check.candidate, check.kind)]
        return replace(self, checks=(*others, check))

    def with_session(self, session: Session) -> Record:
        """The record with one more session. Those that say nothing beyond it go."""
        rest = [
            one
            for one in self.sessions
            if not (
                one.graph is session.graph
                and (session.is_careful or not one.is_careful)
                and one.candidates <= session.candidates
            )
        ]
        return replace(self, sessions=(*rest, session)[-MOST_SESSIONS:])


class Notebook:
    """The record of an artifact while more is learned of it. Each addition is written at once."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.kept = ""
        """Where it is kept, or why it is not; empty before anything was added."""

    def add(self, what: GoldenCheck | Session) -> None:
        """Add what a check or a measurement found."""
        record = self.record
        self.record = record.with_check(what) if isinstance(what, GoldenCheck) else record.with_session(what)
        self.kept = keep(self.record)


def record_file(key: TuningKey) -> Path:
    """Where the record of that key lies. Raises ConfigError for a user without a home folder."""
    return user_cache("auto") / f"{key.digest[:32]}.json"


def read_record(key: TuningKey) -> Record:
    """What is known under that key; an empty record, after a warning, if the file cannot be used."""
    try:
        path = record_file(key)
    except ConfigError:
        return Record(key)  # `keep` says so
    try:
        record = from_json(Record, read_json(path, MOST_BYTES))
        if record.format_version != FORMAT_VERSION:
            raise ConfigError(f"it is of format {record.format_version}, not {FORMAT_VERSION}")
        if record.key != key:
            raise ConfigError("it is of another machine, artifact or version than its name says")
    except FileNotFoundError:
        return Record(key)
    except (OSError, ValueError, ConfigError) as error:
        _LOG.warning("%s: what was measured cannot be read (%s): it is measured again", path, reason_of(error))
        return Record(key)
    return record


def keep(record: Record) -> str:
    """Write a record. Returns how the line that tells of it ends: where it is kept, or why it is not."""
    try:
        path = record_file(record.key)
    except ConfigError as error:
        return f"not kept: {error.message}; {error.hint}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, to_json(record))
    except OSError as error:
        return f"not kept: {path}: {reason_of(error)}"
    _remove_oldest(path.parent)
    return f"kept in {path}"


def _remove_oldest(folder: Path) -> None:
    with suppress(OSError):
        files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[MOST_FILES:]:
            file.unlink(missing_ok=True)
