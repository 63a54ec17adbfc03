"""The result of an evaluation: a row of figures for each model, and everything that they depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.errors import SpadeError
from spade_deploy.evaluation.models import Pixels
from spade_deploy.labels.files import LabelIds
from spade_deploy.metrics import HIGHER_IS_BETTER, ClassScore, FrechetDistance, KernelDistance
from spade_deploy.spec import LabelSpec
from spade_deploy.version import __version__

FORMAT = 1


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
    l1: float | None = None
    """Mean absolute difference from the photo, black to white being 1."""
    psnr: float | None = None
    """The PSNR against the photo, in dB."""
    seconds: float = 0.0
    """How long the measuring took."""

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
    """One sample for the page."""

    stem: str
    """The name of the sample."""
    label: LabelIds
    """Its label map."""
    images: dict[str, Pixels]
    """Its images, by the name of the model that made them."""
    photo: Pixels
    """Its real photo."""


@dataclass(frozen=True)
class StyleStrip:
    """One label map in several styles of one model."""

    name: str
    """The name of the model."""
    stem: str
    """The name of the label map."""
    images: tuple[Pixels, ...]
    """The images, one for each style."""


@dataclass(frozen=True)
class EvalResult:
    """The report of one evaluation."""

    rows: tuple[Row, ...]
    """The figures of each model."""
    references: tuple[Row, ...]
    """The figures of real photos."""
    labels: LabelSpec
    """The labels of the label maps."""
    names: dict[str, str]
    """The title of each figure, which names the network that it was measured with."""
    settings: dict[str, Any]
    """Everything else that the figures depend on."""
    samples: int
    """How many samples all models were judged on."""
    skipped: tuple[str, ...]
    """A sentence for each sample that was left out for all models, since its label map or photo cannot be used."""
    notes: tuple[str, ...]
    """Sentences that a reader of the figures has to know."""
    strips: tuple[Strip, ...] = ()
    """The samples that the page shows."""
    style_strips: tuple[StyleStrip, ...] = ()
    """The label maps that the page shows in several styles."""

    @property
    def all_skipped(self) -> tuple[str, ...]:
        """A sentence for each file that could not be used, whether of the data or of a model, without repetitions."""
        return tuple(dict.fromkeys([*self.skipped, *(text for row in self.rows for text in row.skipped)]))

    def measured(self) -> list[str]:
        """The names of the figures that at least one row has, in the order of the table."""
        order = ("frechet", "kernel", "miou", "accuracy", "diversity", "l1", "psnr")
        return [name for name in order if any(row.figure(name) is not None for row in self.rows)]

    def best(self, name: str) -> str | None:
        """The name of the best model by a figure; None if there are fewer than two models or the best two are equal."""
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
        """Raise SpadeError if a model has no image at all, so that nothing was judged."""
        empty = [row for row in self.rows if not row.images]
        if empty:
            raise SpadeError(
                f"{empty[0].name}: has no image of the {self.samples} samples; the first: {empty[0].skipped[0]}",
                hint="images belong to label maps by their stem, as `spade infer` names them",
            )
