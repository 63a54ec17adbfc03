"""`spade infer`: make a photo of every label map in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands import output
from spade_deploy.commands.artifact import open_artifact
from spade_deploy.commands.console import errors, line, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import MAIN, RunsFolder, command, needed
from spade_deploy.commands.progress import image_bar
from spade_deploy.errors import InferInterruptedError
from spade_deploy.fields import to_json
from spade_deploy.printable import one_line
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.cluster.infer import RayInference
    from spade_deploy.inference import InferRequest, InferSummary


@dataclass(frozen=True)
class Model:
    """Which artifact makes the images."""

    artifact: Path | None = setting(None, help="An artifact or a run; default: the newest artifact.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.cluster.infer import RayInference
    from spade_deploy.inference.request import InferRequest

    return Model, InferRequest, RunsFolder, RayInference


@command("infer", panel=MAIN, requests=_requests)
def infer(model: Model, asked: InferRequest, place: RunsFolder, cluster: RayInference) -> None:
    """Make a photo of every label map in a folder."""
    from spade_deploy.cluster.infer import RayCrew
    from spade_deploy.inference import infer as make_images

    opened = open_artifact(model.artifact, place)
    crew = None if cluster.ray is None else RayCrew(cluster)
    try:
        with needed("" if crew is None else "ray"), image_bar() as progress:
            summary = make_images(opened, asked, progress, crew)
    except KeyboardInterrupt as error:
        raise InferInterruptedError(
            "stopped; the images that were written are whole", hint="the same command makes the others"
        ) from error
    output.report({"artifact": opened.path, **to_json(summary), "images_per_second": summary.images_per_s})
    _print_summary(summary)
    if summary.failures:
        _print_failures(summary)
        raise typer.Exit(1)


def _print_summary(summary: InferSummary) -> None:
    out = stdout()
    rate = f" ({summary.images_per_s:.1f} images/s)" if summary.written else ""
    counted = f"wrote {summary.written} of {summary.total} images to "
    out.print(line(counted, styled(one_line(summary.out), "bold"), rate))
    if summary.skipped:
        out.print(f"  {summary.skipped} were there already, made in the same way; --overwrite makes them again")
    if summary.resized and summary.size is not None:
        height, width = summary.size
        said = f"  {summary.resized} label maps were resized to {height}x{width} (nearest)"
        out.print(f"{said}; --resize never refuses them")
    for sentence in summary.lost:
        out.print(f"  {sentence}", markup=False)
    if summary.left_out:
        out.print(f"  {len(summary.left_out)} photos were left out; the first: {summary.left_out[0]}", markup=False)


def _print_failures(summary: InferSummary) -> None:
    err = errors()
    for failure in summary.failures:
        err.print(f"  {in_flags(failure.message)}")
    for hint in dict.fromkeys(failure.hint for failure in summary.failures if failure.hint):
        err.print(f"  next: {in_flags(hint)}")
    count = len(summary.failures)
    told = "1 label map has no result" if count == 1 else f"{count} label maps have no result"
    err.print(line(styled(told, "red"), "; the rest is done"))
