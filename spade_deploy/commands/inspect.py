"""`spade inspect` and `spade doctor`: tell what a file is, and what is installed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from spade_deploy.commands.console import stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.import_generator import import_generator
from spade_deploy.commands.options import CHECK, command
from spade_deploy.printable import one_line
from spade_deploy.settings import setting


@dataclass(frozen=True)
class InspectRequest:
    """What is looked at."""

    path: Path = setting(help="An artifact, an engine, a checkpoint or a run.", argument=True)
    with_times: bool = setting(False, help="Run an engine on its GPU and print the time of each layer.", flag="time")


@command("inspect", panel=CHECK, requests=lambda: (InspectRequest,))
def inspect(asked: InspectRequest) -> None:
    """Tell what a checkpoint, an artifact or an engine is."""
    from rich.table import Table

    from spade_deploy.inspection.describe import inspect_path

    found = inspect_path(asked.path, with_times=asked.with_times)
    of_import: dict[str, str] = import_generator.flags  # guesses are changed by a new import
    out = stdout()
    table = Table(title=found.title, title_justify="left", show_header=False, box=None)
    for key, value in found.rows:
        table.add_row(styled(key, "dim"), one_line(in_flags(value, of_import)))
    out.print(table)
    for part in found.tables:
        table = Table(title=part.title, title_justify="left", box=None)
        for column in part.columns:
            table.add_column(column)
        for row in part.rows:
            table.add_row(*(one_line(cell) for cell in row))
        out.print()
        out.print(table)


@command("doctor", panel=CHECK, requests=lambda: ())
def doctor() -> None:
    """Tell what is installed, what really loads, and what to install for what is missing."""
    from rich.table import Table

    from spade_deploy.inspection.doctor import Status, diagnose

    marks = {
        Status.GOOD: styled("ok", "green"),
        Status.MISSING: styled("--", "yellow"),
        Status.PROBLEM: styled("!!", "red"),
    }
    table = Table(box=None, show_header=False)
    checks = diagnose()
    for check in checks:
        table.add_row(marks[check.status], check.name, check.value, styled(check.advice, "dim"))
    stdout().print(table)
    if any(check.status is Status.PROBLEM for check in checks):
        raise typer.Exit(1)
