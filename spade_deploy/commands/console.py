"""What the commands print: errors, tables, the places of results and the next command to type.

rich is imported where it is used: a command that prints one line should not pay for tables.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.flags import in_flags
from spade_deploy.errors import SpadeError
from spade_deploy.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderHook
    from rich.table import Table
    from rich.text import Text

    from spade_deploy.bench import BenchResult
    from spade_deploy.engines.tensorrt.build import BuiltEngine
    from spade_deploy.labels.findings import LintReport
    from spade_deploy.validation.report import ValidationReport


SHOWN_FINDINGS = 500
"""At most so many rows of a table of findings are shown; a data set may have a finding in every file."""


NARROWEST, WIDEST = 20, 2000
"""A number of columns or lines outside these limits, such as 0, is not believed to be that of a terminal."""


class _Notes(logging.Handler):
    """Prints each warning of the package as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr().print(f"  note: {in_flags(record.getMessage())}", highlight=False, markup=False, soft_wrap=True)


def show_notes() -> None:
    """From now on the package's warnings are printed as notes."""
    logger = logging.getLogger("spade_deploy")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())


def stdout() -> Console:
    """The console for results. Lines are wrapped at a terminal's width, and never in a file or a pipe."""
    return _console(to_stderr=False)


def stderr() -> Console:
    """The console for errors and progress."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    """A console that prints text as it is: styles are `Text`, never markup, as a file may be called [/red].png."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding is no reason to fail
    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())
    console.push_render_hook(_cleaner())
    return console


def _cleaner() -> RenderHook:
    """A hook that removes control codes from all that is printed, except those that rich itself writes."""
    from rich.console import ConsoleRenderable, RenderHook
    from rich.segment import Segment

    class Cleaned:
        def __init__(self, renderable: ConsoleRenderable) -> None:
            self._renderable = renderable

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
            for segment in console.render(self._renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    class Cleaner(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [Cleaned(renderable) for renderable in renderables]

    return Cleaner()


def check_terminal_size() -> None:
    """Remove COLUMNS and LINES from the environment if no terminal has that size: in 0 columns rich prints nothing."""
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name)
        if value is None:
            continue
        least = NARROWEST if name == "COLUMNS" else 1
        if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= WIDEST):
            del os.environ[name]


def styled(text: object, style: str) -> Text:
    """Text in a style; nothing in it is markup."""
    from rich.text import Text

    return Text(printable(str(text)), style=style)


def line(*parts: str | Text) -> Text:
    """One line of several parts, each of which may have a style of its own."""
    from rich.text import Text

    return Text.assemble(*(printable(part) if isinstance(part, str) else part for part in parts))


def print_error(error: SpadeError) -> None:
    """Print an error: what happened, then what to do. Fields are named by the flags of the command that runs."""
    console = stderr()
    console.print(line(styled("error:", "bold red"), f" {in_flags(error.message)}"))
    if error.hint:
        console.print(line(styled("next:", "bold"), f" {in_flags(error.hint)}"))


def note(text: str) -> None:
    """Print a note on stderr. Fields are named by the flags of the command that runs."""
    stdout().print(f"  note: {in_flags(text)}")


def print_places(*places: tuple[str, Path]) -> None:
    """Print where results are, one on a line."""
    width = max(len(what) for what, _ in places)
    for what, path in places:
        stdout().print(line(f"  {what:<{width}}  ", styled(one_line(path), "bold")))


def print_next(command: str) -> None:
    """Print the next command to type."""
    stdout().print(line("next: ", styled(one_line(command), "bold cyan")))


def duration(seconds: float) -> str:
    """75.2 -> '75.2 s', 150 -> '2 min 30 s'."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def clock_time(seconds: float) -> str:
    """45 -> '0:45', 3725 -> '1:02:05', 90000 -> '1 d 1 h'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


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
