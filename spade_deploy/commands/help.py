"""What `--help` prints: every option with its whole name and a short word for its value, at any width.

On a terminal the texts are wrapped at its width. In a file or a pipe each option is one line, so that grep finds it.
It is written here, since typer's boxes cut names on a narrow terminal and wrap in a pipe.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spade_deploy.commands.flags import in_flags
from spade_deploy.settings import as_typed

if TYPE_CHECKING:
    from rich.console import Console

    from spade_deploy.commands.options import RequestCommand
    from spade_deploy.commands.request_options import Option

LONGEST_CHOICES = 16
"""Choices of at most so many letters stand beside the flag, longer ones in the text."""
WIDEST_NAME = 30
"""The text of an option with a longer name begins on a line of its own."""
NARROW = 60
"""Below so many columns every text begins on a line of its own."""

Row = tuple[str, str, str]
"""The name of an option, the word for its value, its text."""


def help_of_command(command: RequestCommand, ctx: Any) -> str:
    """The help of a command that is made from requests."""
    arguments = [option for option in command.options if option.setting.argument]
    usage = f"{ctx.command_path} [OPTIONS]" + "".join(
        f" {option.flag}" if _is_required(option) else f" [{option.flag}]" for option in arguments
    )
    sections = [("Arguments", [_row(option, command.flags) for option in arguments])]
    options = [option for option in (*command.options, *command.output_options) if not option.setting.argument]
    for group in dict.fromkeys(["", *(option.setting.group for option in options)]):
        rows = [_row(option, command.flags) for option in options if option.setting.group == group]
        sections.append((group or "Options", rows))
    sections[-1][1].append(("-h, --help", "", "Show this message and stop."))
    return _page(usage, command.help or "", sections)


def help_of_group(group: Any, ctx: Any) -> str:
    """The help of `spade` itself or of a group of commands: its commands by their headings, then its options."""
    from rich.text import Text

    panels: dict[str, list[Row]] = {}
    for name in group.list_commands(ctx):
        made = group.get_command(ctx, name)
        heading = getattr(made, "rich_help_panel", None)
        text = (made.help or "").partition("\n\n")[0]
        panels.setdefault(heading if isinstance(heading, str) else "Commands", []).append((name, "", text))
    options = [
        (", ".join(sorted(param.opts, key=len)), "", _sentence(getattr(param, "help", None) or ""))
        for param in group.get_params(ctx)
        if not getattr(param, "hidden", False)
    ]
    text = Text.from_markup(group.help or "").plain
    return _page(f"{ctx.command_path} [OPTIONS] COMMAND [ARGS]...", text, [*panels.items(), ("Options", options)])


def _sentence(text: str) -> str:
    return "Show this message and stop." if text.startswith("Show this message") else text


def _is_required(option: Option) -> bool:
    import inspect

    return option.default is inspect.Parameter.empty


def _row(option: Option, flags: dict[str, str]) -> Row:
    known = option.setting
    name = option.flag + (f", --no-{option.flag.removeprefix('--')}" if known.negatable else "")
    word, choices = value_word(option)
    text = in_flags(known.help, flags)
    if choices:
        text += f" [{choices}]"
    if not known.argument and not option.is_switch and option.default not in (None, ()) and not _is_required(option):
        text += f" [default: {as_typed(option.default)}]"
    elif option.is_switch and known.negatable and option.default is True:
        text += " [default: on]"
    return name, word, text


def value_word(option: Option) -> tuple[str, str]:
    """The word for an option's value, and its choices where they are too long for it."""
    known, kind = option.setting, option.value_kind
    if option.is_switch or known.argument:
        return "", ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = "|".join(kind)
        return (choices, "") if len(choices) <= LONGEST_CHOICES else (known.metavar or "NAME", choices)
    if known.metavar:
        return known.metavar, ""
    if known.parse is not None:
        return "SIZE" if "size" in option.key else "TEXT", ""
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT"), ""


def _page(usage: str, text: str, sections: Iterable[tuple[str, list[Row]]]) -> str:
    """The whole page, with styles if stdout is a terminal."""
    from spade_deploy.commands.console import stdout_of_help

    console = stdout_of_help()
    with console.capture() as captured:
        console.print(_styled("Usage: ", "bold"), usage, sep="", soft_wrap=True)
        for paragraph in text.split("\n\n"):
            console.print()
            for line in _wrapped(" ".join(paragraph.split()), _width(console)):
                console.print(line, soft_wrap=True)
        for heading, rows in sections:
            if rows:
                console.print()
                console.print(_styled(f"{heading}:", "bold"), soft_wrap=True)
                for row in _lines(rows, console):
                    console.print(row, soft_wrap=True)
    return captured.get().rstrip("\n")


def _lines(rows: list[Row], console: Console) -> Iterator[Any]:
    from rich.text import Text

    width = _width(console)
    labels = [f"{name} {word}".rstrip() for name, word, _ in rows]
    fitting = [len(label) for label in labels if len(label) <= WIDEST_NAME]
    column = 2 + (4 if width is not None and width < NARROW else max(fitting, default=8) + 2)
    for label, (name, word, text) in zip(labels, rows, strict=True):
        lines = _wrapped(text, None if width is None else max(width - column, 16))
        first = Text.assemble("  ", (name, "cyan"), f" {word}".rstrip())
        if 2 + len(label) + 2 <= column or width is None:
            gap = " " * max(column - 2 - len(label), 2)
            first.append(gap + lines[0] if lines else "")
            lines = lines[1:]
        yield first
        for line in lines:
            yield Text(" " * column + line)


def _width(console: Console) -> int | None:
    """The width of the terminal; None in a file, where nothing is wrapped."""
    return min(console.width, 120) if console.file.isatty() else None


def _wrapped(text: str, width: int | None) -> list[str]:
    # A name such as --print-config is never broken.
    if width is None:
        return [text] if text else []
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def fitted(text: str) -> list[str]:
    """A text in lines that fit the terminal; one line in a file."""
    from spade_deploy.commands.console import stdout_of_help

    return _wrapped(text, _width(stdout_of_help()))


def _styled(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style=style)
