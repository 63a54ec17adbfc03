"""Choose a student's widths by what an image costs: multiply-adds of the lookup graph for label maps of the data set.

The cost depends on the maps: gamma and beta are computed once for each distinct window of labels, and the number of
windows does not depend on the widths. So the maps are looked at once, and every row of the table is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spade_deploy.errors import ConfigError
from spade_deploy.lookup.cost import mean_windows
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.dataset import validation_labels
from spade_deploy.training.distillation.costs import Costs, costs_of
from spade_deploy.training.distillation.pruning import can_be_pruned
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.resolve import student_data
from spade_deploy.training.distillation.student_spec import check_widths
from spade_deploy.training.distillation.teacher import find_teacher
from spade_deploy.training.splits import open_source

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
"""The widths that are tried, as shares of the teacher's."""
HIDDEN_SHARES = (1.0, 0.5, 0.25)
"""The hidden widths that are tried, as shares of the teacher's."""
MAPS = 16
"""How many label maps of the training split the cost is a mean of, evenly spaced; or all, if there are fewer."""


@dataclass(frozen=True)
class Width(Costs):
    """A student that could be trained."""

    base_channels: int
    """Its width."""

    hidden_channels: int | None
    """The width inside its SPADE; None for an architecture without it."""


@dataclass(frozen=True)
class WidthTable:
    """The students that were compared, and the one that was chosen."""

    rows: tuple[Width, ...]
    """From the most expensive to the cheapest; the first has the teacher's widths unless others were asked for."""

    chosen: Width
    """The most expensive one within the budget."""

    budget: float
    """The most multiply-adds that an image may cost."""

    maps: int
    """How many label maps the costs are a mean of."""


def choose_widths(asked: DistillRequest, runs_dir: Path) -> WidthTable:
    """The widths for `mac_budget`. Raises ConfigError where no student is within it, and for other architectures."""
    assert asked.mac_budget is not None  # the caller asks only then
    teacher = find_teacher(asked.teacher, runs_dir)
    data, _ = student_data(asked, teacher)
    spec = teacher.facts.generator
    if not can_be_pruned(spec):
        raise ConfigError(
            f"`mac_budget`: {spec.architecture} has no lookup graph, whose cost it limits",
            hint="give `base_channels` N",
        )
    check_widths(spec, base_channels=asked.base_channels, hidden_channels=asked.hidden_channels)
    source = open_source(data, "train", spec.labels)
    label, instance, _ = validation_labels(source, MAPS)
    spec = replace(spec, height=data.crop_size[0], width=data.crop_size[1])
    windows = mean_windows(spec, label.numpy(), None if instance is None else instance.numpy())
    return width_table(spec, windows, asked.mac_budget, len(label), asked.base_channels, asked.hidden_channels)


def width_table(
    teacher: GeneratorSpec,
    windows: Mapping[int, float],
    budget: float,
    maps: int,
    base_channels: int | None = None,
    hidden_channels: int | None = None,
) -> WidthTable:
    """The table of the students of a teacher, and the most expensive one within the budget.

    windows: the mean number of distinct windows at each stride. base_channels, hidden_channels: widths that are fixed.
    Raises ConfigError, which names the cheapest one, if none is within the budget.
    """
    rows = []
    for spec in dict.fromkeys(_candidates(teacher, base_channels, hidden_channels)):
        hidden = spec.hidden_channels if spec.has("hidden_channels") else None
        costs = asdict(costs_of(spec, windows))
        rows.append(Width(**costs, base_channels=spec.base_channels, hidden_channels=hidden))
    rows.sort(key=lambda row: -row.lookup_macs)
    fitting = [row for row in rows if row.lookup_macs <= budget]
    if not fitting:
        least = rows[-1]
        hidden_text = "" if least.hidden_channels is None else f" `hidden_channels` {least.hidden_channels}"
        raise ConfigError(
            f"`mac_budget`: {giga(budget)} is less than the cheapest student costs, {giga(least.lookup_macs)}"
            f" (`base_channels` {least.base_channels}{hidden_text})",
            hint="give more, or a smaller `base_channels` and `hidden_channels` without a budget",
        )
    return WidthTable(tuple(rows), fitting[0], budget, maps)


def giga(macs: float) -> str:
    """Multiply-adds for people: '17.7 GMAC'."""
    return f"{macs / 1e9:.3g} GMAC"


def _candidates(teacher: GeneratorSpec, base: int | None, hidden: int | None) -> Iterator[GeneratorSpec]:
    """Students whose levels are all narrowed alike, and none of which is wider than its teacher's."""
    for spec in _narrower(replace(teacher, level_channels=None, level_hidden=None), base, hidden):
        pairs = (
            *zip(spec.widths, teacher.widths, strict=True),
            *zip(spec.hidden_widths, teacher.hidden_widths, strict=True),
        )
        if all(own <= most for own, most in pairs):
            yield spec


def _narrower(teacher: GeneratorSpec, base: int | None, hidden: int | None) -> Iterator[GeneratorSpec]:
    bases = [base] if base is not None else [max(2, round(teacher.base_channels * share / 2) * 2) for share in SHARES]
    if not teacher.has("hidden_channels"):
        yield from (replace(teacher, base_channels=one) for one in bases)
        return
    inside = [hidden] if hidden is not None else [max(1, round(teacher.hidden_channels * s)) for s in HIDDEN_SHARES]
    for one in bases:
        for other in inside:
            yield replace(teacher, base_channels=one, hidden_channels=other)
