"""What all commands print: errors, notes, the places of results and the next command to type.

rich is imported where it is used: a command that prints one line should not pay for tables.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spade_deploy.commands import output
from spade_deploy.commands.flags import in_flags
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderHook
    from rich.text import Text


NARROWEST, WIDEST = 20, 2000
"""A number of columns or lines outside these limits, such as 0, is not believed to be that of a terminal."""


class _Notes(logging.Handler):
    """Prints each warning of the package as a note."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_notes() -> None:
    """From now on the package's warnings are printed as notes."""
    logger = logging.getLogger("spade_deploy")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())


def stdout() -> Console:
    """The console for results: stderr where stdout belongs to a JSON document; silent with `quiet`."""
    return _console(to_stderr=output.is_json(), quiet=output.is_quiet())


def stderr() -> Console:
    """The console for progress and notes; silent with `quiet`."""
    return _console(to_stderr=True, quiet=output.is_quiet())


def errors() -> Console:
    """The console for errors, and for what has failed: it is never silent."""
    return _console(to_stderr=True, quiet=False)


def stdout_of_help() -> Console:
    """The console for what was asked for with an option of its own, such as `--help`: it is never silent."""
    return _console(to_stderr=output.is_json(), quiet=False)


def is_live(console: Console) -> bool:
    """Whether bars can be drawn anew there: on a terminal, and not in a file, even if colours are forced."""
    return console.is_terminal and console.is_interactive and not console.is_dumb_terminal


def _console(*, to_stderr: bool, quiet: bool) -> Console:
    """A console that prints text as it is: styles are `Text`, never markup, as a file may be called [/red].png.

    In a file or a pipe nothing is wrapped or cut, whatever COLUMNS says, and there are no bars. NO_COLOR leaves
    colours out, FORCE_COLOR puts them into a file, too.
    """
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding is no reason to fail
    is_file = not stream.isatty()
    console = _logged(Console)(
        stderr=to_stderr,
        quiet=quiet,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=is_file,
        width=WIDEST if is_file else None,
        force_interactive=False if is_file else None,
    )
    console.push_render_hook(_cleaner())
    return console


@functools.cache
def _logged(kind: type[Console]) -> type[Console]:
    """A console that writes all that it prints to the log file, too, if there is one."""
    from rich.control import Control

    class Logged(kind):  # type: ignore[valid-type,misc]
        def print(self, *objects: Any, **options: Any) -> None:
            if output.has_log() and any(not isinstance(one, Control) for one in objects):
                copy = kind(
                    file=io.StringIO(), width=WIDEST, highlight=False, markup=False, emoji=False, color_system=None
                )
                copy.print(*objects, **{**options, "soft_wrap": True})
                output.log(printable(copy.file.getvalue()))  # type: ignore[attr-defined]
            super().print(*objects, **options)

    return Logged


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
    console, message = errors(), _with_what_was_typed(in_flags(error.message))
    hint = in_flags(error.next_step)
    if isinstance(error, ConfigError) and error.hint is None:
        hint += f"; `{' '.join(['spade', *output.running_command().split()])} --help` tells what each option takes"
    output.fail(type(error).__name__, message, hint)
    console.print(line(styled("error:", "bold red"), f" {message}"), soft_wrap=True)
    console.print(line(styled("next:", "bold"), f" {hint}"), soft_wrap=True)


def _with_what_was_typed(message: str) -> str:
    """A message about the value of a flag that was not typed says so: a default or a preset decided it."""
    flag = re.match(r"(--[a-z0-9-]+): ", message)
    if flag is None or output.was_typed(flag[1]):
        return message
    return f"{flag[1]} (not given, so it has its default): {message[flag.end() :]}"


def note(text: str) -> None:
    """Print a note on stderr. Fields are named by the flags of the command that runs."""
    said = in_flags(text)
    output.add_note(said)
    stderr().print(f"  note: {said}", soft_wrap=True)


def print_places(*places: tuple[str, Path]) -> None:
    """Print where results are, one on a line."""
    width = max(len(what) for what, _ in places)
    for what, path in places:
        output.add_file(what, path)
        stdout().print(line(f"  {what:<{width}}  ", styled(one_line(path), "bold")), soft_wrap=True)


def command_line(*words: str | Path) -> str:
    """A command line as one types it: words with blanks or special characters are quoted for the shell."""
    return shlex.join(str(word) for word in words)


def print_next(*words: str | Path) -> None:
    """Print the next command to type: its words, or the whole line at once. It must run as printed, where it is."""
    command = str(words[0]) if len(words) == 1 else command_line(*words)
    output.add_next(command)
    stdout().print(line("next: ", styled(one_line(command), "bold cyan")), soft_wrap=True)


def free_folder(name: str) -> Path:
    """A folder of that name in the current one, which does not exist yet: photos, photos-2, ..."""
    places = (Path(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def print_hanging(first: Text, value: str) -> None:
    """Print a value behind `first`; where it is longer than the terminal's line, its lines begin below each other."""
    import textwrap

    console = stdout()
    room = max(console.width - first.cell_len, 16)
    lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False) if len(value) > room else [value]
    console.print(line(first, lines[0]), soft_wrap=True)
    for more in lines[1:]:
        console.print(" " * first.cell_len + more, soft_wrap=True)


def print_settings(text: str) -> None:
    """Print settings as YAML, whatever `quiet` says; in a JSON document they are the result."""
    if output.is_json():
        import yaml

        output.report({"settings": yaml.safe_load(text)})
    else:
        stdout_of_help().print(text, end="", soft_wrap=True)


def duration(seconds: float) -> str:
    """75.2 -> '75.2 s', 150 -> '2 min 30 s'."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def clock_time(seconds: float) -> str:
    """45 -> '0:45', 3725 -> '1:02:05', 90000 -> '1 d 1 h'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
