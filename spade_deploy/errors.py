"""Every error that a user can cause, as one tree.

Each message says what happened, where, the value that was found and what is allowed; `hint` says what to do next.
The command line catches `SpadeError` alone: any other exception that reaches it is a defect of this package.
"""

from __future__ import annotations


class SpadeError(Exception):
    """Base of the tree. `hint` is the next step, printed on a line of its own; `exit_code` is the process's."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

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
