"""`spade import`: make a run of a generator that others released, or that their code trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.console import note, print_next, print_places, stdout
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.printable import one_line
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.runs.import_request import ImportRequest


@dataclass(frozen=True)
class GeneratorFile:
    """What is imported."""

    file: Path = setting(help="latest_net_G.pth", argument=True)


@dataclass(frozen=True)
class NewRun:
    """The run that is made of it."""

    name: str | None = setting(None, help="Name of the run; default: numbered automatically.")


def _requests() -> tuple[type, ...]:
    from spade_deploy.runs.import_request import ImportRequest

    return GeneratorFile, ImportRequest, NewRun, RunsFolder


@command("import", panel=MAIN, requests=_requests, needs="train")
def import_generator(generator: GeneratorFile, asked: ImportRequest, run: NewRun, place: RunsFolder) -> None:
    """Import a generator of SPADE, pix2pixHD, CLADE or OASIS that was released, or trained with their own code."""
    from spade_deploy.runs.importer import import_checkpoint

    imported = import_checkpoint(generator.file, asked, runs_dir=place.runs, name=run.name)
    out = stdout()
    output.report(
        {
            "file": generator.file,
            "run": imported.checkpoint.parent.parent,
            "checkpoint": imported.checkpoint,
            "described": imported.described,
            "guesses": [in_flags(guess) for guess in imported.guesses],
        }
    )
    out.print(f"imported {one_line(generator.file)}: {imported.described}")
    for guess in imported.guesses:
        out.print(f"  guessed: {in_flags(guess)}")
    for text in imported.notes:
        note(text)
    print_places(("checkpoint", imported.checkpoint))
    print_next("spade", "export", imported.checkpoint.parent.parent, "--fp16")
