"""Average the models that differ only in their random seed, and compare the settings by these means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spade_deploy.evaluation.models import Model
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.verdict import Verdict, shown
from spade_deploy.metrics import HIGHER_IS_BETTER
from spade_deploy.metrics.seeds import Spread, noise_of_means, spread
from spade_deploy.runs.settings import key_of, seed_of


@dataclass(frozen=True)
class SeedGroup:
    """The models of one setting, which were trained with different random seeds."""

    name: str
    """Its name for people."""
    models: tuple[str, ...]
    """The names of its models."""
    seeds: tuple[int, ...]
    """Their random seeds."""
    figures: dict[str, Spread]
    """The figures that all of its models have, by name."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def group_by_seed(models: Sequence[Model], rows: Sequence[Row]) -> tuple[SeedGroup, ...]:
    """The groups of two seeds or more, in the order of their first models."""
    found: dict[str, list[tuple[int, Row]]] = {}
    for model, row in zip(models, rows, strict=True):
        seed = None if model.settings is None else seed_of(model.settings)
        if seed is not None and model.settings is not None:
            key = f"{model.kind} {key_of(model.settings, model.facts.get('step'))}"
            found.setdefault(key, []).append((seed, row))
    groups = [members for members in found.values() if len({seed for seed, _ in members}) == len(members) > 1]
    return tuple(_group(members) for members in groups)


def _group(members: Sequence[tuple[int, Row]]) -> SeedGroup:
    rows = [row for _, row in members]
    seeds = tuple(seed for seed, _ in members)
    figures = {}
    for name in (*HIGHER_IS_BETTER, "diversity"):
        values = [value for row in rows if (value := row.figure(name)) is not None]
        if len(values) == len(rows):
            figures[name] = spread(values)
    name = f"{rows[0].name} (mean of {len(rows)} seeds)"
    return SeedGroup(name, tuple(row.name for row in rows), seeds, figures)


def compare_groups(groups: Sequence[SeedGroup], unfit: dict[str, str]) -> dict[str, Verdict]:
    """Which setting is the best by each figure: only where its mean leads all others by more than the seeds' noise."""
    names = [name for name in HIGHER_IS_BETTER if sum(name in group.figures for group in groups) > 1]
    having = {name: [group for group in groups if name in group.figures] for name in names}
    return {name: _verdict(name, having[name], unfit.get(name)) for name in names}


def _verdict(name: str, groups: Sequence[SeedGroup], unfit: str | None) -> Verdict:
    if unfit is not None:
        return Verdict(None, f"no verdict: {unfit}", is_judge_unfit=True)
    first, *others = sorted(groups, key=lambda group: group.figures[name].mean, reverse=HIGHER_IS_BETTER[name])
    compared = []
    for other in others:
        apart = abs(first.figures[name].mean - other.figures[name].mean)
        noise = noise_of_means(first.figures[name], other.figures[name])
        told = f"leads {other.name} by {shown(name, apart)} ± {shown(name, noise)}"
        if not apart > noise:
            return Verdict(None, f"no best: {first.name} {told}, within the noise of the seeds", apart, noise)
        compared.append((told, apart, noise))
    told, apart, noise = compared[0]
    return Verdict(first.name, f"{first.name} is the best: it {told}", apart, noise)
