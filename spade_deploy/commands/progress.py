"""How the commands show the progress of a job: bars and spinners on a terminal, plain lines in a file.

rich is imported where it is used: a command that prints one line should not pay for tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spade_deploy.commands import console, output
from spade_deploy.commands.console import clock_time, line, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.printable import one_line
from spade_deploy.progress import NO_FIGURES, Figures, Progress, Silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, TaskID
    from rich.status import Status
    from rich.text import Text

SHORT_NAMES = {
    "adversarial": "G",
    "feature_matching": "FM",
    "l1": "L1",
    "perceptual": "VGG",
    "kl": "KL",
    "discriminator_real": "D real",
    "discriminator_fake": "fake",
}
"""Names of losses in the progress bar, which has one line; the log has their whole names."""

LINE_EVERY_S = 30.0
"""Seconds between two reports of a training whose progress goes to a file."""

LOG_WIDTH = 80
"""The longest line of such a report."""


class _Spinner(Silent):
    """Shows the current step beside a spinner."""

    def __init__(self, status: Status | None, counted: str) -> None:
        self._status = status
        self._counted = counted

    def step(self, what: str) -> None:
        output.log(what)
        if self._status is not None:
            self._status.update(styled(one_line(what), ""))

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        self.step(self._counted.format(what=what, done=done, total=total))


@contextmanager
def spinner(what: str, counted: str = "{what}: {done} of {total}") -> Iterator[Progress]:
    """A spinner on the terminal beside what is under way; `counted` says how a count is put into words."""
    out = console.stdout()
    if not console.is_live(out):
        yield _Spinner(None, counted)
        return
    with out.status(styled(what, "")) as status:
        yield _Spinner(status, counted)


class _StepBar(Silent):
    """Prints a line for each step, and shows a bar for what is counted within the step."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, count="")

    def step(self, what: str) -> None:
        self._bar.console.print(f"  {in_flags(what)}", style="dim")
        self._bar.reset(self._task, total=None, description=one_line(in_flags(what)), count="")

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        self._bar.update(self._task, total=total, completed=done, description=one_line(what), count=f"{done}/{total}")


@contextmanager
def step_bar() -> Iterator[Progress]:
    """A line for each step, and a bar for what is counted within it; the bar is gone when the job ends."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    out = console.stdout()
    described = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), described, BarColumn(), TextColumn("{task.fields[count]}"))
    with Bar(*columns, console=out, transient=True, disable=not console.is_live(out)) as bar:
        yield _StepBar(bar)


class _CountBar(Silent):
    """One bar, made when the first count says what is counted."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        rate = figures.per_second or 0.0
        if self._task is None:
            self._task = self._bar.add_task(what, total=total, rate=rate)
        self._bar.update(self._task, completed=done, rate=rate)


@contextmanager
def count_bar() -> Iterator[Progress]:
    """A bar of how many of all files are done; it disappears when the job ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    err = console.stderr()
    with Bar(*columns, console=err, transient=True, disable=not console.is_live(err)) as bar:
        yield _CountBar(bar)


class _ImageBar(_CountBar):
    """The bar of `spade infer`; its one step says which runtime runs, its notes why that one."""

    def note(self, text: str) -> None:
        self._bar.console.print(f"  {one_line(in_flags(text))}", style="dim")

    def step(self, what: str) -> None:
        begin, with_, runtime = what.rpartition(" with ")
        console.stdout().print(line(one_line(begin + with_), styled(one_line(runtime), "bold")))


@contextmanager
def image_bar() -> Iterator[Progress]:
    """A bar with the number of images done, images a second and the time that is left."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s, left"),
        TimeRemainingColumn(),
    )
    err = console.stderr()
    with Bar(*columns, console=err, disable=not console.is_live(err)) as bar:
        yield _ImageBar(bar)


class _Training(Silent):
    """The progress of a training, whether in a file or on a terminal: it computes the time that is left."""

    def __init__(self, out: Console, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def step(self, what: str) -> None:
        console.stdout().print(f"  {what}", style="dim")

    def note(self, text: str) -> None:
        self._out.print(f"note: {in_flags(text)}")

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        if figures.seconds_each is None:  # the demo counts other things, too, before it trains
            return
        now = self._clock()
        self._first = self._first or (done, now)
        self._show(done, total, figures, now)

    def _show(self, step: int, steps: int, figures: Figures, now: float) -> None:
        raise NotImplementedError

    def _left(self, step: int, steps: int, figures: Figures, now: float) -> str:
        """The time that is left at the pace so far, checkpoints and metrics included; the first step does not count."""
        first_step, first_s = self._first or (step, now)
        done = step - first_step
        pace = (now - first_s) / done if done else figures.seconds_each or 0.0
        return clock_time(pace * (steps - step))


class _TrainingLines(_Training):
    """A report on the first and the last step, and one every LINE_EVERY_S seconds, in a file.

    It has a line for time and speed, one for losses, and one for metrics. Each begins with the step, so that it says
    all by itself when it is searched for, and those that are longer than LOG_WIDTH become two.
    """

    _last_line = -math.inf

    def _show(self, step: int, steps: int, figures: Figures, now: float) -> None:
        if step == steps or now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            begin = f"step {step}/{steps}  "
            left = f"left {self._left(step, steps, figures, now)}"
            for parts in ((left, *_speeds(figures)), _losses(figures), _metrics(figures)):
                for text in _filled(parts, LOG_WIDTH - len(begin)):
                    self._out.print(begin + text)


class _TrainingBar(_Training):
    """A bar, and lines of figures below it that break between figures only, drawn anew with every step."""

    def __init__(self, live: Live, bar: Bar, below: Text, clock: Callable[[], float]) -> None:
        super().__init__(live.console, clock)
        self._bar = bar
        self._below = below
        self._task: TaskID | None = None

    def _show(self, step: int, steps: int, figures: Figures, now: float) -> None:
        left, speeds = self._left(step, steps, figures, now), "  ".join(_speeds(figures))
        if self._task is None:
            self._task = self._bar.add_task("", total=steps, completed=step - 1, left=left, speeds=speeds)
        self._bar.update(self._task, completed=step, left=left, speeds=speeds)
        width = self._out.width
        self._below.plain = "\n".join((*_filled(_losses(figures), width), *_filled(_metrics(figures), width)))


@contextmanager
def training_bar(clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Steps, the time that is left, speed and memory; losses and the last metrics below. In a file: plain lines."""
    out = console.stderr()
    if not console.is_live(out):
        yield _TrainingLines(out, clock)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[left]} left"),
        TextColumn("{task.fields[speeds]}"),
    )
    bar = Bar(*columns, console=out, auto_refresh=False)
    below = Text(no_wrap=True, overflow="ellipsis", style="dim")
    with Live(Group(bar, below), console=out, refresh_per_second=4) as live:
        yield _TrainingBar(live, bar, below, clock)


def _speeds(figures: Figures) -> tuple[str, ...]:
    memory = (f"{figures.memory_bytes / 1e9:.1f} GB",) if figures.memory_bytes else ()
    return f"{figures.seconds_each or 0.0:.2f} s/step", f"{_short(figures.per_second or 0.0)} samples/s", *memory


def _losses(figures: Figures) -> tuple[str, ...]:
    return tuple(f"{SHORT_NAMES.get(name, name)} {value:.2f}" for name, value in figures.losses.items())


def _metrics(figures: Figures) -> tuple[str, ...]:
    return tuple(f"{name.replace('_', ' ')} {_short(value)}" for name, value in figures.metrics.items())


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
