"""Write the result of a bench: bench.json and bench.png."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spade_deploy.artifact import Artifact
from spade_deploy.bench.result import BenchResult
from spade_deploy.files.atomic import atomic_file, write_json

RESULT_JSON, RESULT_PNG = "bench.json", "bench.png"


def default_folder(artifact: Artifact) -> Path:
    """Where the result goes unless another folder is named: beside the artifact."""
    return artifact.path.parent / "bench"


def write_result(result: BenchResult, folder: Path) -> tuple[Path, ...]:
    """Write the raw result, and a plot where matplotlib is installed and something was measured. Returns the files."""
    written = [folder / RESULT_JSON]
    write_json(written[0], result.to_json())
    if importlib.util.find_spec("matplotlib") is not None and result.measured:
        write_plot(result, folder / RESULT_PNG)
        written.append(folder / RESULT_PNG)
    return tuple(written)


def write_plot(result: BenchResult, path: Path) -> None:
    """Every candidate on a line of its own: all its times as dots, the median as a bar."""
    from matplotlib.figure import Figure

    entries = list(reversed(result.measured))
    figure = Figure(figsize=(9, 1.4 + 0.5 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for row, entry in enumerate(entries):
        figures = result.figures(entry)
        color = "tab:gray" if entry.candidate.is_baseline else "tab:blue"
        axes.barh(row, figures.p50_ms, color=color, alpha=0.35)
        axes.plot([run.seconds * 1e3 for run in entry.runs], [row] * len(entry.runs), ".", color=color, alpha=0.6)
        slowest_ms = max(run.seconds for run in entry.runs) * 1e3
        axes.annotate(f"  {figures.p50_ms:.1f} ms", (slowest_ms, row), va="center", fontsize=8)
    axes.set_yticks(range(len(entries)), [entry.candidate.name for entry in entries])
    axes.set_xlim(left=0)
    axes.margins(x=0.15)
    axes.set_xlabel("latency of a batch in ms: a dot a round, the bar is the median")
    axes.set_title(
        f"{result.height} x {result.width}, batch {result.batch_size}, {result.threads} threads,"
        f" {len(result.rounds)} rounds, {result.machine['processor']}",
        fontsize=9,
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
