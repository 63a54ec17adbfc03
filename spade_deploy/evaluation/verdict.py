"""Say which model is the best by a figure: only where the difference exceeds the noise, and the judge can be trusted.

The noise is that of the choice of samples: half the width of the 95 % interval of the difference, from draws of the
samples (`scores.draw_again`). A judge that fails on the real photos themselves has no verdict on images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.scores import Drawn
from spade_deploy.metrics import HIGHER_IS_BETTER
from spade_deploy.metrics.bootstrap import LEAST_SAMPLES, half_width
from spade_deploy.metrics.confusion import iou_of


@dataclass(frozen=True)
class Verdict:
    """Which model is the best by one figure, or why that cannot be said."""

    best: str | None
    """The name of the best model; None where no model is known to be the best."""
    reason: str
    """One sentence for people: by how much it is better, or why there is no verdict."""
    difference: float | None = None
    """How far the best two are apart; None where nothing was compared."""
    noise: float | None = None
    """Half the width of the 95 % interval of this difference."""
    is_judge_unfit: bool = False
    """Whether the judge fails on real photos, so that its figures say nothing of the models."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verdicts(rows: Sequence[Row], drawn: Drawn | None, unfit: Mapping[str, str]) -> dict[str, Verdict]:
    """The verdict by each figure that has a better direction and that at least one model has."""
    names = [name for name in HIGHER_IS_BETTER if any(row.figure(name) is not None for row in rows)]
    return {name: _verdict(name, rows, drawn, unfit.get(name)) for name in names}


def _verdict(name: str, rows: Sequence[Row], drawn: Drawn | None, unfit: str | None) -> Verdict:
    if unfit is not None:
        return Verdict(None, f"no verdict: {unfit}", is_judge_unfit=True)
    values = {n: value for n, row in enumerate(rows) if (value := row.figure(name)) is not None}
    if len(values) < 2:
        return Verdict(None, "no verdict: there is no second model to compare with")
    first, second, *rest = sorted(values, key=lambda n: values[n], reverse=HIGHER_IS_BETTER[name])
    apart = abs(values[first] - values[second])
    names = rows[first].name, rows[second].name
    if apart == 0:
        return Verdict(None, f"no best: {names[0]} and {names[1]} are equal", 0.0)
    if drawn is None:
        why = f"fewer than {LEAST_SAMPLES} samples have an image of every model, so the noise is not known"
        return Verdict(None, f"no best: {why}", apart)
    noise = drawn.noise(first, second, name)
    for other in (second, *rest):
        apart, noise = abs(values[first] - values[other]), drawn.noise(first, other, name)
        if noise is None or apart <= noise:
            told = f"{shown(name, apart)} ± {shown(name, noise or 0.0)}"
            return Verdict(
                None, f"no best: {rows[first].name} leads {rows[other].name} by {told}, within the noise", apart, noise
            )
    apart, noise = abs(values[first] - values[second]), drawn.noise(first, second, name)
    told = f"{shown(name, apart)} ± {shown(name, noise or 0.0)}"
    return Verdict(names[0], f"{names[0]} is the best: it leads {names[1]} by {told}", apart, noise)


def best_by_class(rows: Sequence[Row], drawn: Drawn | None, unfit: Mapping[str, str]) -> dict[int, str]:
    """The name of the model that finds a class best, by id, for the classes where that exceeds the noise."""
    places = [n for n, row in enumerate(rows) if row.classes]
    if drawn is None or "miou" in unfit or len(places) < 2:
        return {}
    whole = {n: {score.label_id: score.iou for score in rows[n].classes} for n in places}
    again = {n: iou_of(sums) for n in places if (sums := drawn.sums[n]) is not None}
    found = {}
    for label_id in whole[places[0]]:
        first, *others = sorted(places, key=lambda n: whole[n].get(label_id, 0.0), reverse=True)
        is_best = True
        for other in others:
            differences = again[first][:, label_id] - again[other][:, label_id]
            differences = differences[~np.isnan(differences)]  # draws without the class
            apart = whole[first].get(label_id, 0.0) - whole[other].get(label_id, 0.0)
            is_best &= len(differences) > 1 and apart > half_width(differences, drawn.count)
        if is_best:
            found[label_id] = rows[first].name
    return found


def shown(name: str, value: float) -> str:
    """A figure for people, with the digits that its kind has: '96.91', '66.7 %', '0.0561'."""
    if name in ("frechet", "psnr"):
        return f"{value:.2f}"
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.4f}"
