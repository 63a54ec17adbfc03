"""`spade bench`: measure an artifact's graphs side by side."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.artifact import ArtifactPlace, open_artifact
from spade_deploy.commands.console import stdout
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import CHECK, RunsFolder, command
from spade_deploy.commands.progress import spinner
from spade_deploy.commands.tables import Cell, print_bench, print_table
from spade_deploy.errors import ConfigError
from spade_deploy.fields import to_json
from spade_deploy.files.locks import locked
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact
    from spade_deploy.bench import BenchRequest
    from spade_deploy.tuning.tune import Tuned


@dataclass(frozen=True)
class TuneCall:
    """Whether something else is measured: what `auto` takes."""

    tune: bool = setting(
        False, help="Find the fastest engine and graph on this CPU instead; `backend` auto then uses them."
    )


@dataclass(frozen=True)
class ResultPlace:
    """Where the result goes."""

    out: Path | None = setting(None, help="Folder for bench.json and bench.png; default: bench/ beside the artifact.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.bench.request import BenchRequest

    return ArtifactPlace, BenchRequest, TuneCall, ResultPlace, RunsFolder


@command("bench", panel=CHECK, requests=_requests, needs="cpu")
def bench(which: ArtifactPlace, asked: BenchRequest, call: TuneCall, result: ResultPlace, place: RunsFolder) -> None:
    """Measure an artifact's graphs side by side: latency, images/s, memory, cold start.

    Graphs that fail validation are not timed.
    """
    from spade_deploy import bench as benching

    opened = open_artifact(which.artifact, place)
    if call.tune:
        _refuse_others(asked, result)
        _tune(opened, asked.threads)
        return
    folder = result.out or benching.default_folder(opened)
    plan = asked.plan(opened, place.runs)
    with locked(folder, "measuring"), spinner("measuring", "{what} {done} of {total}") as progress:
        found = benching.run_plan(opened, plan, progress)
        files = benching.write_result(found, folder)
    output.report(found)
    print_bench(found, files)
    for entry in found.measured:
        if entry.candidate.graph is not None:
            stdout().print(f"  {entry.candidate.name}: {entry.runtime}")
    found.require_right()


def _refuse_others(asked: BenchRequest, result: ResultPlace) -> None:
    """Raise ConfigError for an option that `tune` would ignore."""
    for request, usual in ((asked, type(asked)()), (result, ResultPlace())):
        for field in fields(request):
            if field.name != "threads" and getattr(request, field.name) != getattr(usual, field.name):
                raise ConfigError(
                    f"`{field.name}`: `tune` measures every engine on the golden maps, and takes `threads` alone",
                    hint="leave one of them out",
                )


def _tune(artifact: Artifact, threads: int | None) -> None:
    from spade_deploy.tuning.tune import tune

    with spinner("measuring") as progress:
        found = tune(artifact, threads, progress)
    times = [{"name": found.name(time.candidate), **to_json(time)} for time in found.session.times]
    output.report({"auto": found.line, "faster": found.hint or None, "times": times})
    _print_tuned(found)


def _print_tuned(found: Tuned) -> None:
    """Print a row for each candidate that was measured on the CPU, and what `auto` takes."""
    from spade_deploy.pages.render import decibel

    rows: list[tuple[Cell, ...]] = []
    for time in sorted(found.session.times, key=lambda one: one.ms):
        share = time.break_even_share
        rule = "never" if share == 0 else "as exported" if share is None else f"{share:.0%} unique patterns"
        psnr_db = found.psnr_db(time)
        rows.append((found.name(time.candidate), f"{time.ms:.1f}", decibel(None if psnr_db == inf else psnr_db), rule))
    console = stdout()
    print_table(("", "ms an image", "PSNR", "lookup up to"), rows)
    console.print(in_flags(found.line))
    if found.hint:
        console.print(in_flags(found.hint))
