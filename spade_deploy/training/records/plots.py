"""The plots of a run: losses.png and metrics.png, drawn from the logs, and the losses as SVG for pages."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import MissingDependencyError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.runs.csv_log import read_columns

RATES = ("lr_generator", "lr_discriminator")
"""The columns of losses.csv that are learning rates."""

_MAX_POINTS = 2000
_FEW_POINTS = 30
"""A curve of no more points than this has a dot at each: a line through one point would be nothing at all."""
_LOG_RANGE = 10.0
"""A panel of losses is logarithmic where the largest value is more than so many times the smallest: on a shorter range
a logarithmic axis has hardly a tick."""
_INK, _GRID = "#010203", "#808080"
"""_INK stands in SVG files for the colour of the text around them."""


def require_matplotlib() -> None:
    """Raise MissingDependencyError without matplotlib, now and not at the first plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "matplotlib is not installed; the loss plot needs it", hint="pip install 'spade-deploy[train]'"
        )


def plot_losses(losses_csv: Path, target: Path) -> None:
    """Draw losses.csv as a PNG: generator losses, discriminator losses and learning rates, one above the other."""
    figure = _losses_figure(losses_csv)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png")


def losses_svg(losses_csv: Path) -> str:
    """The same drawing as an SVG element for a page: transparent, and its text has the colour of the page's text."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spade-deploy"}):
        _losses_figure(losses_csv, ink=_INK).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    sized = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', svg, count=1, flags=re.DOTALL)
    unsized = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", sized, count=1, flags=re.DOTALL)
    return unsized.replace(_INK, "currentColor")


def _losses_figure(losses_csv: Path, ink: str = "black") -> Any:
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
    for axis, (title, names, may_be_log) in zip(axes, panels, strict=True):
        for index, name in enumerate(names):
            _draw(axis, steps, columns[name], name, f"C{index}", smooth=title != "Learning rates")
        axis.set_title(title, fontsize=10, loc="left", color=ink)
        _set_scale(axis, [columns[name] for name in names] if may_be_log else [])
        if title == "Learning rates":
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_formatter("{x:.3g}")
        if not len(steps):
            axis.set_yticks([])
            axis.text(0.5, 0.5, "no step is logged yet", transform=axis.transAxes, ha="center", color=ink)
        _tidy(axis, ink)
        # Beside the axes, where it covers no curve.
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, labelcolor=ink)
        axis.set_ylabel("rate" if title == "Learning rates" else "loss", color=ink)
    axes[-1].set_xlabel("step", color=ink)
    _step_ticks(axes[-1], steps)
    return figure


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
        _set_scale(axis, [])
        _tidy(axis, "black")
    axes[-1].set_xlabel("step")
    _step_ticks(axes[-1], columns["step"])
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png")


def _set_scale(axis: Any, curves: list[NDArray[np.float64]]) -> None:
    """Logarithmic for positive curves of a wide range, else linear; either way with a few ticks that are written."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    values = np.concatenate(curves) if curves else np.zeros(0)
    if len(values) and values.min() > 0 and values.max() > _LOG_RANGE * values.min():
        axis.set_yscale("log")
        is_wide = values.max() > 1e4 * values.min()
        axis.yaxis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5), numticks=12))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))


def _step_ticks(axis: Any, steps: NDArray[np.float64]) -> None:
    """Ticks at whole steps alone; one step, or none, is in the middle of an axis of its own."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if len(set(steps.tolist())) < 2:
        middle = float(steps[0]) if len(steps) else 1.0
        axis.set_xlim(middle - 1, middle + 1)


def _tidy(axis: Any, ink: str) -> None:
    axis.grid(alpha=0.3, which="both", linewidth=0.5, color=_GRID)
    axis.tick_params(colors=ink, which="both")
    for spine in axis.spines.values():
        spine.set_color(ink)


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
    dot = "o" if len(steps) <= _FEW_POINTS else ""
    if not smooth:
        # Both rates are often the same: dashes, and open dots, let the first one show through.
        style, face = ("--", "none") if name == RATES[1] else ("-", color)
        drawn = {"color": color, "linewidth": 1.6, "label": label, "markersize": 4, "markerfacecolor": face}
        axis.plot(steps[::stride], values[::stride], dot + style, **drawn)
        return
    axis.plot(steps[::stride], values[::stride], color=color, linewidth=0.7, alpha=0.3)
    mean = smoothed(values, max(1, len(values) // 25))
    axis.plot(steps[::stride], mean[::stride], dot + "-", color=color, linewidth=1.6, markersize=3, label=label)
