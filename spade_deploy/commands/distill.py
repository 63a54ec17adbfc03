"""`spade distill`: train a smaller generator to make the images of a larger one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.config_file import ConfigCommand, ConfigFile
from spade_deploy.commands.console import note, stdout, styled
from spade_deploy.commands.options import MAIN, RunsFolder, command, needed
from spade_deploy.commands.tables import Cell, print_table
from spade_deploy.commands.train import TrainCall, is_only_told, run_session, train_on_ray

if TYPE_CHECKING:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.distillation.request import DistillRequest
    from spade_deploy.training.distillation.widths import WidthTable


def _requests() -> tuple[type, ...]:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.distillation.request import DistillRequest

    return DistillRequest, ConfigFile, TrainCall, RunsFolder, RayTraining


@command("distill", panel=MAIN, requests=_requests, needs="train", kind=ConfigCommand)
def distill(asked: DistillRequest, file: ConfigFile, call: TrainCall, place: RunsFolder, cluster: RayTraining) -> None:
    """Train a student: a smaller generator that makes its teacher's images."""
    from spade_deploy.training import session

    runs = place.runs
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
    return replace(asked, base_channels=chosen.base_channels, hidden_channels=chosen.hidden_channels, mac_budget=None)


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
