"""What an evaluation found: a row of figures for each model, and everything that they depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy import __version__
from spade_deploy.errors import SpadeError
from spade_deploy.evaluation.models import Pixels
from spade_deploy.labels.files import LabelIds
from spade_deploy.metrics import HIGHER_IS_BETTER, ClassScore, FrechetDistance, KernelDistance
from spade_deploy.spec import LabelSpec

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One model's figures, or those of real photos (kind 'reference'); None was not measured.

    skipped: a sentence for each sample that it has no image of. facts: what the model is, and what ran it.
    """

    name: str
    kind: str
    path: Path | None
    images: int
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    frechet: FrechetDistance | None = None
    kernel: KernelDistance | None = None
    miou: float | None = None
    accuracy: float | None = None
    classes: tuple[ClassScore, ...] = ()
    diversity: float | None = None
    l1: float | None = None
    psnr: float | None = None
    seconds: float = 0.0

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
            **{name: getattr(self, name) for name in ("miou", "accuracy", "diversity", "l1", "psnr", "seconds")},
            "classes": [{"name": labels.name_of(score.label_id), **asdict(score)} for score in self.classes],
        }


@dataclass(frozen=True)
class Strip:
    """One sample for the page: its label map, each model's image by the model's name, the photo."""

    stem: str
    label: LabelIds
    images: dict[str, Pixels]
    photo: Pixels


@dataclass(frozen=True)
class StyleStrip:
    """One label map in several styles of one model."""

    name: str
    stem: str
    images: tuple[Pixels, ...]


@dataclass(frozen=True)
class EvalResult:
    """A report. names: what each figure is called with what it was measured with.

    skipped: samples that nobody was judged on, since their label map or photo cannot be used. settings: everything
    else that the figures depend on.
    """

    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    labels: LabelSpec
    names: dict[str, str]
    settings: dict[str, Any]
    samples: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    strips: tuple[Strip, ...] = ()
    style_strips: tuple[StyleStrip, ...] = ()

    @property
    def all_skipped(self) -> tuple[str, ...]:
        """Every file that could not be used, of the data and of the models, once."""
        return tuple(dict.fromkeys([*self.skipped, *(text for row in self.rows for text in row.skipped)]))

    def measured(self) -> list[str]:
        """The figures that some row has, in the order of a table."""
        order = ("frechet", "kernel", "miou", "accuracy", "diversity", "l1", "psnr")
        return [name for name in order if any(row.figure(name) is not None for row in self.rows)]

    def best(self, name: str) -> str | None:
        """The name of the best model by a figure; None where there is nothing to compare, or no better."""
        found = {row.name: value for row in self.rows if (value := row.figure(name)) is not None}
        if len(found) < 2 or name not in HIGHER_IS_BETTER:
            return None
        ordered = sorted(found, key=lambda row: found[row], reverse=HIGHER_IS_BETTER[name])
        return ordered[0] if found[ordered[0]] != found[ordered[1]] else None

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT,
            "spade_deploy": __version__,
            "settings": self.settings,
            "samples": self.samples,
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "metrics": self.names,
            "models": [row.to_json(self.labels) for row in self.rows],
            "references": [row.to_json(self.labels) for row in self.references],
        }

    def require_measured(self) -> None:
        """Raises SpadeError where a model has no image at all: then nothing was judged."""
        empty = [row for row in self.rows if not row.images]
        if empty:
            raise SpadeError(
                f"{empty[0].name}: has no image of the {self.samples} samples; the first: {empty[0].skipped[0]}",
                hint="images belong to label maps by their stem, as `spade infer` names them",
            )
