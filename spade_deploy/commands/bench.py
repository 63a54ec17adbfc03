"""`spade bench`: measure an artifact's graphs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.console import print_bench
from spade_deploy.commands.options import CHECK, RunsFolder, command
from spade_deploy.commands.progress import spinner
from spade_deploy.files.locks import locked
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.bench import BenchRequest


@dataclass(frozen=True)
class ResultPlace:
    """Where the result goes."""

    out: Path | None = setting(None, help="Folder of bench.json and bench.png; bench/ beside the artifact.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.bench.request import BenchRequest

    return ArtifactPlace, BenchRequest, ResultPlace, RunsFolder


@command("bench", panel=CHECK, requests=_requests)
def bench(which: ArtifactPlace, asked: BenchRequest, result: ResultPlace, place: RunsFolder) -> None:
    """Measure an artifact's graphs side by side: latency, images/s, memory, cold start. What is wrong has no figure."""
    from spade_deploy import bench as benching

    opened = open_artifact(which.artifact, place)
    folder = result.out or benching.default_folder(opened)
    plan = asked.plan(opened, place.runs)
    with locked(folder, "measuring"), spinner("measuring", "{what} {done} of {total}") as progress:
        found = benching.run_plan(opened, plan, progress)
        files = benching.write_result(found, folder)
    print_bench(found, files)
    found.require_right()
