"""What a source holds: its samples by their ids, and what of it cannot be used. Names that would harm are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from spade_deploy.errors import LabelMapError, quoted
from spade_deploy.inference.jobs import Failure, Origin, failure
from spade_deploy.labels.collect import JPEG_SUFFIXES

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Item:
    """A label map, and the instance map that belongs to it."""

    id: str
    """The name of the sample, and of its result."""
    label: Origin
    """The label map."""
    instance: Origin | None = None
    """The instance map; None if there is none."""


@dataclass(frozen=True)
class Found:
    """The content of a source."""

    items: tuple[Item, ...]
    """The samples, in the order of the source."""
    failures: tuple[Failure, ...] = ()
    """What cannot be used."""
    left_out: tuple[str, ...] = ()
    """A sentence for each photo that lies beside its label map."""
    is_plain: bool = False
    """Whether it is a folder or a file of this machine, whose names have been names of files before."""


@dataclass
class Finder:
    """Collects the items of a source, and refuses the ids that cannot name a result."""

    kept: dict[str, list[Item]] = field(default_factory=dict)
    """The items by their ids in lower case."""
    failures: list[Failure] = field(default_factory=list)
    """What was refused."""
    left_out: list[str] = field(default_factory=list)
    """Photos beside label maps."""

    def add(self, name: str, label: Origin, instance: Origin | None = None) -> None:
        """A sample of the source."""
        try:
            check_id(name, label)
        except LabelMapError as error:
            self.failures.append(failure(label, error, name))
            return
        self.kept.setdefault(name.casefold(), []).append(Item(name, label, instance))

    def refuse(self, label: Origin, reason: str, hint: str | None = None, name: str = "") -> None:
        """A part of the source that cannot be used. name: the id, if it has one."""
        self.failures.append(failure(label, LabelMapError(f"{label}: {reason}", hint=hint), name))

    def found(self) -> Found:
        """Everything; ids that several samples share are refused, as any of them could be meant."""
        items = []
        for alike in self.kept.values():
            if len(alike) == 1:
                items.append(alike[0])
                continue
            for item in alike:
                other = next(one for one in alike if one is not item)
                how = "" if other.id == item.id else ", but for upper and lower case"
                self.refuse(
                    item.label,
                    f"its result would be named {quoted(item.id)}, like that of {other.label}{how}",
                    "give each sample a name of its own, or make the images of one source at a time",
                    item.id,
                )
        return Found(tuple(items), tuple(self.failures), tuple(self.left_out))


def check_id(name: str, label: Origin) -> None:
    """Raise LabelMapError for an id that cannot be the name of a file in the folder of results."""
    reason = None
    if not name:
        reason = "it has no id"
    elif "/" in name or "\\" in name:
        reason = f"its id {quoted(name)} has a slash in it, which would lead to another folder"
    elif name.startswith("."):
        reason = f"its id {quoted(name)} begins with a dot, which hides a file or leads out of the folder"
    elif _CONTROL.search(name):
        reason = f"its id {quoted(name)} has control characters in it"
    if reason is not None:
        raise LabelMapError(f"{label}: {reason}", hint="give it an id that is the name of a file, without a folder")


def by_name(files: Iterable[tuple[str, Origin]], finder: Finder, instance_of: Callable[[str], Origin | None]) -> None:
    """Add files that are label maps by their own. A JPEG beside another file of its stem is a photo, and is left out.

    files: path and origin of each. instance_of: the instance map for a stem; it raises LabelMapError where one is
    missing.
    """
    stems: dict[str, list[tuple[PurePosixPath, Origin]]] = {}
    for path, origin in files:
        name = PurePosixPath(path)
        stems.setdefault(name.stem, []).append((name, origin))
    for stem, alike in stems.items():
        maps = [one for one in alike if one[0].suffix.lower() not in JPEG_SUFFIXES]
        if maps and len(maps) < len(alike):
            for file, origin in alike:
                if file.suffix.lower() in JPEG_SUFFIXES:
                    finder.left_out.append(f"{origin}: a photo (JPEG) beside the label map {maps[0][0].name}: left out")
            alike = maps
        for _, origin in alike:
            try:
                finder.add(stem, origin, instance_of(stem))
            except LabelMapError as error:
                finder.failures.append(failure(origin, error, stem))
