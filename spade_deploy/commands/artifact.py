"""The artifact that several commands work on: its argument, and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.options import RunsFolder
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact


@dataclass(frozen=True)
class ArtifactPlace:
    """Which artifact a command works on."""

    artifact: Path | None = setting(None, help="An artifact or a run; default: the newest.", argument=True)


def open_artifact(path: Path | None, place: RunsFolder) -> Artifact:
    """The artifact at `path`, or the newest of the runs. Raises NotFoundError, ArtifactError."""
    from spade_deploy.artifact import Artifact
    from spade_deploy.runs.folders import resolve_artifact

    return Artifact.open(resolve_artifact(path, place.runs))
