"""Every error that a user can cause, as one tree.

Each message says what happened, where, the value that was found and what is allowed; `hint` says what to do next.
The command line catches `SpadeError` alone: any other exception that reaches it is a defect of this package.

What comes from a file is shown by `quoted`, which cuts it, and what another library says by `reason_of`: a message is
for a terminal, and a file may hold megabytes, terminal codes and what is no Unicode.
"""

from __future__ import annotations

import re
import reprlib

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Control characters but the line feed, halves of surrogate pairs (which no encoding takes), and marks that turn the
# direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_MOST_SHOWN = 80
_MOST_OF_A_REASON = 240

_short_repr = reprlib.Repr()
_short_repr.maxlevel, _short_repr.maxstring, _short_repr.maxother, _short_repr.maxlong = 3, 76, 76, 40
_short_repr.maxlist = _short_repr.maxtuple = _short_repr.maxdict = 8


def printable(text: str) -> str:
    """A text that every terminal takes: control characters and halves of surrogate pairs are escaped, lines stay."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def quoted(value: object) -> str:
    """A value that was read from somebody's file, as Python writes it, cut to about 80 characters."""
    text = printable(_short_repr.repr(value)).replace("\n", " ")
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def reason_of(error: BaseException) -> str:
    """Why a library failed, in one line of at most 240 characters, without terminal codes: to stand in parentheses."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = _ANSI.sub("", text).strip().splitlines()
    line = printable(lines[0]) if lines else type(error).__name__
    return line if len(line) <= _MOST_OF_A_REASON else f"{line[: _MOST_OF_A_REASON - 3]}..."


class SpadeError(Exception):
    """Base of the tree. `hint` is the next step, printed on a line of its own; `exit_code` is the process's.

    Both can be printed as they are: what is no printable character in them is escaped.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data loading workers): the default would drop the keyword argument.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[SpadeError], message: str, hint: str | None) -> SpadeError:
    return kind(message, hint=hint)


class ConfigError(SpadeError):
    """A setting is impossible or contradicts another one; the message names the flag."""

    exit_code = 2


class MissingDependencyError(SpadeError):
    """A package that this command needs is not installed; the hint has the command that installs it."""


class NotFoundError(SpadeError):
    """There is nothing to work on; the hint names the command that makes it."""


class FolderBusyError(SpadeError):
    """Another process is writing the folder; the message names it."""


class LabelMapError(SpadeError):
    """A label map, instance map or photo cannot be used: damaged, of the wrong kind or size, ids out of range."""


class DatasetError(SpadeError):
    """A data set as a whole cannot be used: no pairs, a missing folder."""


class CheckpointError(SpadeError):
    """A checkpoint is damaged, of another format, or contradicts what was said of it."""


class TrainingError(SpadeError):
    """Training cannot go on; the message says which checkpoint is the last good one."""


class TrainingInterruptedError(SpadeError):
    """SIGINT or SIGTERM: the state was saved; the hint resumes it."""

    exit_code = 130


class ExportError(SpadeError):
    """A fold's precondition does not hold, or the graph cannot be written."""


class ArtifactError(SpadeError):
    """An artifact is damaged or not an artifact."""


class NewerArtifactError(ArtifactError):
    """The artifact was written by a newer format than this version reads."""


class RuntimeUnavailableError(SpadeError):
    """The runtime or execution provider that was asked for does not load here."""


class BuildError(SpadeError):
    """TensorRT built no engine, or not the one that was asked for."""


class BuildInterruptedError(SpadeError):
    """The build was ended early; what was timed so far is kept."""

    exit_code = 130


class InputRefusedError(SpadeError):
    """A network input does not fit the artifact: name, dtype, shape or values."""


class ValidationFailedError(SpadeError):
    """What runs is not what was trained."""
