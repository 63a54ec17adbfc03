"""Record which files a run is trained on, so that a resumed run notices if they have changed.

The names of the samples decide their order, and so the samples of every step; the checkpoint holds their digest.
Whether a file has changed is judged only by its size and time: reading all files would take as long as an epoch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.errors import CheckpointError
from spade_deploy.files.atomic import write_text
from spade_deploy.files.reading import read_json, sha256_of_bytes

DATA_JSON = "data.json"
_SHOWN = 3

Stamp = tuple[int, int]
"""A file's size in bytes, and when it was last written, in nanoseconds."""


@dataclass(frozen=True)
class DataRecord:
    """The training samples in their order."""

    names: tuple[str, ...] = ()
    """The name of each sample."""

    stamps: tuple[tuple[Stamp, ...], ...] = ()
    """The stamps of each sample's files."""

    folders: tuple[str, ...] = ()
    """The folders that the files lie in."""

    measured_on: Mapping[str, Any] = field(default_factory=dict)
    """The samples that sample grids and metrics are of: their names, their split, and how they were chosen."""

    @classmethod
    def of_files(cls, samples: Sequence[tuple[str, tuple[Path, ...]]]) -> DataRecord:
        """The record of samples, each given by name and files. A file that cannot be looked at has the stamp -1, -1."""
        folders = dict.fromkeys(str(path.parent.absolute()) for _, paths in samples for path in paths)
        stamps = tuple(tuple(_stamp(path) for path in paths) for _, paths in samples)
        return cls(tuple(name for name, _ in samples), stamps, tuple(folders))

    @property
    def identity(self) -> dict[str, Any]:
        """The number of samples and the SHA-256 of their names in order, which must be the same in a resumed run."""
        return {"count": len(self.names), "names_sha256": _sha256(self.names)}

    @property
    def contents_sha256(self) -> str:
        """The digest of the names and of the sizes of all files."""
        return _sha256([*self.names, *(str(size) for stamps in self.stamps for size, _ in stamps)])

    def write(self, run: Path) -> None:
        """Write data.json, atomically. Raises OSError."""
        value = {
            "run": str(run.absolute()),
            "folders": self.folders,
            "samples": [[name, *stamps] for name, stamps in zip(self.names, self.stamps, strict=True)],
            "measured_on": dict(self.measured_on),
        }
        write_text(run / DATA_JSON, json.dumps(value) + "\n")  # ASCII: names need not be UTF-8

    @classmethod
    def read(cls, run: Path) -> DataRecord | None:
        """The record that `write` wrote; None if there is none, or it is damaged."""
        try:
            value = read_json(run / DATA_JSON)
            names = tuple(str(name) for name, *_ in value["samples"])
            stamps = tuple(tuple((int(size), int(time)) for size, time in rest) for _, *rest in value["samples"])
            return cls(names, stamps, tuple(map(str, value["folders"])), value.get("measured_on", {}))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None


def place_of_run(run: Path) -> Path | None:
    """The folder of a run when it was last trained; None if that is not recorded."""
    try:
        return Path(read_json(run / DATA_JSON)["run"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def refuse_other_samples(checkpoint: Path, saved: Any, now: DataRecord) -> None:
    """Raise CheckpointError, which names the samples that differ. saved: the identity in the checkpoint."""
    if not isinstance(saved, dict) or saved == now.identity:  # older checkpoints hold none
        return
    was, count = saved.get("count"), len(now.names)
    counts = f"were {was} and are {count} now" if was != count else f"are {count} as before, but other ones"
    before = DataRecord.read(checkpoint.parent.parent)
    differences = ""
    if before is not None and before.identity == saved:
        added = [name for name in now.names if name not in set(before.names)]
        removed = [name for name in before.names if name not in set(now.names)]
        told = [_listed(names, what) for names, what in ((added, "added"), (removed, "removed")) if names]
        differences = f": {' and '.join(told) or 'they come in another order'}"
    raise CheckpointError(
        f"{checkpoint}: its run's training samples {counts}{differences}; each step would see other samples than"
        " before",
        hint="put the files back as they were, or start a new run with these weights: spade train --init"
        f" {shlex.quote(str(checkpoint))}",
    )


def changed_samples(run: Path, now: DataRecord) -> str:
    """A sentence on the samples whose files have changed since the run was last trained; '' where none has."""
    before = DataRecord.read(run)
    if before is None or before.names != now.names:
        return ""
    # A copied data set has files of new times and the same content: times count only in the same folders.
    stayed = before.folders == now.folders
    changed = [
        name
        for name, old, new in zip(now.names, before.stamps, now.stamps, strict=True)
        if old != new and (stayed or [size for size, _ in old] != [size for size, _ in new])
    ]
    if not changed:
        return ""
    return f"{_listed(changed, 'written again')} since this run was last trained: it continues with the new files"


def _listed(names: Sequence[str], what: str) -> str:
    rest = ", ..." if len(names) > _SHOWN else ""
    shown = ", ".join(_short(name) for name in names[:_SHOWN])
    return f"{len(names)} {'was' if len(names) == 1 else 'were'} {what} ({shown}{rest})"


def _short(name: str) -> str:
    text = name.encode("unicode_escape", "backslashreplace").decode() if not name.isprintable() else name
    return text if len(text) <= 60 else text[:57] + "..."


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return (-1, -1)
    return (facts.st_size, facts.st_mtime_ns)


def _sha256(parts: Sequence[str]) -> str:
    return sha256_of_bytes(b"".join(part.encode("utf-8", "surrogatepass") + b"\0" for part in parts))
