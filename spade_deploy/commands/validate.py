"""`spade validate`: compare an artifact's graphs with what was trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands import output
from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.console import errors, print_next, print_places, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import CHECK, RunsFolder, command, needed
from spade_deploy.commands.progress import spinner
from spade_deploy.commands.tables import print_report
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact
    from spade_deploy.validation.report import ValidationReport
    from spade_deploy.validation.request import ValidationRequest


@dataclass(frozen=True)
class ValidateCall:
    """What is done with the result."""

    report: Path | None = setting(None, help="Write the figures to this JSON file.")
    by_class: bool = setting(False, help="Print the figures of every class, not only of the five worst.")
    find_precision: bool = setting(False, help="If an fp16 graph fails, find the layers that must stay fp32.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.validation.request import ValidationRequest

    return ArtifactPlace, ValidationRequest, ValidateCall, RunsFolder


@command("validate", panel=CHECK, requests=_requests)
def validate(which: ArtifactPlace, asked: ValidationRequest, then: ValidateCall, place: RunsFolder) -> None:
    """Compare every graph of an artifact with the untouched PyTorch module, or with its golden outputs."""
    from spade_deploy.files.atomic import write_json
    from spade_deploy.validation.validate import validate as compare

    opened, asked = open_artifact(which.artifact, place), replace(asked, runs_dir=place.runs)
    with spinner("validating", "validating {what}: {done} of {total}") as progress:
        found = compare(opened, asked, progress)
    output.report(found)
    print_report(found, by_class=then.by_class)
    if then.report is not None:
        write_json(then.report, found.to_json())
        print_places(("report", then.report))
    if found.skipped:
        errors().print(styled(f"{len(found.skipped)} label maps were skipped", "red"))
        for reason in found.skipped:
            errors().print(f"  {in_flags(reason)}")
    if then.find_precision and not found.passed:
        _find_precision(opened, found, asked)
    found.require_passed()
    if found.skipped:
        raise typer.Exit(1)


def _find_precision(opened: Artifact, found: ValidationReport, request: ValidationRequest) -> None:
    with needed("export"):
        from spade_deploy.validation.precision_search import search_failures
    with spinner("searching") as progress:
        searches = search_failures(opened, found, request, progress=progress)
    for name, search in searches.items():
        stdout().print(f"{name}: {search}")
        run = opened.path.parent
        print_next(
            "spade", "export", *([run] if (run / "checkpoints").is_dir() else ()), "--fp16", *search.flags.split()
        )
