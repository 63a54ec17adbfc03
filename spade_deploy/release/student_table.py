"""The figures of a student and of its teacher side by side, as the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from spade_deploy.pages.render import short_time

if TYPE_CHECKING:
    from spade_deploy.release.student import Cost, StoredFile, StudentReport

NOT_EXPORTED = "not exported"
"""What stands for the size of a graph that a model does not have."""

Row = tuple[str, str, str]
"""What it is, the teacher's, the student's."""


def student_rows(report: StudentReport) -> list[Row]:
    """A row for each cost and each figure; none where nothing could be compared."""
    if not report.costs:
        return []
    wide, narrow = report.costs
    names = dict.fromkeys(graph.name for cost in (wide, narrow) for graph in cost.graphs)
    told: list[tuple[str, Callable[[Cost], str]]] = [
        ("base channels", lambda cost: str(cost.base_channels)),
        ("parameters", lambda cost: f"{cost.parameters / 1e6:.2f} M"),
        ("weights in float32", lambda cost: _megabytes(cost.weights_bytes)),
        ("weights file", lambda cost: _weights(cost.weights_file)),
        *((f"ONNX file, {name}", partial(_graph, name)) for name in names),
        ("GMAC, dense graph", lambda cost: _giga(cost.dense_macs)),
        ("GMAC, lookup graph", lambda cost: _giga(cost.lookup_macs)),
        ("time in PyTorch, CPU", lambda cost: short_time(cost.milliseconds / 1e3)),
    ]
    rows = [(name, value(wide), value(narrow)) for name, value in told]
    figures = report.quality.figures if report.quality is not None else ()
    return [*rows, *((one.heading, one.teacher.text, one.student.text) for one in figures)]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _weights(file: StoredFile) -> str:
    return f"{_megabytes(file.bytes)} ({', '.join(file.types)})"


def _graph(name: str, cost: Cost) -> str:
    found = next((graph.bytes for graph in cost.graphs if graph.name == name), None)
    return NOT_EXPORTED if found is None else _megabytes(found)


def _giga(macs: float | None) -> str:
    return "no such graph" if macs is None else f"{macs / 1e9:.3g}"
