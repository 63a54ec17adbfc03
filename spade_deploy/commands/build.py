"""`spade build`: compile an artifact's graphs into TensorRT engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.commands.tables import print_engines

if TYPE_CHECKING:
    from spade_deploy.engines.tensorrt.request import BuildRequest


def _requests() -> tuple[type, ...]:
    from spade_deploy.engines.tensorrt.request import BuildRequest

    return ArtifactPlace, BuildRequest, RunsFolder


@command("build", panel=MAIN, requests=_requests)
def build(which: ArtifactPlace, asked: BuildRequest, place: RunsFolder) -> None:
    """Compile an artifact's graphs into TensorRT engines, proved to have the precision asked for."""
    from spade_deploy.engines.tensorrt import build as building

    opened = open_artifact(which.artifact, place)
    with step_bar() as progress:
        found = building.build_until_interrupted(opened, asked, progress)
    output.report({"engines": found})
    print_engines(found)
