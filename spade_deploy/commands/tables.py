"""The tables that commands print: verdicts, engines, times, findings. rich is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.console import duration, line, print_next, print_places, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from spade_deploy.bench import BenchResult
    from spade_deploy.engines.tensorrt.build import BuiltEngine
    from spade_deploy.labels.findings import LintReport
    from spade_deploy.validation.report import ValidationReport

SHOWN_FINDINGS = 500
"""At most so many rows of a table of findings are shown; a data set may have a finding in every file."""


def print_report(report: ValidationReport, *, by_class: bool = False) -> None:
    """Print a row of figures for each graph."""
    from rich.table import Table

    from spade_deploy.pages.render import decibel, percent, scientific

    console = stdout()
    console.print(f"validated on {report.inputs}; reference: {report.reference}")
    table = Table(box=None)
    for heading in ("graph", "verdict", "max error", "mean error", "PSNR", "SSIM", "flipped pixels", "by at most"):
        table.add_column(heading, justify="left" if heading in ("graph", "verdict") else "right")
    for result in report.results:
        diff = result.diff
        table.add_row(
            result.name,
            styled("pass", "green") if result.passed else styled("fail", "red"),
            scientific(diff.max_abs),
            scientific(diff.mean_abs),
            decibel(diff.psnr_db),
            f"{diff.ssim:.6f}",
            percent(diff.flip_share),
            f"{diff.max_flip}/255",
        )
    console.print(table)
    for result in report.results:
        if result.undecided_share > 0:
            share = percent(result.undecided_share)
            console.print(f"  {result.name}: rounding alone decides {share} of the values; the rest is judged")
        if result.half is not None:
            console.print(f"  {result.name}: {result.half}", highlight=False, markup=False)
        if result.second_opinion:
            console.print(f"  {result.name}: {result.second_opinion}")
    if by_class:
        console.print(_class_table(report))


def _class_table(report: ValidationReport) -> Table:
    from rich.table import Table

    from spade_deploy.pages.render import percent, scientific

    table = Table(box=None, title="by class", title_justify="left")
    table.add_column("class")
    table.add_column("share", justify="right")
    for result in report.results:
        for heading in ("mean", "max", "flipped"):
            table.add_column(f"{result.name} {heading}", justify="right")
    for row in zip(*(result.diff.classes for result in report.results), strict=True):
        cells = [
            cell
            for entry in row
            for cell in (scientific(entry.mean_abs), scientific(entry.max_abs), percent(entry.flip_share))
        ]
        table.add_row(row[0].name, percent(row[0].share), *cells)
    return table


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
        print_next(f"spade inspect {engines[0].path}")


def print_bench(result: BenchResult, files: Sequence[Path]) -> None:
    """Print a row of figures for each measured candidate, why the others were not measured, the notes, the files."""
    from rich.table import Table

    console, reference = stdout(), result.reference
    console.print(
        f"{result.height} x {result.width}, batch {result.batch_size}, {result.threads} threads,"
        f" {len(result.rounds)} rounds of {len(result.cases)} batches, {result.machine['processor']}",
        markup=False,
    )
    table = Table(box=None)
    table.add_column("")
    against = f"vs {reference.candidate.name}" if reference is not None else "ratio"
    times = ("p50 ms", "p90", "p99", "CPU ms", "patterns", "images/s", against)
    for heading in ("in", "PSNR dB", *times, "peak memory", "cold start"):
        table.add_column(heading, justify="right")
    for entry in result.measured:
        figures, cold = result.figures(entry), entry.cold_start
        table.add_row(
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
    if result.measured:
        console.print(table)
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


def finding_table(report: LintReport) -> Table:
    """A row for each finding."""
    from rich.table import Table

    styles = {"error": "red", "warning": "yellow", "note": "dim"}
    table = Table(box=None)
    for heading in ("file", "", "code", "what", "--fix"):
        table.add_column(heading, overflow="fold")
    for finding in report.findings[:SHOWN_FINDINGS]:
        style = styles[finding.severity]
        name = finding.path.name if finding.path.is_absolute() else str(finding.path)
        table.add_row(
            one_line(name),
            styled(finding.severity, style),
            finding.code,
            in_flags(finding.message),
            "yes" if finding.fixable else "",
        )
    left = len(report.findings) - SHOWN_FINDINGS
    if left > 0:
        table.add_row(f"... and {left} more")
    return table
