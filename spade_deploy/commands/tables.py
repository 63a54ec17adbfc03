"""The tables that commands print: verdicts, engines, times, findings. rich is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from spade_deploy.commands.console import duration, line, print_next, print_places, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from rich.text import Text

    from spade_deploy.bench import BenchResult
    from spade_deploy.engines.tensorrt.build import BuiltEngine
    from spade_deploy.labels.findings import LintReport
    from spade_deploy.validation.report import ValidationReport

SHOWN_FINDINGS = 500
"""At most so many rows of a table of findings are shown; a data set may have a finding in every file."""

WORST_CLASSES = 5
"""So many classes are shown where not all were asked for."""

Cell: TypeAlias = "str | Text"


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, left: Sequence[int] = (0,), title: str = ""
) -> None:
    """Print a table; where it is wider than the terminal, each row as lines of `heading value` under its first cell.

    left: the columns whose cells stand at the left; others hold figures, and stand at the right.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    texts = [list(headings), *([str(cell) for cell in row] for row in rows)]
    needed = sum(2 + max(cell_len(row[column]) for row in texts) for column in range(len(headings))) - 1
    if needed > console.width:
        _print_records(headings, rows, title)
        return
    table = Table(
        box=None,
        title=title or None,
        title_justify="left",
        show_header=any(headings),
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for column, heading in enumerate(headings):
        table.add_column(
            heading if column else f" {heading}", justify="left" if column in left else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(styled(" ", "") + row[0] if isinstance(row[0], Text) else f" {row[0]}", *row[1:])
    console.print(table)


def _print_records(headings: Sequence[str], rows: Sequence[Sequence[Cell]], title: str) -> None:
    import textwrap

    from rich.text import Text

    console = stdout()
    if title:
        console.print(styled(title, "italic"))
    for first, *others in rows:
        console.print(Text(" ").append_text(first if isinstance(first, Text) else Text(first, style="bold")))
        parts = [f"{head} {cell}".strip() for head, cell in zip(headings[1:], others, strict=True) if str(cell)]
        current = ""
        for part in parts:
            if current and len(current) + 2 + len(part) > console.width - 4:
                console.print(f"    {current}", soft_wrap=True)
                current = ""
            current = f"{current}  {part}" if current else part
            if len(current) > console.width - 4:
                *whole, current = textwrap.wrap(
                    current, console.width - 4, break_long_words=False, break_on_hyphens=False
                )
                for text in whole:
                    console.print(f"    {text}", soft_wrap=True)
        if current:
            console.print(f"    {current}", soft_wrap=True)


def print_report(report: ValidationReport, *, by_class: bool | None = None) -> None:
    """Print a row of figures for each graph. by_class: all classes if True, the worst if False, none if None."""
    from spade_deploy.pages.render import decibel, percent, scientific

    console = stdout()
    console.print(f"validated on {report.inputs}; reference: {report.reference}")
    headings = ["graph", "verdict", "max error", "mean", "PSNR", "SSIM", "flipped", "by"]
    rows: list[list[Cell]] = []
    for result in report.results:
        diff = result.judged
        rows.append(
            [
                result.name,
                styled("pass", "green") if result.passed else styled("fail", "red"),
                scientific(diff.max_abs),
                scientific(diff.mean_abs),
                decibel(diff.psnr_db),
                f"{diff.ssim:.6f}",
                percent(diff.flip_share),
                f"{diff.max_flip}/255",
            ]
        )
    if any(result.left_out for result in report.results):
        headings.append("left out of the verdict")
        for row, result in zip(rows, report.results, strict=True):
            row.append("; ".join(result.left_out) or "nothing")
    print_table(headings, rows, left=(0, 1, 8))
    for result in report.results:
        if result.half is not None:
            console.print(f"  {result.name}: {result.half}")
        if result.second_opinion:
            console.print(f"  {result.name}: {result.second_opinion}")
    if by_class is not None:
        _print_classes(report, every=by_class)


def _print_classes(report: ValidationReport, *, every: bool) -> None:
    """The figures by class: of every class and graph, or of the worst classes, each in the graph that is worst."""
    from spade_deploy.pages.render import percent, scientific

    found = [(entry, result.name) for result in report.results for entry in result.diff.classes]
    classes = len({entry.label_id for entry, _ in found})
    if every:
        found.sort(key=lambda one: one[0].label_id)
    else:
        found.sort(key=lambda one: -one[0].mean_abs)
        worst = {entry.label_id: (entry, name) for entry, name in reversed(found)}
        found = sorted(worst.values(), key=lambda one: -one[0].mean_abs)[:WORST_CLASSES]
    print_table(
        ("class", "share", "graph", "mean error", "max error", "flipped"),
        [
            (
                one_line(entry.name),
                percent(entry.share),
                name,
                scientific(entry.mean_abs),
                scientific(entry.max_abs),
                percent(entry.flip_share),
            )
            for entry, name in found
        ],
        left=(0, 2),
        title="by class" if every else f"the worst {len(found)} of {classes} classes (--by-class shows all)",
    )


def print_engines(engines: Sequence[BuiltEngine]) -> None:
    """Print each engine: its file, whether it was built now, and what it was proved to be."""
    console = stdout()
    for engine in engines:
        key = engine.key
        what = f"{key.precision} {key.kind}"
        how = "was there already" if engine.was_there else f"built in {duration(engine.seconds)}"
        console.print(
            styled(what, "bold"),
            f"engine, {key.flavour} {key.version} for {key.gpu}, {engine.bytes / 1e6:.1f} MB: {how}",
            highlight=False,
        )
        console.print(f"  {engine.described}")
        console.print(f"  profile {key.profile}")
        print_places(("engine", engine.path))
    if engines:
        print_next("spade", "inspect", engines[0].path)


def print_bench(result: BenchResult, files: Sequence[Path]) -> None:
    """Print a row of figures for each measured candidate, why the others were not measured, the notes, the files."""
    console, reference = stdout(), result.reference
    console.print(
        f"{result.height} x {result.width}, batch {result.batch_size}, {result.threads} threads,"
        f" {len(result.rounds)} rounds of {len(result.cases)} batches, {result.machine['processor']}",
        markup=False,
    )
    against = f"vs {reference.candidate.name}" if reference is not None else "ratio"
    times = ("p50 ms", "p90", "p99", "CPU ms", "patterns", "images/s", against)
    rows = []
    for entry in result.measured:
        figures, cold = result.figures(entry), entry.cold_start
        row = (
            entry.candidate.name,
            str(entry.precision),
            "" if (found_db := result.psnr_db(entry)) is None else f"{found_db:.1f}",
            *(f"{value:.1f}" for value in (figures.p50_ms, figures.p90_ms, figures.p99_ms)),
            "" if figures.cpu_p50_ms is None else f"{figures.cpu_p50_ms:.1f}",
            "" if figures.patterns_p50_ms is None else f"{figures.patterns_p50_ms:.1f}",
            f"{figures.images_per_s:.2f}",
            "" if reference is None else f"{result.ratio(entry, reference):.2f}",
            "?" if entry.peak_memory_bytes is None else f"{entry.peak_memory_bytes / 1e6:.0f} MB",
            "?" if cold is None else f"{cold.total_s:.2f} s",
        )
        rows.append(row)
    if rows:
        print_table(("", "in", "PSNR dB", *times, "peak memory", "cold start"), rows)
    for entry in result.entries:
        if entry.reason:
            style = "red" if entry.is_fault else "yellow"
            hint = f" ({in_flags(entry.hint)})" if entry.hint else ""
            name = styled(f"  {entry.candidate.name}: not measured:", style)
            console.print(line(name, f" {in_flags(entry.reason)}{hint}"))
    for note in result.notes:
        console.print(styled(f"  {in_flags(note)}", "dim"))
    print_places(*((file.suffix.lstrip("."), file) for file in files))
    if result.measured and not any(file.suffix == ".png" for file in files):
        console.print("  no plot: matplotlib is not installed (pip install matplotlib)")


def print_findings(report: LintReport) -> None:
    """Print a row for each finding."""
    styles = {"error": "red", "warning": "yellow", "note": "dim"}
    rows: list[tuple[Cell, ...]] = []
    for finding in report.findings[:SHOWN_FINDINGS]:
        name = finding.path.name if finding.path.is_absolute() else str(finding.path)
        severity = styled(finding.severity, styles[finding.severity])
        fixable = "yes" if finding.fixable else ""
        rows.append((one_line(name), severity, finding.code, one_line(in_flags(finding.message)), fixable))
    print_table(("file", "", "code", "what", "--fix"), rows, left=range(5))
    left = len(report.findings) - SHOWN_FINDINGS
    if left > 0:
        stdout().print(f" ... and {left} more")
