"""`spade inspect` and `spade doctor`: tell what a file is, and what is installed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from spade_deploy.commands import output
from spade_deploy.commands.console import line, print_hanging, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.import_generator import import_generator
from spade_deploy.commands.options import CHECK, command
from spade_deploy.commands.tables import print_table
from spade_deploy.printable import one_line
from spade_deploy.settings import setting


@dataclass(frozen=True)
class InspectRequest:
    """What is looked at."""

    path: Path = setting(help="An artifact, an engine, a checkpoint or a run.", argument=True)
    with_times: bool = setting(False, help="Run an engine on its GPU and print the time of each layer.", flag="time")


@command("inspect", panel=CHECK, requests=lambda: (InspectRequest,))
def inspect(asked: InspectRequest) -> None:
    """Describe a run, a checkpoint, an artifact or an engine."""
    from spade_deploy.inspection.describe import inspect_path

    found = inspect_path(asked.path, with_times=asked.with_times)
    of_import: dict[str, str] = import_generator.flags  # guesses are changed by a new import
    facts = [(key, one_line(in_flags(value, of_import))) for key, value in found.rows]
    tables = {part.title: [dict(zip(part.columns, row, strict=True)) for row in part.rows] for part in found.tables}
    output.report({"path": asked.path, "kind": found.title, "facts": dict(facts), "tables": tables})
    out = stdout()
    out.print(styled(found.title, "italic"))
    width = max((len(key) for key, _ in facts), default=0)
    for key, value in facts:
        print_hanging(line(" ", styled(f"{key:<{width}}", "dim"), "  "), value)
    for part in found.tables:
        out.print()
        rows = [[one_line(cell) for cell in row] for row in part.rows]
        print_table(part.columns, rows, left=range(len(part.columns)), title=part.title)


@command("doctor", panel=CHECK, requests=lambda: ())
def doctor() -> None:
    """Show what is installed, whether it loads, and how to install what is missing."""
    from spade_deploy.inspection.doctor import Status, diagnose

    marks = {
        Status.GOOD: styled("ok", "green"),
        Status.MISSING: styled("--", "yellow"),
        Status.PROBLEM: styled("!!", "red"),
    }
    checks = diagnose()
    output.report({"checks": checks})
    width = max(len(check.name) for check in checks)
    for check in checks:
        print_hanging(line(" ", marks[check.status], f"  {check.name:<{width}}  "), check.value)
        if check.advice:  # on a line of its own, which the terminal wraps: a command can be copied as a whole
            stdout().print(line("       ", styled(check.advice, "dim")), soft_wrap=True)
    if any(check.status is Status.PROBLEM for check in checks):
        raise typer.Exit(1)
