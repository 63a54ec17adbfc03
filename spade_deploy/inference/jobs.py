"""What is passed between the process that plans and those that make images: jobs, and what came of them.

Everything here can be pickled, so that a job may run in another process or on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from spade_deploy.images.image_file import ImageBytes


class Stored(Protocol):
    """An image that lies elsewhere than in a file of its own on this machine's disks. It can be pickled.

    Its `str` is what messages call it; it has no password or signature in it.
    """

    def load(self) -> ImageBytes:
        """Read its bytes. Raises LabelMapError where it alone cannot be read, SpadeError where nothing can."""
        ...


Origin = Path | Stored
"""Where the bytes of a label map or an instance map are."""


def loaded(origin: Origin) -> Path | ImageBytes:
    """What a reader of images takes: the path itself, or the bytes. Raises as `Stored.load` does."""
    return origin if isinstance(origin, Path) else origin.load()


@dataclass(frozen=True)
class Job:
    """One image to make."""

    id: str
    """The name of the sample. No two jobs of a run have the same."""

    label: Origin
    """The label map."""

    instance: Origin | None
    """The instance map; None if the model takes none."""

    result: str
    """The name of the image in the place of the results, such as 0001.png."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job: an image, or the reason why there is none."""

    id: str
    """The job's id."""

    label: Origin
    """The job's label map."""

    file: str | None
    """The name of the image that was written; None if there is none."""

    sha256: str = ""
    """The SHA-256 of the image's file."""

    was_resized: bool = False
    """Whether the label map had another size than the model ran at."""

    seconds: float = 0.0
    """The time that the model took for it: its share of the time of its batch."""

    error: str | None = None
    """Why there is no image; the sentence names the label map."""

    hint: str | None = None
    """What to do about it."""

    content: bytes | None = field(default=None, repr=False)
    """The image's file, where the process that plans writes it, as it does into shards."""


@dataclass(frozen=True)
class Failure:
    """A label file without a result."""

    path: Origin
    """The label file."""

    message: str
    """Why it has no result; the sentence names the file."""

    hint: str | None = None
    """What to do about it."""

    id: str = ""
    """The name of the sample; the stem of the file if it has no other."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", PurePosixPath(str(self.path)).stem)


def failure(path: Origin, error: Exception, name: str = "") -> Failure:
    """Make a Failure of an error; its message names the file. name: the id of the sample."""
    message = str(error) if str(path) in str(error) else f"{path}: {error}"
    return Failure(path, message, getattr(error, "hint", None), name)


def failed(job: Job, error: Exception) -> Outcome:
    """The outcome of a job that failed alone."""
    found = failure(job.label, error, job.id)
    return Outcome(job.id, job.label, None, error=found.message, hint=found.hint)
