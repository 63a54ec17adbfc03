"""What the weights that a run begins from were trained on: photos that they learned are new to no later run.

`train.init` is followed from checkpoint to checkpoint, and the record of each run on the way (data.json) is read. A
sample counts as the same if its name and the size of its photo in bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import CheckpointError
from spade_deploy.labels.pairs import Sample
from spade_deploy.runs.data_record import DataRecord, Stamp
from spade_deploy.runs.folders import run_checkpoints
from spade_deploy.runs.layout import CHECKPOINTS, SHIPPED
from spade_deploy.runs.records import CheckpointInfo, read_checkpoint_info

Key = tuple[str, int]
"""The name of a sample and the size of its photo; 0 for an embedded sample."""


@dataclass(frozen=True)
class Learned:
    """The samples that weights were trained on before a run."""

    samples: frozenset[Key] = frozenset()
    """Those that are known."""
    is_complete: bool = True
    """Whether there are no others. It is false where the weights, or those before them, were imported, or a record is
    missing."""

    def count(self, record: DataRecord) -> int | None:
        """How many samples of a record were learned; None if none is known to be, and the answer is not complete."""
        known = len(_keys(record) & self.samples)
        return known if known or self.is_complete else None

    def count_samples(self, samples: tuple[Sample, ...]) -> int | None:
        """The same for the samples of a data set."""
        paths = [(sample.stem, (sample.label, sample.photo)) for sample in samples if sample.photo is not None]
        return self.count(DataRecord.of_files(paths))


def learned_before(init: str) -> Learned:
    """What the weights that `init` names were trained on; nothing for ''.

    init: as a run's settings have it: the path of a checkpoint, or the name of a shipped model, which was trained on
    embedded samples that no data set of files has.
    """
    samples: set[Key] = set()
    seen: set[str] = set()
    while init and init not in SHIPPED:
        info, record = _read(Path(init))
        if info is None or info.origin == "import" or record is None or init in seen:
            return Learned(frozenset(samples), is_complete=False)
        samples |= _keys(record)
        seen.add(init)
        init = info.init
    return Learned(frozenset(samples))


def _read(checkpoint: Path) -> tuple[CheckpointInfo | None, DataRecord | None]:
    """The content of checkpoint.json, or of another checkpoint of its run, as old ones are removed; and data.json."""
    if checkpoint.parent.name != CHECKPOINTS:
        return None, None
    run = checkpoint.parent.parent
    for candidate in (checkpoint, *run_checkpoints(run)):
        try:
            return read_checkpoint_info(candidate), DataRecord.read(run)
        except CheckpointError:
            continue
    return None, None


def _keys(record: DataRecord) -> frozenset[Key]:
    return frozenset((name, _photo_size(stamps)) for name, stamps in zip(record.names, record.stamps, strict=True))


def _photo_size(stamps: tuple[Stamp, ...]) -> int:
    """stamps: those of the label map, the photo and perhaps the instance map."""
    return stamps[1][0] if len(stamps) > 1 else 0
