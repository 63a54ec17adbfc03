"""What all commands print: errors, notes, the places of results and the next command to type.

rich is imported where it is used: a command that prints one line should not pay for tables.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.flags import in_flags
from spade_deploy.errors import SpadeError
from spade_deploy.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderHook
    from rich.text import Text


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
