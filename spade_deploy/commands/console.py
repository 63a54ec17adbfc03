"""What the commands print: errors, tables, progress bars, the places of results and the next command to type.

rich is imported where it is used: a command that prints one line should not pay for tables.
"""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spade_deploy.errors import SpadeError
from spade_deploy.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderHook
    from rich.table import Table
    from rich.text import Text

    from spade_deploy.bench import BenchResult
    from spade_deploy.engines.tensorrt.build import BuiltEngine
    from spade_deploy.evaluation import EvalResult
    from spade_deploy.labels.lint import LintReport
    from spade_deploy.training.estimate import Estimate
    from spade_deploy.training.loop import Progress as TrainProgress
    from spade_deploy.validation.validate import ValidationReport


SHORT_NAMES = {
    "adversarial": "G",
    "feature_matching": "FM",
    "l1": "L1",
    "perceptual": "VGG",
    "kl": "KL",
    "discriminator_real": "D real",
    "discriminator_fake": "fake",
}
"""Losses in the progress bar, which has one line; the log has their whole names."""


LINE_EVERY_S = 30.0
"""Seconds between two lines about a training whose progress goes to a file."""


SHOWN_FINDINGS = 500
"""Rows of a table of findings; a data set may have as many as it has files."""


NARROWEST, WIDEST = 20, 2000
"""Columns and lines of a terminal that are believed; others, 0 among them, are those of no terminal."""


class _Notes(logging.Handler):
    """What the package has to tell without failing: a line of stderr each."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr().print(f"  note: {record.getMessage()}", highlight=False, markup=False, soft_wrap=True)


def show_notes() -> None:
    """From now on the package's warnings are printed as notes."""
    logger = logging.getLogger("spade_deploy")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())


def stdout() -> Console:
    """For results. Wrapped at the terminal's width, never in a file or a pipe."""
    return _console(to_stderr=False)


def stderr() -> Console:
    """For errors and progress."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    """Text is printed as it is: styles are `Text`, never markup, since a file may be called [/red].png or :smile:."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding is no reason to fail
    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())
    console.push_render_hook(_cleaner())
    return console


def _cleaner() -> RenderHook:
    """Whatever is printed, nothing in it reaches the terminal as an order but what rich itself says."""
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
    """Forget COLUMNS and LINES that are the size of no terminal: rich would print nothing in 0 columns."""
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
    """One line of several parts, in styles of their own."""
    from rich.text import Text

    return Text.assemble(*(printable(part) if isinstance(part, str) else part for part in parts))


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner beside what is done now; yields what changes the words."""
    with stdout().status(styled(what, "")) as status:
        yield lambda text: status.update(styled(one_line(text), ""))


def print_error(error: SpadeError) -> None:
    """One message: what happened, then what to do."""
    console = stderr()
    console.print(line(styled("error:", "bold red"), f" {error.message}"))
    if error.hint:
        console.print(line(styled("next:", "bold"), f" {error.hint}"))


def print_places(*places: tuple[str, Path]) -> None:
    """Where results are, one a line."""
    width = max(len(what) for what, _ in places)
    for what, path in places:
        stdout().print(line(f"  {what:<{width}}  ", styled(one_line(path), "bold")))


def print_next(command: str) -> None:
    """The next command to type."""
    stdout().print(line("next: ", styled(one_line(command), "bold cyan")))


def duration(seconds: float) -> str:
    """75.2 -> '75.2 s', 150 -> '2 min 30 s'."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def print_estimate(described: str, found: Estimate) -> None:
    """What a training will need, and how that is known."""
    out = stdout()
    out.print(f"would train: {described}")
    memory, foreseen = found.memory_bytes, found.from_shapes
    how = "measured in a process of its own" if found.is_measured else "foreseen from the shapes"
    parts = f"{_gigabytes(foreseen.weights)} weights, {_gigabytes(foreseen.learning)} gradients and Adam's moments"
    rows = [("memory", f"{_gigabytes(memory)} a process, {how}")]
    rows.append(("foreseen", f"{_gigabytes(foreseen.total)}: {parts}, {_gigabytes(foreseen.activations)} activations"))
    if found.free_bytes is not None:
        verdict = "fits" if found.fits else "does NOT fit"
        rows.append(("free", f"{_gigabytes(found.free_bytes)} on {found.device}: {verdict}"))
    if found.seconds_per_step is not None:
        rows.append(("time", f"{found.seconds_per_step:.2f} s a step on {found.device}"))
        if found.seconds is not None:
            rows[-1] = ("time", f"{rows[-1][1]}, {clock_time(found.seconds)} for {found.steps} steps")
    for what, value in rows:
        out.print(f"  {what:<8}  {value}")
    for note in found.notes:
        out.print(f"  note: {note}")
    if found.fits is False:
        out.print("  less memory: --accumulate N, --amp bf16, a smaller --batch-size or --size")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


@contextmanager
def training_bar(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[TrainProgress], None]]:
    """Steps, the time that is left, speed, memory; losses and the last metrics below.

    In a file: a plain line for the first and the last step, and one every LINE_EVERY_S seconds.
    """
    console = stderr()
    if console.is_terminal and not console.is_dumb_terminal:
        with _live_training(console, clock) as report:
            yield report
        return
    first: list[tuple[int, float]] = []
    last_line = -math.inf

    def write_line(progress: TrainProgress) -> None:
        nonlocal last_line
        now = clock()
        first[:] = first or [(progress.step, now)]
        for note in progress.notes:
            console.print(f"note: {note}")
        if progress.step == progress.steps or now - last_line >= LINE_EVERY_S:
            last_line = now
            parts = (
                f"step {progress.step}/{progress.steps}",
                f"left {clock_time(_left_s(progress, *first[0], now))}",
                *_speeds(progress),
                *_losses(progress),
                *_metrics(progress),
            )
            console.print("  ".join(parts))

    yield write_line


@contextmanager
def _live_training(console: Console, clock: Callable[[], float]) -> Iterator[Callable[[TrainProgress], None]]:
    """A bar, and lines of figures below it that break between figures only, drawn anew with every step."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[left]} left"),
        TextColumn("{task.fields[speeds]}"),
    )
    bar = Progress(*columns, console=console, auto_refresh=False)
    below = Text(no_wrap=True, overflow="ellipsis", style="dim")
    task: list[Any] = []
    first: list[tuple[int, float]] = []
    with Live(Group(bar, below), console=console, refresh_per_second=4) as live:

        def report(progress: TrainProgress) -> None:
            now = clock()
            first[:] = first or [(progress.step, now)]
            for note in progress.notes:
                live.console.print(f"note: {note}")
            left = clock_time(_left_s(progress, *first[0], now))
            fields: dict[str, Any] = {"left": left, "speeds": "  ".join(_speeds(progress))}
            if not task:
                task.append(bar.add_task("", total=progress.steps, completed=progress.step - 1, **fields))
            bar.update(task[0], completed=progress.step, **fields)
            lines = (*_filled(_losses(progress), console.width), *_filled(_metrics(progress), console.width))
            below.plain = "\n".join(lines)

        yield report


def _left_s(progress: TrainProgress, first_step: int, first_s: float, now_s: float) -> float:
    """Seconds to go at the pace so far, which knows of checkpoints and metrics; the first step's pace is its own."""
    done = progress.step - first_step
    pace = (now_s - first_s) / done if done else progress.seconds_per_step
    return pace * (progress.steps - progress.step)


def _speeds(progress: TrainProgress) -> tuple[str, ...]:
    memory = (f"{progress.memory_bytes / 1e9:.1f} GB",) if progress.memory_bytes else ()
    return f"{progress.seconds_per_step:.2f} s/step", f"{_short(progress.samples_per_second)} samples/s", *memory


def _losses(progress: TrainProgress) -> tuple[str, ...]:
    return tuple(f"{SHORT_NAMES.get(name, name)} {value:.2f}" for name, value in progress.losses.items())


def _metrics(progress: TrainProgress) -> tuple[str, ...]:
    return tuple(f"{name.replace('_', ' ')} {_short(value)}" for name, value in progress.metrics.items())


def _filled(parts: Sequence[str], width: int) -> tuple[str, ...]:
    """Lines of at most `width` letters, two spaces between parts; a part is never broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += "  " + part
        else:
            lines.append(part)
    return tuple(lines)


def _short(value: float) -> str:
    """Three digits: 0.0123, 1.23, 123, 12345."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def clock_time(seconds: float) -> str:
    """45 -> '0:45', 3725 -> '1:02:05', 90000 -> '1 d 1 h'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@contextmanager
def image_bar() -> Iterator[Callable[[int, int, float], None]]:
    """Images done, images/s and the time that is left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr()) as bar:
        task: list[Any] = []

        def report(done: int, total: int, rate: float) -> None:
            if not task:
                task.append(bar.add_task("", total=total, rate=rate))
            bar.update(task[0], completed=done, rate=rate)

        yield report


@contextmanager
def step_bar() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """(on_step, on_progress): a line for each step, and a bar for what takes long within one; gone when it ends."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = stdout()
    described = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), described, BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, count="")

        def on_step(text: str) -> None:
            console.print(f"  {text}", style="dim")
            bar.reset(task, total=None, description=one_line(text), count="")

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, total=total, completed=done, description=one_line(what), count=f"{done}/{total}")

        yield on_step, on_progress


@contextmanager
def count_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Files done of files in all; gone when it ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task: list[Any] = []

        def report(done: int, total: int) -> None:
            if not task:
                task.append(bar.add_task("", total=total))
            bar.update(task[0], completed=done)

        yield report


def print_report(report: ValidationReport, *, by_class: bool = False) -> None:
    """A row of figures for each graph."""
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
    """What was built, where it lies, and what it was proved to be."""
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
    """A row of figures for each candidate that was measured, why the others were not, what to know, the files."""
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
    for heading in ("p50 ms", "p90", "p99", "patterns", "images/s", against, "peak memory", "cold start"):
        table.add_column(heading, justify="right")
    for entry in result.measured:
        figures, cold = result.figures(entry), entry.cold_start
        table.add_row(
            entry.candidate.name,
            *(f"{value:.1f}" for value in (figures.p50_ms, figures.p90_ms, figures.p99_ms)),
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
            hint = f" ({entry.hint})" if entry.hint else ""
            name = styled(f"  {entry.candidate.name}: not measured:", style)
            console.print(line(name, f" {entry.reason}{hint}"))
    for note in result.notes:
        console.print(styled(f"  {note}", "dim"))
    print_places(*((file.suffix.lstrip("."), file) for file in files))
    if result.measured and not any(file.suffix == ".png" for file in files):
        console.print("  no plot: matplotlib is not installed (pip install matplotlib)")


def print_evaluation(result: EvalResult, files: Sequence[Path]) -> None:
    """A row of figures for each model, those of real photos below, what to know, the files."""
    from rich.table import Table

    from spade_deploy.evaluation.page import HEADINGS, heading, lines

    console, columns = stdout(), result.measured()
    data = result.settings["data"]
    console.print(
        f"{result.samples} samples of {data['preset']}, {result.settings['split']} split,"
        f" {result.settings['height']} x {result.settings['width']}",
        markup=False,
    )
    table = Table(box=None)
    table.add_column("")
    for name in ("images", *map(heading, columns)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in lines(result):
        # The deviation of the kernel distance is in the report: a terminal of 80 columns has no room for it.
        cells = (styled(cell.short, "green" if cell.is_best else "") for cell in row.cells)
        table.add_row(styled(one_line(row.name), "dim" if row.is_reference else ""), str(row.images), *cells)
    console.print(table)
    for name in columns:
        if name not in ("l1", "psnr"):
            console.print(styled(f"  {HEADINGS[name]}: {result.names[name]}", "dim"))
    for note in result.notes:
        console.print(f"  note: {note}")
    print_places(*((file.suffix.lstrip("."), file) for file in files))
    if not any(file.suffix == ".html" for file in files):
        console.print("  no page: jinja2 is not installed (pip install 'spade-deploy[export]')")


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
            finding.message,
            "yes" if finding.fixable else "",
        )
    left = len(report.findings) - SHOWN_FINDINGS
    if left > 0:
        table.add_row(f"... and {left} more")
    return table
