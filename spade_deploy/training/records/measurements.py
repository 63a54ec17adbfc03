"""The metrics of a run: write metrics.csv and metrics.png, and keep the checkpoint that is best by one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spade_deploy.errors import CheckpointError
from spade_deploy.files.atomic import write_json
from spade_deploy.runs.csv_log import CsvLog, read_columns, read_rows
from spade_deploy.runs.layout import BEST_JSON, checkpoint_folder
from spade_deploy.runs.records import Best, read_best
from spade_deploy.training.config import TrainConfig
from spade_deploy.training.dataset import Batch
from spade_deploy.training.records.messages import RunMessages
from spade_deploy.training.records.plots import plot_metrics

METRICS_CSV = "metrics.csv"


class Measures(Protocol):
    """Measures a generator on held-out samples."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics."""

    def evaluate(self, generate: Callable[[Batch], Tensor]) -> dict[str, float]: ...

    def unfit(self) -> Mapping[str, str]:
        """The metrics that must not choose a checkpoint, since their judge fails on real photos, and why."""
        ...

    def direction(self, name: str) -> str:
        """'lower' or 'higher': which is better. Raises ConfigError for a metric that is not measured."""
        ...


def trusted_metric(evaluator: Measures, metric: str, messages: RunMessages) -> str:
    """The metric that chooses the best checkpoint: the one asked for, or another one where its judge is unfit.

    A message says so. Raises ConfigError if the metric is not measured.
    """
    if not metric:
        return metric
    evaluator.direction(metric)
    unfit: Mapping[str, str] = {}
    with messages.optional("the check of the judges on real photos"):
        unfit = evaluator.unfit()
    if metric not in unfit:
        return metric
    instead = next(name for name in evaluator.names if name not in unfit)
    messages.say("the judge", f"{metric} cannot choose the best checkpoint: {unfit[metric]}; {instead} chooses it")
    return instead


def measured_with(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that two measurements must share to be comparable; they are saved in best.json."""
    files = {"extractor": config.extractor, "segmenter": config.segmenter}
    held_out = {"held_out": facts["held_out"]} if facts.get("held_out") else {}
    return {
        "samples": config.eval_samples,
        **held_out,
        **{name: path.name if path else "" for name, path in files.items()},
    }


class MetricLog:
    """metrics.csv and metrics.png of a run that goes on after step `start`. The file is opened at the first row."""

    def __init__(self, run: Path, start: int, messages: RunMessages) -> None:
        self._run, self._start, self._messages = run, start, messages
        self._path = run / METRICS_CSV
        self._log: CsvLog | None = None

    def write(self, step: int, found: dict[str, float], seconds: float) -> None:
        """Add a row of metrics, which took `seconds` to measure. A failure becomes a message."""
        with self._messages.optional(METRICS_CSV):
            if self._log is None:
                self._log = self._open(("step", *found, "seconds"))
            row = {name: found.get(name, math.nan) for name in self._log.columns}
            self._log.write({**row, "step": step, "seconds": seconds})

    def steps(self) -> set[float]:
        """The steps that have a row in the log."""
        try:
            return set(read_columns(self._path).get("step", ()))
        except (OSError, ValueError):  # the log is missing or damaged: the step is measured again
            return set()

    def plot(self, best: Best | None) -> None:
        """Draw the log, with a star at the best checkpoint. A failure becomes a message."""
        if not self.steps():
            return
        with self._messages.optional("metrics.png"):
            plot_metrics(self._path, self._run / "metrics.png", (best.metric, best.step) if best is not None else None)

    def close(self) -> None:
        """Close the log. A failure becomes a message."""
        if self._log is not None:
            with self._messages.optional(METRICS_CSV):
                self._log.close()

    def _open(self, columns: tuple[str, ...]) -> CsvLog:
        """Open the log. If a file with other metrics exists, as of a resumed run, it is kept under another name."""
        if self._start and self._path.is_file():
            try:
                header = next(iter(read_rows(self._path)), [])
            except ValueError:
                header = []
            if tuple(header) != columns:
                self._path.rename(self._path.with_name(f"metrics_until_{self._start:08d}.csv"))
        return CsvLog(self._path, columns, self._start)


class BestCheckpoint:
    """The best checkpoint of a run by one metric, and best.json, which names it.

    best: the best so far; None if none was measured in the same way. marked_step: the step of the checkpoint that
    best.json names, which is never removed. measured_with: the facts that figures must share to be comparable.
    """

    def __init__(self, run: Path, metric: str, measured_with: dict[str, Any], messages: RunMessages) -> None:
        self.best: Best | None = None
        self.marked_step: int | None = None
        self.measured_with = measured_with
        self._run, self._metric, self._messages = run, metric, messages

    def remember(self) -> None:
        """Read the best so far of a resumed run. A message says if it was measured in another way."""
        try:
            best = read_best(self._run)
        except CheckpointError as error:
            self._messages.say("best", f"the best checkpoint so far is forgotten: {error.message}")
            return
        if best is None or not checkpoint_folder(self._run, best.step).is_dir():
            return
        self.marked_step = best.step
        # Older versions wrote fewer facts: those that are missing count as equal.
        same = all(best.measured_with.get(name, value) == value for name, value in self.measured_with.items())
        if same and best.metric == self._metric:
            self.best = best
        else:
            about = f"the best checkpoint so far, by {best.described}, was measured in another way"
            self._messages.say("best", about)

    def is_beaten_by(self, found: Best) -> bool:
        """Whether `found` is better than the best so far."""
        return self.best is None or found.is_better_than(self.best)

    def mark(self, found: Best) -> None:
        """Name an existing checkpoint in best.json. A failure becomes a message."""
        with self._messages.optional(BEST_JSON):
            write_json(self._run / BEST_JSON, found.to_json())
            self.best, self.marked_step = found, found.step
