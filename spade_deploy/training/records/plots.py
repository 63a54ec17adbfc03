"""What a run leaves to look at: losses and metrics as CSV and as plots, and the sample grids."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import MissingDependencyError, reason_of
from spade_deploy.files.atomic import atomic_file, write_text
from spade_deploy.files.reading import read_regular
from spade_deploy.labels.files import colorize, save_pixels
from spade_deploy.spec import LabelSpec

Pixels = NDArray[np.uint8]
Columns = dict[str, NDArray[np.float64]]

RATES = ("lr_generator", "lr_discriminator")
GRID_GAP_PX = 4
_MAX_POINTS = 2000
_MAX_CSV_BYTES = 1 << 30


class LossLog:
    """losses.csv or metrics.csv: a header, then a row of numbers for each logged step, which is in the file at once.

    Opening an existing file keeps its rows up to `last_step`: what an interrupted run logged after its last checkpoint
    will be computed again. What a full disk does not take is kept and goes first the next time: no row is lost, none is
    left in half for good.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], last_step: int) -> None:
        self.columns = columns
        kept = _rows_until(path, columns, last_step) if last_step else []
        write_text(path, "".join(",".join(row) + "\n" for row in [list(columns), *kept]))
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, values: dict[str, float]) -> None:
        """Append a row. Numbers are written so that reading gives the same float again. Raises OSError."""
        # float: NumPy's own numbers have a repr that says so.
        numbers = (values[name] for name in self.columns)
        cells = (repr(number if isinstance(number, int) else float(number)) for number in numbers)
        self._pending += (",".join(cells) + "\n").encode()
        self._write_pending()

    def close(self) -> None:
        """Raises OSError where rows are left that the disk does not take."""
        with self._file:
            self._write_pending()

    def _write_pending(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]


def read_losses(path: Path) -> Columns:
    """The columns of a losses.csv; a last row that was cut off is left out. Raises OSError and ValueError."""
    rows = read_rows(path)
    header = rows[0] if rows else []
    numbers = [row for row in map(_numbers, rows[1:]) if row is not None and len(row) == len(header)]
    table = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(header))
    return {name: table[:, index] for index, name in enumerate(header)}


def read_rows(path: Path) -> list[list[str]]:
    """The cells of a log, row by row. Raises OSError, and ValueError where it is no CSV."""
    text = read_regular(path, _MAX_CSV_BYTES).decode("utf-8")
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: is no CSV ({reason_of(error)})") from error


def require_matplotlib() -> None:
    """Raises MissingDependencyError now, not at the first plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "matplotlib is not installed; the loss plot needs it", hint="pip install 'spade-deploy[train]'"
        )


def plot_losses(losses_csv: Path, target: Path) -> None:
    """Draw losses.csv as a PNG: generator losses, discriminator losses and learning rates, one above the other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = read_losses(losses_csv)
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
    columns = read_losses(metrics_csv)
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


def save_sample_grid(target: Path, labels: LabelSpec, label: NDArray[Any], generated: Pixels, photo: Pixels) -> None:
    """Write `sample_grid` as a PNG."""
    save_pixels(target, sample_grid(labels, label, generated, photo))


def sample_grid(labels: LabelSpec, label: NDArray[Any], generated: Pixels, photo: Pixels) -> Pixels:
    """One row a sample: label map in its colours | generated | photo. label N x H x W, the others N x H x W x 3.

    GRID_GAP_PX white pixels lie between the images.
    """
    colours = colorize(label, labels)
    height, width = label.shape[1:]
    tall, wide = height + GRID_GAP_PX, width + GRID_GAP_PX
    grid = np.full((len(label) * tall - GRID_GAP_PX, 3 * wide - GRID_GAP_PX, 3), 255, np.uint8)
    for row, images in enumerate(zip(colours, generated, photo, strict=True)):
        for column, image in enumerate(images):
            top, left = row * tall, column * wide
            grid[top : top + height, left : left + width] = image
    return grid


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean of up to `width` values around each one; fewer at the ends, so that nothing is invented there."""
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


def _rows_until(path: Path, columns: tuple[str, ...], last_step: int) -> list[list[str]]:
    """Rows of an existing log up to a step; of a log with other columns, or of none, nothing is kept.

    Raises OSError for what is there and cannot be read: it is not to be written over.
    """
    try:
        rows = read_rows(path)
    except (FileNotFoundError, ValueError):
        return []
    if not rows or tuple(rows[0]) != columns:
        return []
    whole = [(row, numbers) for row in rows[1:] if (numbers := _numbers(row)) and len(numbers) == len(columns)]
    return [row for row, numbers in whole if numbers[0] <= last_step]


def _numbers(row: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        return None
