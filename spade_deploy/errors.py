"""Every error that a user can cause, as one tree.

Each message says what happened, where, the value that was found and what is allowed; `hint` says what to do next. A
setting is named by its field, in backticks; the command line makes its flag of that when it prints the message.
The command line catches `SpadeError`, and what the system says of a file or a disk (`system_error`): any other
exception that reaches it is a defect of this package.

Messages are read on terminals, and files may hold megabytes, terminal codes and bytes that are no Unicode. So `quoted`
shows what comes from a file, cut, and `reason_of` shows what another library says, in one line.
"""

from __future__ import annotations

import errno
import os
import re
import reprlib

from spade_deploy.printable import printable

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_MOST_SHOWN = 80
_MOST_OF_A_REASON = 240

_short_repr = reprlib.Repr()
_short_repr.maxlevel, _short_repr.maxstring, _short_repr.maxother, _short_repr.maxlong = 3, 76, 76, 40
_short_repr.maxlist = _short_repr.maxtuple = _short_repr.maxdict = 8


def quoted(value: object) -> str:
    """A value as Python writes it, cut to 80 characters. Use it to show a value that was read from somebody's file."""
    text = printable(_short_repr.repr(value)).replace("\n", " ")
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def reason_of(error: BaseException) -> str:
    """Why a library failed, in one line as `line_of` makes it; the error's type where it does not say why."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return line_of(text) or type(error).__name__


def line_of(text: str, *, last: bool = False) -> str:
    """The first line of what a library said, or the last one, at most 240 characters without terminal codes.

    It is empty where nothing was said.
    """
    lines = _ANSI.sub("", text).strip().splitlines() or [""]
    if len(lines) > 1 and lines[0].endswith(":"):  # PyTorch's message about tensors that do not fit begins so
        lines[0] += f" {lines[1].strip()}"
    line = printable(lines[-1] if last else lines[0])
    return line if len(line) <= _MOST_OF_A_REASON else f"{line[: _MOST_OF_A_REASON - 3]}..."


class SpadeError(Exception):
    """The base of the tree.

    Message and hint can be printed as they are: they hold no character that a terminal would obey. The hint is the next
    step, and is printed on a line of its own.
    """

    exit_code = 1
    """The exit code of a command that ends with this error."""
    usual_hint = "check the path, and that you may read and write there"
    """The next step where an error has none of its own."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)

    @property
    def next_step(self) -> str:
        """What to do: the error's own hint, else what usually helps with errors of its kind."""
        return self.hint or self.usual_hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data loading workers): the default would drop the keyword argument.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[SpadeError], message: str, hint: str | None) -> SpadeError:
    return kind(message, hint=hint)


class ConfigError(SpadeError):
    """A setting is impossible or contradicts another one; the message names its field."""

    exit_code = 2
    usual_hint = "give another value"

    @property
    def next_step(self) -> str:
        return self.hint or ("leave one of them out" if "contradict" in self.message else self.usual_hint)


class MissingDependencyError(SpadeError):
    """A package that this command needs is not installed; the hint has the command that installs it."""


class NotFoundError(SpadeError):
    """There is nothing to work on; the hint names the command that makes it."""

    usual_hint = "check the path; a relative path begins in the current folder"


class FolderBusyError(SpadeError):
    """Another process is writing the folder; the message names it."""


class LabelMapError(SpadeError):
    """A label map, instance map or photo cannot be used: damaged, of the wrong kind or size, ids out of range."""

    usual_hint = (
        "repair or remove the file; `spade check-labels` finds all such files of a folder, and repairs what it can"
    )


class ImageTooLargeError(LabelMapError):
    """An image has more pixels than are decoded."""


class DatasetError(SpadeError):
    """A data set as a whole cannot be used: no pairs, a missing folder."""

    usual_hint = "check that these are the folders of label maps and photos; `spade check-labels` looks into every file"


class CheckpointError(SpadeError):
    """A checkpoint is damaged, of another format, or contradicts what was said of it."""

    usual_hint = "name another checkpoint; `spade inspect` tells what a file or a folder is"


class TrainingError(SpadeError):
    """Training cannot go on; the message says which checkpoint is the last good one."""

    usual_hint = (
        "continue from the last checkpoint with `spade train --resume`; other settings may help, such as a smaller size"
    )


class TrainingInterruptedError(SpadeError):
    """SIGINT or SIGTERM: the state was saved; the hint resumes it."""

    exit_code = 130


class ExportError(SpadeError):
    """A fold's precondition does not hold, or the graph cannot be written."""

    usual_hint = "`spade doctor` tells whether all packages fit together; without a problem there, please report it"


class ArtifactError(SpadeError):
    """An artifact is damaged or not an artifact."""

    usual_hint = "make the artifact again with `spade export`, or copy it again from an undamaged copy"


class NewerArtifactError(ArtifactError):
    """The artifact was written by a newer format than this version reads."""


class RuntimeUnavailableError(SpadeError):
    """The runtime or execution provider that was asked for does not load here."""

    usual_hint = "`spade doctor` tells which engines load here, and what to install"


class BuildError(SpadeError):
    """TensorRT built no engine, or not the one that was asked for."""

    usual_hint = "`spade doctor` tells what loads here; ONNX Runtime needs no build"


class InferInterruptedError(SpadeError):
    """SIGINT or SIGTERM while images were made; those that were written are whole."""

    exit_code = 130


class BuildInterruptedError(SpadeError):
    """The build was ended early; what was timed so far is kept."""

    exit_code = 130


class InputRefusedError(SpadeError):
    """A network input does not fit the artifact: name, dtype, shape or values."""

    usual_hint = "`spade inspect` tells which inputs the artifact takes"


class HubError(SpadeError):
    """The Hugging Face Hub was not reached, or refuses what was asked."""

    usual_hint = "check the network, the token and the name of the repository"


class ValidationFailedError(SpadeError):
    """What runs is not what was trained."""

    usual_hint = "do not deploy it; export it again"


def system_error(error: OSError) -> SpadeError | None:
    """What the system says of a file, a folder or a disk, as an error with its next step; None for any other error.

    An error that is expected somewhere is handled there, where more can be said of it. This one is for what may happen
    at every write, such as a full disk.
    """
    if isinstance(error, (BrokenPipeError, ConnectionError, TimeoutError, InterruptedError, ChildProcessError)):
        return None
    if error.errno is None or (error.filename is None and error.errno not in _NEXT_STEPS):
        return None
    what = error.filename2 if error.filename2 is not None else error.filename
    where = "" if what is None else f"{os.fsdecode(what) if isinstance(what, (str, bytes)) else what}: "
    return SpadeError(f"{where}{error.strerror}", hint=_NEXT_STEPS.get(error.errno))


_ELSEWHERE = "choose another folder"
_NEXT_STEPS = {
    errno.ENOSPC: f"free some space on that disk, or {_ELSEWHERE}",
    errno.EDQUOT: f"your disk quota is used up: free some space, or {_ELSEWHERE}",
    errno.EFBIG: f"the file system or a limit (ulimit -f) allows no larger file: {_ELSEWHERE}",
    errno.EROFS: f"the file system is mounted read-only: {_ELSEWHERE}",
    errno.EACCES: f"you may not use it: {_ELSEWHERE}, or change its permissions",
    errno.EPERM: f"you may not change it: {_ELSEWHERE}, or change its permissions",
    errno.EIO: "the disk or the network under it fails: look at the system's log (dmesg), and choose another disk",
    errno.ENOTDIR: "a file is in the place of a folder: remove it, or name another folder",
    errno.EISDIR: "a folder is in the place of a file: remove it, or name another file",
    errno.EEXIST: f"something else is in that place: remove it, or {_ELSEWHERE}",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EBUSY: "it is in use, or a file system is mounted there: name a folder inside it",
    errno.ELOOP: "its links lead in a circle: remove them",
    errno.EMFILE: "too many files are open: raise the limit, ulimit -n 4096",
    errno.ENOENT: "it or its folder was removed in the meantime: check that it is there",
    errno.EINVAL: f"such a file cannot be written there: {_ELSEWHERE}",
    errno.ENOLCK: _ELSEWHERE,
    errno.ESTALE: "the network file system lost the file: try again",
    errno.ENOMEM: "memory ran out: close other programs, or use smaller sizes",
}
