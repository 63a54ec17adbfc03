"""`spade runs`: list the runs of a folder, and compare some of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spade_deploy.commands import output
from spade_deploy.commands.console import errors, print_next, stdout, styled
from spade_deploy.commands.options import CHECK, CommandGroup, RunsFolder, command
from spade_deploy.commands.tables import print_table
from spade_deploy.printable import one_line
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.inspection.run_table import Comparison, RunGroup, RunSummary


@dataclass(frozen=True)
class CompareRequest:
    """Which runs are compared."""

    names: tuple[Path, ...] = setting(
        help="Two runs or more: names of folders in the folder of runs, or paths.", argument=True, metavar="RUN"
    )


@command("list", requests=lambda: (RunsFolder,))
def list_all(place: RunsFolder) -> None:
    """List the runs, newest last, with their steps, settings and last metrics."""
    from spade_deploy.inspection import run_table

    found, problems = run_table.list_runs(place.runs)
    groups = run_table.group_runs(found)
    averaged = [asdict(group) for group in groups]
    output.report({"runs": [run.to_json() for run in found], "seeds_averaged": averaged, "problems": problems})
    _print_list(found)
    _print_groups(groups)
    if len(found) > 1:
        print_next("spade", "runs", "compare", found[-2].path, found[-1].path)
    for problem in problems:
        errors().print(styled(problem, "red"))
    if problems:
        raise typer.Exit(1)


@command("compare", requests=lambda: (CompareRequest, RunsFolder))
def compare(asked: CompareRequest, place: RunsFolder) -> None:
    """Compare runs: settings that differ, final losses and metrics, means over random seeds."""
    from spade_deploy.errors import ConfigError
    from spade_deploy.inspection import run_table

    paths = [name if name.is_dir() else place.runs / name for name in asked.names]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ConfigError(
            f"`names`: {', '.join(map(str, asked.names))}: two different runs or more are needed",
            hint="`spade runs` lists the runs",
        )
    found = run_table.compare([run_table.summarize(path) for path in paths])
    output.report(found.to_json())
    _print_comparison(found)


class _Runs(CommandGroup):
    """`spade runs` alone is `spade runs list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs = _Runs(
    name="runs",
    help="List the runs of a folder (alone: `spade runs list`), and compare some of them.",
    commands={"list": list_all, "compare": compare},
    rich_help_panel=CHECK,
    rich_markup_mode="rich",
)


def _print_list(found: list[RunSummary]) -> None:
    headings = ("run", "step", "generator", "size", "batch", "seed", "measured last", "date")
    rows = []
    for run in found:
        known = run.settings
        size = f"{known.get('generator.height')} x {known.get('generator.width')}"
        steps = str(run.step) if run.total_steps in (None, run.step) else f"{run.step}/{run.total_steps}"
        row = (
            one_line(run.name),
            steps if run.origin == "train" else "import",
            str(known.get("generator.architecture", "-")),
            size,
            _text(known.get("train.batch_size")),
            _text(run.seed),
            ", ".join(f"{name} {value:.4g}" for name, value in list(run.metrics.items())[:2]) or "-",
            time.strftime("%Y-%m-%d", time.localtime(run.created_unix_ns / 1e9)),
        )
        rows.append(row)
    print_table(headings, rows, left=(0, 2, 3, 6, 7))


def _print_comparison(found: Comparison) -> None:
    headings = ("", *(one_line(run.name) for run in found.runs))

    def table_of(title: str, rows: dict[str, list[str]]) -> None:
        print_table(headings, [(name, *map(one_line, cells)) for name, cells in rows.items()], title=title)

    if found.settings:
        table_of("settings that differ", {n: [_text(cell) for cell in row] for n, row in found.settings.items()})
    else:
        stdout().print("all settings are the same")
    ends = {"step": [str(run.step) for run in found.runs]}
    ends["seconds per step"] = [_number(run.seconds) for run in found.runs]
    ends.update({f"{name} (loss)": [_number(cell) for cell in row] for name, row in found.losses.items()})
    ends.update({name: [_number(cell) for cell in row] for name, row in found.metrics.items()})
    if any(run.best is not None for run in found.runs):
        ends["best"] = ["-" if run.best is None else run.best.described for run in found.runs]
    table_of("at the end (losses: mean of the last tenth of the log)", ends)
    _print_groups(found.groups)


def _print_groups(groups: list[RunGroup] | tuple[RunGroup, ...]) -> None:
    """A line for each group of seeds: the mean and the deviation of what it ends with."""
    for group in groups:
        names, seeds = ", ".join(map(one_line, group.runs)), ", ".join(map(str, group.seeds))
        told = ", ".join(f"{name} {one.mean:.4g} ± {one.std:.2g}" for name, one in group.figures.items())
        stdout().print(f"{names} differ only in their random seed ({seeds}); mean ± deviation: {told or 'no log'}")


def _text(value: Any) -> str:
    from spade_deploy.runs.settings import as_text

    return as_text(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
