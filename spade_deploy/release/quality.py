"""How good the photos of a student and of its teacher are, as the report keeps it, and what was left unmeasured.

`spade eval` measures it (`evaluation`, which stands beside this package), and the command that exports hands it over.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.samples import is_embedded
from spade_deploy.runs.records import CheckpointInfo


@dataclass(frozen=True)
class Judged:
    """A figure of one of the two."""

    value: float
    """The figure."""

    interval: float | None
    """Half the width of its 95 % interval; None where there are too few photos to know it."""

    text: str
    """Both for people: '0.0610 ± 0.0130'."""


@dataclass(frozen=True)
class Figure:
    """A figure of the photos of both."""

    name: str
    """Its name in evaluation.json: 'frechet', 'kernel', 'miou' and so on."""

    heading: str
    """Its name for people, with an arrow that says which way is better."""

    meaning: str
    """What it is, and the network that measured it."""

    teacher: Judged
    """The teacher's."""

    student: Judged
    """The student's."""

    verdict: str
    """Which of both is better, or why that cannot be said; a sentence without a full stop."""

    @property
    def name_alone(self) -> str:
        """The heading without its arrow."""
        return self.heading.rstrip(" ↑↓")


@dataclass(frozen=True)
class Quality:
    """The figures of a student and of its teacher on held-out photos."""

    data: str
    """The photos in words: 'earth (embedded), test split, 128 x 128'."""

    photos: int
    """How many photos both were judged on."""

    figures: tuple[Figure, ...]
    """The figures, distances of features first."""

    notes: tuple[str, ...] = ()
    """Sentences that a reader of the figures has to know."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Unmeasured:
    """Figures that are not in a report, and how to get them."""

    why: str
    """A sentence: what was not measured, and why."""

    command: str
    """The command that measures it, as one types it."""


WANTED = {"frechet": "the Frechet distance", "kernel": "the kernel distance", "miou": "mIoU"}
"""What a report of a student is to have: the name for people of each figure of evaluation.json."""


def unmeasured(quality: Quality | None, student: Path, teacher: str, *, has_photos: bool) -> Unmeasured | None:
    """What the report of a student lacks; None where everything was measured.

    student: the run or checkpoint that is exported. has_photos: whether photos are known that both can be judged on.
    """
    there = {figure.name for figure in quality.figures} if quality is not None else set()
    missing = [title for name, title in WANTED.items() if name not in there]
    if not missing:
        return None
    titles = _listed(missing)
    begin = f"T{titles[1:]}" if titles.startswith("the ") else titles
    told = f"{begin} {'was' if len(missing) == 1 else 'were'} not measured"
    run = shlex.quote(str(student))
    if not has_photos:
        named = f"{run} {shlex.quote(teacher)}"
        line = f"spade eval {named} --labels LABELS --images PHOTOS --extractor FEATURES.onnx --train-segmenter"
        why = "the student was trained without photos"
    else:
        line = f"spade export {run} --extractor FEATURES.onnx --train-segmenter"
        why = "no judge was given" if quality is None else "no judge of it was given"
    return Unmeasured(f"{told}, as {why}.", line)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def knows_photos(info: CheckpointInfo | None) -> bool:
    """Whether the data that a run recorded has photos; an import recorded none."""
    if info is None or info.data is None:
        return False
    try:
        data = DataConfig.from_json(info.data)
    except ConfigError:  # another version wrote it
        return False
    return is_embedded(data) or not data.labels_only
