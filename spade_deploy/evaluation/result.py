"""The result of an evaluation: a row of figures for each model, and everything that they depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spade_deploy.errors import SpadeError
from spade_deploy.evaluation.models import Pixels
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.seeds import SeedGroup
from spade_deploy.evaluation.verdict import Verdict
from spade_deploy.labels.files import LabelIds
from spade_deploy.spec import LabelSpec
from spade_deploy.version import __version__

FORMAT = 1


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
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """By each figure that has a better direction, which model is the best, or why that cannot be said."""
    seed_groups: tuple[SeedGroup, ...] = ()
    """The models that differ only in their random seed, averaged."""
    seed_verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of several such groups, which setting is the best by each figure."""
    best_by_class: dict[int, str] = field(default_factory=dict)
    """The name of the model that is the best at a class, by its id, where the difference exceeds the noise."""
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
        order = ("frechet", "kernel", "miou", "accuracy", "diversity", "lpips", "l1", "psnr")
        return [name for name in order if any(row.figure(name) is not None for row in self.rows)]

    def best(self, name: str) -> str | None:
        """The name of the best model by a figure; None where no model is known to be the best."""
        verdict = self.verdicts.get(name)
        return None if verdict is None else verdict.best

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT,
            "spade_deploy": __version__,
            "settings": self.settings,
            "samples": self.samples,
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "metrics": self.names,
            "verdicts": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
            "seeds_averaged": [group.to_json() for group in self.seed_groups],
            "verdicts_of_settings": {name: verdict.to_json() for name, verdict in self.seed_verdicts.items()},
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
