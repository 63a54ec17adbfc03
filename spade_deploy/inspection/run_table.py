"""List and compare runs: their settings, how far they are, and where their curves end. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy.errors import CheckpointError, NotFoundError, SpadeError, reason_of
from spade_deploy.metrics.seeds import Spread, spread
from spade_deploy.runs import (
    ARTIFACT,
    CHECKPOINTS,
    MAKE_CHECKPOINT,
    MANIFEST_JSON,
    Best,
    read_best,
    read_checkpoint_info,
    run_checkpoints,
)
from spade_deploy.runs.csv_log import Columns, read_columns
from spade_deploy.runs.settings import Settings, differing, key_of, seed_of, settings_of

LOSSES_CSV, METRICS_CSV = "losses.csv", "metrics.csv"
NOT_CURVES = ("step", "seconds", "lr_generator", "lr_discriminator")
END_SHARE = 0.1
"""A loss ends with the mean of this share of its logged steps, since single steps vary a lot."""


@dataclass(frozen=True)
class RunSummary:
    """What a run is, and how far it came."""

    name: str
    """The name of its folder."""
    path: Path
    """Its folder."""
    created_unix_ns: int
    """When its newest checkpoint was written, in nanoseconds since 1970."""
    step: int
    """The step of its newest checkpoint."""
    origin: str
    """'train' or 'import'."""
    settings: Settings
    """Its settings, by dotted names."""
    seconds: float | None = None
    """How long its logged steps took on average; None without a log."""
    losses: dict[str, float] = field(default_factory=dict)
    """Where each loss ends: the mean over the last tenth of the logged steps."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The metrics that were measured last."""
    best: Best | None = None
    """Its best checkpoint, where one was chosen."""
    has_artifact: bool = False
    """Whether it was exported."""

    @property
    def seed(self) -> int | None:
        return seed_of(self.settings)

    @property
    def total_steps(self) -> int | None:
        """The length that was asked for; None for an import, and for a run whose length is in epochs."""
        found = self.settings.get("train.steps")
        return found if isinstance(found, int) else None

    def to_json(self) -> dict[str, Any]:
        value = {**asdict(self), "path": str(self.path), "seed": self.seed, "total_steps": self.total_steps}
        return {**value, "best": None if self.best is None else self.best.to_json()}


@dataclass(frozen=True)
class RunGroup:
    """Runs of one setting at one step, which differ only in their random seed."""

    runs: tuple[str, ...]
    """The names of the runs."""
    seeds: tuple[int, ...]
    """Their random seeds."""
    figures: dict[str, Spread]
    """Where their losses and metrics end: mean and deviation, by name."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[RunSummary, ...]
    """The runs."""
    settings: dict[str, list[Any]]
    """The settings that are not the same in all of them: a value for each run, None where it has none."""
    losses: dict[str, list[float | None]]
    """Where each loss ends in each run."""
    metrics: dict[str, list[float | None]]
    """The metrics that each run measured last."""
    groups: tuple[RunGroup, ...]
    """Those that differ only in their random seed."""

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in ("settings", "losses", "metrics")}
        return {
            "runs": [run.to_json() for run in self.runs],
            "what_differs": value["settings"],
            "losses_at_the_end": value["losses"],
            "metrics_at_the_end": value["metrics"],
            "seeds_averaged": [asdict(group) for group in self.groups],
        }


def list_runs(runs_dir: Path) -> tuple[list[RunSummary], list[str]]:
    """The runs in a folder, the newest last, and a sentence for each folder that has no usable checkpoint.

    Raises NotFoundError if the folder does not exist or holds no run at all.
    """
    if not runs_dir.is_dir():
        raise NotFoundError(f"{runs_dir}: there is no such folder of runs", hint=MAKE_CHECKPOINT)
    found, problems = list[RunSummary](), list[str]()
    for folder in sorted(runs_dir.iterdir()):
        if not (folder / CHECKPOINTS).is_dir() or folder.name.startswith("."):
            continue
        try:
            found.append(summarize(folder))
        except SpadeError as error:
            problems.append(error.message)
    if not found and not problems:
        raise NotFoundError(f"{runs_dir}: no run in it", hint=MAKE_CHECKPOINT)
    return sorted(found, key=lambda run: (run.created_unix_ns, run.name)), problems


def summarize(run: Path) -> RunSummary:
    """What a run is. Raises NotFoundError for a folder that is no run, CheckpointError without a usable checkpoint."""
    if not (run / CHECKPOINTS).is_dir():
        raise NotFoundError(f"{run}: is not a run (it has no {CHECKPOINTS}/)", hint="`spade runs` lists the runs")
    checkpoints = run_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(f"{run}: has no usable checkpoint", hint=f"`spade inspect {run}` says why")
    info = read_checkpoint_info(checkpoints[-1])
    losses = _log(run / LOSSES_CSV)
    seconds = losses.get("seconds", np.zeros(0))
    return RunSummary(
        name=run.resolve().name,
        path=run,
        created_unix_ns=info.created_unix_ns,
        step=info.step,
        origin=info.origin,
        settings=settings_of(info),
        seconds=float(seconds.mean()) if len(seconds) else None,
        losses={name: _end(values) for name, values in losses.items() if name not in NOT_CURVES and len(values)},
        metrics=_last(_log(run / METRICS_CSV)),
        best=read_best(run),
        has_artifact=(run / ARTIFACT / MANIFEST_JSON).is_file(),
    )


def compare(runs: Sequence[RunSummary]) -> Comparison:
    """Two runs or more side by side."""
    tables = [run.settings for run in runs]
    return Comparison(
        tuple(runs),
        {name: [table.get(name) for table in tables] for name in differing(tables)},
        _side_by_side([run.losses for run in runs]),
        _side_by_side([run.metrics for run in runs]),
        tuple(group_runs(runs)),
    )


def group_runs(runs: Sequence[RunSummary]) -> list[RunGroup]:
    """The groups of two runs or more that differ by their seed alone; every seed is once in a group."""
    found: dict[str, list[RunSummary]] = {}
    for run in runs:
        if run.seed is not None:
            found.setdefault(key_of(run.settings, run.step), []).append(run)
    return [_group(members) for members in found.values() if len({run.seed for run in members}) == len(members) > 1]


def _group(members: Sequence[RunSummary]) -> RunGroup:
    ends = [{**run.losses, **run.metrics} for run in members]
    shared = [name for name in ends[0] if all(name in end and math.isfinite(end[name]) for end in ends)]
    return RunGroup(
        tuple(run.name for run in members),
        tuple(run.seed for run in members if run.seed is not None),
        {name: spread([end[name] for end in ends]) for name in shared},
    )


def _side_by_side(tables: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _log(path: Path) -> Columns:
    """The columns of a log; none where it is missing. Raises CheckpointError where it cannot be read."""
    try:
        return read_columns(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})", hint="remove or repair it") from error


def _end(values: Any) -> float:
    return float(values[-max(1, math.ceil(END_SHARE * len(values))) :].mean())


def _last(columns: Columns) -> dict[str, float]:
    """The last measured value of each metric that was measured at all."""
    found = {}
    for name, values in columns.items():
        known = values[np.isfinite(values)]
        if name not in NOT_CURVES and len(known):
            found[name] = float(known[-1])
    return found
