"""Write docs/options.md, the table of every option of the commands that are made from request dataclasses.

usage: python scripts/write_options.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from spade_deploy.cli import COMMANDS
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import RequestCommand
from spade_deploy.commands.output import OutputOptions
from spade_deploy.commands.request_options import Option, options_of
from spade_deploy.settings import as_typed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"

HEAD = """# Options

This page has every option of every command, with its type, default and help. The defaults of `spade train` are the
paper's; a preset may have others ([training.md](training.md#presets)), and `spade train --print-config` prints those
that a run would have. `python scripts/write_options.py` makes the page from the dataclasses that the commands are made
of: a help text or a default is changed there.

In a file for `--config` an option has its name without dashes in front and with underscores in it: `--batch-size 4` is
`batch_size: 4`, `--no-flip` is `flip: false`, and `null` is an option that is not given. A flag wins over the file.
"""

EVERY = """## Every command

`-h` and `--help` print the options of a command. [output.md](output.md) tells what is printed where.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, EVERY, "\n".join(rows(list(options_of(OutputOptions)), {})) + "\n"]
    for title, command in commands():
        parts.append(f"## {title}\n\n{command.help}\n")
        if command.options:
            parts.append("\n".join(table(command)) + "\n")
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, RequestCommand]]:
    """The words that start each command, and the command; those of groups, too."""
    for made in COMMANDS:
        if isinstance(made, RequestCommand):
            yield f"spade {made.name}", made
        elif isinstance(made, TyperGroup):
            for inner in made.commands.values():
                if isinstance(inner, RequestCommand):
                    yield f"spade {made.name} {inner.name}", inner


def table(command: RequestCommand) -> Iterator[str]:
    """A row for each option, group by group."""
    yield from rows(command.options, command.flags)


def rows(options: list[Option], flags: dict[str, str]) -> Iterator[str]:
    """A row for each of these options, group by group."""
    yield "| option | takes | default | |"
    yield "|---|---|---|---|"
    for group in dict.fromkeys(["", *(option.setting.group for option in options)]):
        members = [option for option in options if option.setting.group == group]
        if group and members:
            yield f"| **{group}** | | | |"
        for option in members:
            cells = (name_of(option), takes(option), default(option.usual), in_flags(option.setting.help, flags))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def name_of(option: Option) -> str:
    """The flag, and its opposite."""
    opposite = f", `--no-{option.flag.removeprefix('--')}`" if option.setting.negatable else ""
    return f"`{option.flag}`{opposite}"


def takes(option: Option) -> str:
    """The type and the range."""
    known = option.setting
    if option.is_switch:
        return ""
    low, high = (None if bound is None else f"{bound:,}" for bound in (known.least, known.most))
    bounds = f", {low}..{high}" if low and high else f", at least {low}" if low else f", at most {high}" if high else ""
    several = ", may be repeated" if option.is_list else ""
    return option.takes + bounds + several


def default(value: Any) -> str:
    """A default as it is typed; nothing for one that is not set."""
    return "" if value in (None, "", (), False) else f"`{as_typed(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
