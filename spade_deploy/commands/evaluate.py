"""`spade eval`: judge models by their images of held-out label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands import output
from spade_deploy.commands.config_file import ConfigCommand, ConfigFile, as_yaml
from spade_deploy.commands.console import errors, note, print_next, print_places, print_settings, stdout, styled
from spade_deploy.commands.options import CHECK, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.commands.tables import Cell, print_table
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
        print_settings(as_yaml(evaluate.settings, asked))
        return
    with locked(report.out, "evaluating"):
        with step_bar() as progress:
            found = evaluation.evaluate(asked, runs_dir=place.runs, progress=progress)
        output.report(found)
        print_evaluation(found, evaluation.write_report(found, report.out))
    if asked.first_judge is None:
        stdout().print("  --train-segmenter judges what the images show, --extractor FILE.onnx how real they look")
        print_next("spade", *output.typed_words(), "--train-segmenter")
    if found.all_skipped:
        errors().print(styled(f"{len(found.all_skipped)} files could not be used and were skipped", "red"))
        for reason in found.all_skipped[:SHOWN_SKIPPED]:
            errors().print(f"  {reason}")
        raise typer.Exit(1)


def print_evaluation(result: EvalResult, files: Sequence[Path]) -> None:
    """Print a row of figures for each model, those of real photos below them, the notes, the files."""
    from spade_deploy.evaluation.page import (
        heading,
        lines,
        seed_lines,
        seed_verdict_lines,
        short_name,
        verdict_lines,
    )

    console, columns = stdout(), result.measured()
    data = result.settings["data"]
    console.print(
        f"{result.samples} samples of {data['preset']}, {result.settings['split']} split,"
        f" {result.settings['height']} x {result.settings['width']}",
        markup=False,
    )
    rows: list[tuple[Cell, ...]] = []
    for row in lines(result):
        # The intervals are in the report: a terminal of 80 columns has no room for them.
        shown = (styled(cell.short, "green" if cell.is_best else "") for cell in row.cells)
        rows.append((styled(one_line(row.name), "dim" if row.is_reference else "bold"), str(row.images), *shown))
    print_table(("", "images", *(heading(result, column) for column in columns)), rows)
    for name, reason, is_best in verdict_lines(result):
        console.print(styled(f"  {name}: {one_line(reason)}", "green" if is_best else ""))
    for name, seeds, cells in seed_lines(result):
        told = ", ".join(
            f"{short_name(result, column)} {cell}" for column, cell in zip(columns, cells, strict=True) if cell
        )
        console.print(f"  {one_line(name)}, random seeds {seeds}, ± the standard deviation: {told}")
    for name, reason, is_best in seed_verdict_lines(result):
        console.print(styled(f"  {name}: {one_line(reason)}", "green" if is_best else ""))
    for name in columns:
        if name not in ("l1", "psnr"):
            console.print(styled(f"  {short_name(result, name)}: {result.names[name]}", "dim"))
    for text in result.notes:
        note(text)
    print_places(*((file.suffix.lstrip("."), file) for file in files))
    if not any(file.suffix == ".html" for file in files):
        console.print("  no page: jinja2 is not installed (pip install 'spade-deploy[export]')")
