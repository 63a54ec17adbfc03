"""`spade distill`: train a smaller generator to make the images of a larger one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.config_file import ConfigCommand, ConfigFile
from spade_deploy.commands.console import note, stdout, styled
from spade_deploy.commands.options import MAIN, RunsFolder, command, needed
from spade_deploy.commands.progress import count_bar
from spade_deploy.commands.tables import Cell, print_table
from spade_deploy.commands.train import TrainCall, is_only_told, run_session, train_on_ray
from spade_deploy.errors import ConfigError
from spade_deploy.settings import as_typed

if TYPE_CHECKING:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.distillation.request import DistillRequest
    from spade_deploy.training.distillation.search_record import WidthSearch
    from spade_deploy.training.distillation.widths import WidthTable

SHOWN_TRIED = 10
"""How many students of a search are printed; the run's width_search.json has all."""


def _requests() -> tuple[type, ...]:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.distillation.request import DistillRequest

    return DistillRequest, ConfigFile, TrainCall, RunsFolder, RayTraining


@command("distill", panel=MAIN, requests=_requests, needs="train", kind=ConfigCommand)
def distill(asked: DistillRequest, file: ConfigFile, call: TrainCall, place: RunsFolder, cluster: RayTraining) -> None:
    """Train a student: a smaller generator that makes its teacher's images."""
    from spade_deploy.training import session

    runs = place.runs
    if cluster.ray is not None and asked.search_widths:
        raise ConfigError(
            "`search_widths` contradicts `ray`: the search runs in one process",
            hint="search with `estimate` and without `ray`; then give the `level_channels` and `level_hidden` found",
        )
    if asked.mac_budget is not None and not session.goes_on(runs, call.name, call.resume):
        asked = _with_chosen_widths(asked, runs, is_told=not file.print_config)
    if is_only_told(asked, file, call, runs, distill.settings):
        return
    if cluster.ray is not None:
        settings = [option for option in distill.settings if option.field != "teacher"]
        with needed("ray"):
            train_on_ray(asked, call, runs, cluster, ("distill", str(asked.teacher)), settings)
        return
    run_session(asked, call, runs)


def _with_chosen_widths(asked: DistillRequest, runs: Path, *, is_told: bool) -> DistillRequest:
    """The request with the widths that its budget of multiply-adds allows; the table they are from is printed."""
    from spade_deploy.training.distillation.widths import choose_widths

    table = choose_widths(asked, runs)
    if is_told:
        print_widths(table)
    chosen = table.chosen
    plain = replace(
        asked,
        base_channels=chosen.base_channels,
        hidden_channels=chosen.hidden_channels,
        mac_budget=None,
        search_widths=False,
    )
    return _with_searched_widths(plain, table.budget, runs, is_told=is_told) if asked.search_widths else plain


def _with_searched_widths(asked: DistillRequest, budget: float, runs: Path, *, is_told: bool) -> DistillRequest:
    """The request with the width of each level that a search finds; asked: that of the student it begins with."""
    from spade_deploy.training.distillation.resolve import student_setup
    from spade_deploy.training.distillation.teacher import load_teacher
    from spade_deploy.training.distillation.width_search import search_widths

    setup, _ = student_setup(asked, runs, downloads=False)
    assert setup.train.distill is not None  # student_setup
    teacher = load_teacher(setup.train.distill.teacher, runs)
    with count_bar() as progress:
        found = search_widths(setup, teacher, budget, asked.search_steps, progress)
    if is_told:
        print_search(found)
    chosen = found.chosen
    return replace(
        asked,
        base_channels=None,
        hidden_channels=None,
        level_channels=chosen.level_channels,
        level_hidden=chosen.level_hidden,
        searched=found,
    )


def print_search(found: WidthSearch) -> None:
    """Print the best students that a search compared, and the one whose levels are all narrowed alike."""
    rows: list[list[Cell]] = []
    for place, row in enumerate(found.rows):
        if place >= SHOWN_TRIED and not row.is_uniform:
            continue
        marks = [mark for mark, there in (("chosen", not place), ("narrowed alike", row.is_uniform)) if there]
        cells = [
            as_typed(row.level_channels),
            as_typed(row.level_hidden),
            f"{row.lookup_macs / 1e9:.3g}",
            f"{row.dense_macs / 1e9:.3g}",
            f"{row.parameters / 1e6:.2f} M",
            f"{row.distance:.4f}",
        ]
        rows.append([*(styled(cell, "bold" if not place else "") for cell in cells), ", ".join(marks)])
    headings = ("channels", "hidden", "GMAC lookup", "dense", "parameters", "L1", "")
    what = f"{len(found.rows)} students with a width for each level, L1 to the teacher on {found.judged_maps} maps"
    print_table(headings, rows, left=(0, 1, 6), title=what)
    note(f"this is after {found.steps} steps of shared weights: it compares widths, and is no measure of the student")
    stdout().print("")


def print_widths(table: WidthTable) -> None:
    """Print the students that were compared, and which one was chosen."""
    from spade_deploy.training.distillation.widths import giga

    rows: list[list[Cell]] = []
    for row in table.rows:
        mark = "chosen" if row is table.chosen else "" if row.lookup_macs <= table.budget else "over the budget"
        cells = [
            str(row.base_channels),
            "-" if row.hidden_channels is None else str(row.hidden_channels),
            f"{row.lookup_macs / 1e9:.3g}",
            f"{row.dense_macs / 1e9:.3g}",
            f"{row.parameters / 1e6:.2f} M",
        ]
        rows.append([*(styled(cell, "bold" if mark == "chosen" else "") for cell in cells), mark])
    what = f"mean of {table.maps} label maps, budget {giga(table.budget)}"
    print_table(("base", "hidden", "GMAC lookup", "dense", "parameters", ""), rows, left=(5,), title=what)
    if table.chosen is table.rows[0]:
        note("the most expensive student of the table is within the budget: it may be as wide as its teacher")
    stdout().print("")
