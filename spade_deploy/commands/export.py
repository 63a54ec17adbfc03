"""`spade export`: fold a checkpoint, write it as ONNX, and prove it equal to PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.console import (
    command_line,
    duration,
    free_folder,
    line,
    note,
    print_next,
    print_places,
    stdout,
    styled,
)
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.commands.tables import print_report
from spade_deploy.fields import to_json
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from spade_deploy.release.release import Release
    from spade_deploy.release.request import ReleaseRequest


def _requests() -> tuple[type, ...]:
    from spade_deploy.release.request import ReleaseRequest

    return ReleaseRequest, RunsFolder


@command("export", panel=MAIN, requests=_requests, needs="export")
def export(asked: ReleaseRequest, place: RunsFolder) -> None:
    """Fold a checkpoint, write it as ONNX, and prove it equal to PyTorch."""
    from spade_deploy.release.release import export_checkpoint

    with step_bar() as progress:
        made = export_checkpoint(asked, runs_dir=place.runs, progress=progress)
    out, artifact = stdout(), made.artifact
    output.report(
        {
            "checkpoint": made.checkpoint,
            "artifact": artifact.path,
            "graphs": [{"name": graph.name, **to_json(graph)} for graph in artifact.manifest.graphs],
            "validation": made.report,
        }
    )
    out.print(f"exported {one_line(made.checkpoint)}")
    print_report(made.report)
    total = sum(seconds for _, seconds in made.seconds)
    out.print(f"took {duration(total)}:")
    for what, seconds in made.seconds:
        out.print(line(styled(f"  {seconds:7.1f} s  {in_flags(what)}", "dim")))
    for text in made.notes:
        note(text)
    print_places(
        ("artifact", artifact.path),
        *((graph.name, artifact.path_of(graph.file)) for graph in artifact.manifest.graphs),
        ("report", artifact.path / "report.html"),
    )
    labels = _label_maps(made, asked)
    if labels:
        print_next("spade", "infer", labels[0], free_folder("photos"), "--artifact", artifact.path, *labels[1:])
    else:
        out.print(
            f"  to make photos: spade infer LABELS PHOTOS --artifact {command_line(artifact.path)}", soft_wrap=True
        )
        print_next("spade", "inspect", artifact.path)


def _label_maps(made: Release, asked: ReleaseRequest) -> tuple[str | Path, ...]:
    """Label maps that the model can paint: the folder, and the options that say where its instance maps are.

    They are those of this command, of the training, or those that `spade train` wrote to try; empty if none is there.
    """
    from spade_deploy.runs.records import read_checkpoint_info

    data = read_checkpoint_info(made.checkpoint).data or {}
    folders: list[tuple[Path | str | None, Path | str | None]] = [(asked.labels, asked.instances)]
    folders += [(data.get("labels_dir"), data.get("instances_dir")), (data.get("root"), None)]
    if data.get("preset") == "earth":
        folders.append(("labels", None))
    labels, instances = next(((one, of_it) for one, of_it in folders if one and Path(one).is_dir()), (None, None))
    if labels is None:
        return ()
    if not made.artifact.manifest.generator.labels.has_edges or labels == data.get("root"):
        return (labels,)
    return (labels, "--instances", instances) if instances else (labels, "--no-instances")
