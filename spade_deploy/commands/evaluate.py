"""`spade eval`: judge models by their images of held-out label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands.config_file import ConfigCommand, ConfigFile, as_yaml
from spade_deploy.commands.console import note, print_next, print_places, stderr, stdout, styled
from spade_deploy.commands.options import CHECK, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.files.locks import locked
from spade_deploy.printable import one_line
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.evaluation import EvalResult
    from spade_deploy.evaluation.request import EvalRequest

SHOWN_SKIPPED = 20
"""How many of the files that were skipped are named; the report has all."""


@dataclass(frozen=True)
class ReportFolder:
    """Where the report goes."""

    out: Path = setting(Path("evaluation"), help="Folder for evaluation.json and evaluation.html.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.evaluation.request import EvalRequest

    return EvalRequest, ConfigFile, ReportFolder, RunsFolder


@command(
    "eval",
    panel=CHECK,
    requests=_requests,
    needs="train,export,cpu",
    flags={"best_by": "--best-by"},
    kind=ConfigCommand,
)
def evaluate(asked: EvalRequest, file: ConfigFile, report: ReportFolder, place: RunsFolder) -> None:
    """Judge models by their images of held-out label maps; several at once are compared in one report."""
    from spade_deploy import evaluation

    if file.print_config:
        typer.echo(as_yaml(evaluate.settings, asked), nl=False)
        return
    with locked(report.out, "evaluating"):
        with step_bar() as progress:
            found = evaluation.evaluate(asked, runs_dir=place.runs, progress=progress)
        print_evaluation(found, evaluation.write_report(found, report.out))
    if asked.extractor is None and asked.segmenter is None and not asked.train_segmenter:
        print_next("spade eval --train-segmenter   (what the images show), --extractor FILE.onnx (how real they look)")
    if found.all_skipped:
        stderr().print(styled(f"{len(found.all_skipped)} files could not be used and were skipped", "red"))
        for reason in found.all_skipped[:SHOWN_SKIPPED]:
            stderr().print(f"  {reason}")
        raise typer.Exit(1)


def print_evaluation(result: EvalResult, files: Sequence[Path]) -> None:
    """Print a row of figures for each model, those of real photos below them, the notes, the files."""
    from rich.table import Table

    from spade_deploy.evaluation.page import HEADINGS, heading, lines

    console, columns = stdout(), result.measured()
    data = result.settings["data"]
    console.print(
        f"{result.samples} samples of {data['preset']}, {result.settings['split']} split,"
        f" {result.settings['height']} x {result.settings['width']}",
        markup=False,
    )
    table = Table(box=None)
    table.add_column("")
    for name in ("images", *map(heading, columns)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in lines(result):
        # The deviation of the kernel distance is in the report: a terminal of 80 columns has no room for it.
        cells = (styled(cell.short, "green" if cell.is_best else "") for cell in row.cells)
        table.add_row(styled(one_line(row.name), "dim" if row.is_reference else ""), str(row.images), *cells)
    console.print(table)
    for name in columns:
        if name not in ("l1", "psnr"):
            console.print(styled(f"  {HEADINGS[name]}: {result.names[name]}", "dim"))
    for text in result.notes:
        note(text)
    print_places(*((file.suffix.lstrip("."), file) for file in files))
    if not any(file.suffix == ".html" for file in files):
        console.print("  no page: jinja2 is not installed (pip install 'spade-deploy[export]')")
