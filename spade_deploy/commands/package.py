"""`spade package`: make of an artifact the folder that another server takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.console import note, print_places, stdout
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import step_bar

if TYPE_CHECKING:
    from spade_deploy.packaging.request import PackageRequest


def _requests() -> tuple[type, ...]:
    from spade_deploy.packaging.request import PackageRequest

    return ArtifactPlace, PackageRequest, RunsFolder


@command("package", panel=MAIN, requests=_requests)
def package(which: ArtifactPlace, asked: PackageRequest, place: RunsFolder) -> None:
    """Make a model repository for the Triton Inference Server of an artifact."""
    from spade_deploy.packaging.repository import write_repository

    opened = open_artifact(which.artifact, place)
    with step_bar() as progress:
        made = write_repository(opened, asked, progress)
    output.report(made)
    out = stdout()
    print_places(("model repository", made.path))
    out.print(f"  {made.bytes / 1e6:.1f} MB; clients call {', '.join(made.models)}", soft_wrap=True)
    out.print("  docs/triton.md says how Triton is started with it, and how a client asks it", soft_wrap=True)
    for text in made.left_out:
        note(text)
