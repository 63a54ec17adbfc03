"""The figures of one model, or of real photos: a row of an evaluation's table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.metrics import ClassScore, FrechetDistance, KernelDistance
from spade_deploy.spec import LabelSpec

PLAIN = ("miou", "accuracy", "diversity", "lpips", "l1", "psnr", "seconds")
"""The fields of a row that are numbers, and stand in the JSON as they are."""


@dataclass(frozen=True)
class Row:
    """The figures of one model, or of real photos. A figure that is None was not measured."""

    name: str
    """The name of the model, or of the set of real photos."""
    kind: str
    """A value of `models.Kind`, or 'reference' for real photos."""
    path: Path | None
    """Where the model lies; None for real photos."""
    images: int
    """How many images were measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts about the model and the engine that ran it, for the report."""
    skipped: tuple[str, ...] = ()
    """A sentence for each sample that has no image."""
    frechet: FrechetDistance | None = None
    """The Frechet distance from the held-out photos."""
    kernel: KernelDistance | None = None
    """The kernel distance from the held-out photos."""
    miou: float | None = None
    """Mean intersection over union of the classes that occur, 0..1."""
    accuracy: float | None = None
    """Share of the pixels whose class the segmenter finds, 0..1."""
    classes: tuple[ClassScore, ...] = ()
    """The score of each class that occurs."""
    diversity: float | None = None
    """Mean distance of two styles of one label map, see `metrics.diversity`."""
    lpips: float | None = None
    """Mean LPIPS distance from the photo."""
    l1: float | None = None
    """Mean absolute difference from the photo, where black and white differ by 1."""
    psnr: float | None = None
    """The PSNR against the photo, in dB."""
    seconds: float = 0.0
    """How long the measuring took."""
    intervals: dict[str, float] = field(default_factory=dict)
    """Half the width of the 95 % interval of each figure, from draws of the samples."""
    remark: str = ""
    """A sentence that belongs beside the figures, such as why they are no verdict; empty if there is none."""

    def figure(self, name: str) -> float | None:
        """A figure of `HIGHER_IS_BETTER`, as one number."""
        value = getattr(self, name)
        return value.value if isinstance(value, FrechetDistance | KernelDistance) else value

    def to_json(self, labels: LabelSpec) -> dict[str, Any]:
        frechet = None
        if self.frechet is not None:
            frechet = {**asdict(self.frechet), "caveat": self.frechet.caveat}
        return {
            "name": self.name,
            "kind": self.kind,
            "path": str(self.path) if self.path is not None else None,
            **self.facts,
            "images": self.images,
            "skipped": list(self.skipped),
            "frechet": frechet,
            "kernel": asdict(self.kernel) if self.kernel is not None else None,
            **{name: getattr(self, name) for name in PLAIN},
            "intervals_95": self.intervals,
            "remark": self.remark,
            "classes": [{"name": labels.name_of(score.label_id), **asdict(score)} for score in self.classes],
        }
