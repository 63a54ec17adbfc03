"""`spade validate`: compare an artifact's graphs with what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.console import print_next, print_places, print_report, stderr, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import CHECK, RunsFolder, command, needed
from spade_deploy.commands.progress import spinner
from spade_deploy.settings import setting
from spade_deploy.spec import Backend

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact
    from spade_deploy.validation.validate import ValidationReport


@dataclass(frozen=True)
class ValidateCall:
    """What the graphs are compared with, on which label maps, and what is done with the result."""

    labels: Path | None = setting(None, help="Label maps instead of the golden inputs.")
    instances: Path | None = setting(None, help="Their instance maps, paired by stem.")
    checkpoint: Path | None = setting(None, help="What was exported; found by its digest if left out.")
    backend: Backend = setting(Backend.AUTO, help="What runs the graphs.")
    report: Path | None = setting(None, help="Write the figures to this JSON file.")
    find_precision: bool = setting(False, help="Where an fp16 graph fails, find the layers that must stay fp32.")


@command("validate", panel=CHECK, requests=lambda: (ArtifactPlace, ValidateCall, RunsFolder))
def validate(which: ArtifactPlace, asked: ValidateCall, place: RunsFolder) -> None:
    """Compare every graph of an artifact with the untouched PyTorch module, or with its golden outputs."""
    from spade_deploy.files.atomic import write_json
    from spade_deploy.validation.validate import validate as compare

    opened = open_artifact(which.artifact, place)
    with spinner("validating", "validating {what}: {done} of {total}") as progress:
        found = compare(
            opened,
            labels=asked.labels,
            instances=asked.instances,
            checkpoint=asked.checkpoint,
            runs_dir=place.runs,
            backend=asked.backend,
            progress=progress,
        )
    print_report(found, by_class=True)
    if asked.report is not None:
        write_json(asked.report, found.to_json())
        print_places(("report", asked.report))
    if found.skipped:
        stderr().print(styled(f"{len(found.skipped)} label maps were skipped", "red"))
        for reason in found.skipped:
            stderr().print(f"  {in_flags(reason)}")
    if asked.find_precision and not found.passed:
        _find_precision(opened, found, asked, place)
    found.require_passed()
    if found.skipped:
        raise typer.Exit(1)


def _find_precision(opened: Artifact, found: ValidationReport, asked: ValidateCall, place: RunsFolder) -> None:
    with needed("export"):
        from spade_deploy.validation.precision_search import search_failures
    with spinner("searching") as progress:
        searches = search_failures(
            opened, found, asked.backend, checkpoint=asked.checkpoint, runs_dir=place.runs, progress=progress
        )
    for name, search in searches.items():
        stdout().print(f"{name}: {search}")
        print_next(f"spade export --fp16 {search.flags}")
