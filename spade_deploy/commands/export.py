"""`spade export`: fold a checkpoint, write it as ONNX, and prove it equal to PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.commands.console import duration, line, print_next, print_places, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.commands.tables import print_report
from spade_deploy.printable import one_line

if TYPE_CHECKING:
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
    out.print(f"exported {one_line(made.checkpoint)}")
    print_report(made.report)
    total = sum(seconds for _, seconds in made.seconds)
    out.print(f"took {duration(total)}:")
    for what, seconds in made.seconds:
        out.print(line(styled(f"  {seconds:7.1f} s  {in_flags(what)}", "dim")))
    for note in made.notes:
        out.print(f"  note: {in_flags(note)}")
    print_places(
        ("artifact", artifact.path),
        *((graph.name, artifact.path_of(graph.file)) for graph in artifact.manifest.graphs),
        ("report", artifact.path / "report.html"),
    )
    needs_instances = artifact.manifest.generator.labels.has_edges
    print_next("spade infer labels/ out/" + (" --instances instances/" if needs_instances else ""))
