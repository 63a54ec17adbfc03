"""The plots of a run: losses.png and metrics.png, drawn from the logs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import MissingDependencyError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.training.records.csv_log import read_columns

RATES = ("lr_generator", "lr_discriminator")
"""The columns of losses.csv that are learning rates."""

_MAX_POINTS = 2000


def require_matplotlib() -> None:
    """Raise MissingDependencyError without matplotlib, now and not at the first plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "matplotlib is not installed; the loss plot needs it", hint="pip install 'spade-deploy[train]'"
        )


def plot_losses(losses_csv: Path, target: Path) -> None:
    """Draw losses.csv as a PNG: generator losses, discriminator losses and learning rates, one above the other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = read_columns(losses_csv)
    steps = columns["step"]
    mine = [name for name in columns if name not in ("step", "seconds", "adversarial", "kl", *RATES)]
    matching = [name for name in mine if not name.startswith("discriminator")]
    against = [name for name in ("adversarial", *mine) if name in columns and name not in matching]
    panels = [
        ("Generator: distance from the photo (before weighting)", matching, True),
        ("Generator against discriminator", against, False),
        (
            "Style encoder: distance of its styles from the normal distribution",
            [n for n in columns if n == "kl"],
            False,
        ),
        ("Learning rates", list(RATES), False),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = _figure(len(panels), 2.6)
    for axis, (title, names, is_log) in zip(axes, panels, strict=True):
        for index, name in enumerate(names):
            _draw(axis, steps, columns[name], name, f"C{index}", smooth=title != "Learning rates")
        axis.set_title(title, fontsize=10, loc="left")
        if is_log and all((columns[name] > 0).all() for name in names):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=8, loc="upper right", framealpha=0.9)
        axis.set_ylabel("rate" if title == "Learning rates" else "loss")
    axes[-1].set_xlabel("step")
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png")


def plot_metrics(metrics_csv: Path, target: Path, best: tuple[str, int] | None = None) -> None:
    """Draw metrics.csv as a PNG, a panel for each metric. best: the metric and the step of the best checkpoint."""
    columns = read_columns(metrics_csv)
    names = [name for name in columns if name not in ("step", "seconds")]
    figure, axes = _figure(len(names), 1.7)
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.plot(columns["step"], columns[name], "o-", color=f"C{index}", linewidth=1.4, markersize=3)
        title = name.replace("_", " ")
        if best is not None and best[0] == name and best[1] in columns["step"]:
            value = columns[name][list(columns["step"]).index(best[1])]
            axis.plot([best[1]], [value], "*", color="black", markersize=12)
            title += f": best {value:.4g} in step {best[1]}"
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.3, linewidth=0.5)
    axes[-1].set_xlabel("step")
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png")


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean of up to `width` values around each one; at the ends fewer values are averaged."""
    before, after = (width - 1) // 2, width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - before, 0), np.minimum(index + after + 1, len(values))
    means: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return means


def _figure(panels: int, panel_height: float) -> tuple[Any, Any]:
    """A figure with panels one above the other, and their axes. Heights in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The object-oriented interface: pyplot would keep global state and choose a backend.
    figure = Figure(figsize=(9, panel_height * panels + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]


def _draw(
    axis: Any, steps: NDArray[np.float64], values: NDArray[np.float64], name: str, color: str, *, smooth: bool
) -> None:
    """The raw curve in pale, its running mean on top."""
    label = name.replace("_", " ").replace("l1", "L1").replace("kl", "KL").replace("lr ", "")
    stride = max(1, math.ceil(len(steps) / _MAX_POINTS))
    if not smooth:
        # Both rates are often the same: dashes let the first one show through.
        style = "--" if name == RATES[1] else "-"
        axis.plot(steps[::stride], values[::stride], style, color=color, linewidth=1.6, label=label)
        return
    axis.plot(steps[::stride], values[::stride], color=color, linewidth=0.7, alpha=0.3)
    mean = smoothed(values, max(1, len(values) // 25))
    axis.plot(steps[::stride], mean[::stride], color=color, linewidth=1.6, label=label)
