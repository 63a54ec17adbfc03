"""`spade demo`: all of it in one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.commands import output
from spade_deploy.commands.console import (
    command_line,
    duration,
    free_folder,
    line,
    print_next,
    print_places,
    stdout,
    styled,
)
from spade_deploy.commands.options import MAIN, command
from spade_deploy.commands.progress import training_bar
from spade_deploy.commands.tables import print_report
from spade_deploy.files.locks import locked
from spade_deploy.settings import setting


@dataclass(frozen=True)
class DemoRequest:
    """Where the demo goes, and how long it trains."""

    out: Path = setting(Path("demo"), help="Folder for the results of the demo.")
    steps: int | None = setting(None, help="Number of training steps at the end of the demo.")


@command("demo", panel=MAIN, requests=lambda: (DemoRequest,), needs="train,export,cpu")
def demo(asked: DemoRequest) -> None:
    """Run the whole chain with the shipped Earth model: export, validation, photos, training, a gallery."""
    from spade_deploy.release.demo import run_demo

    with locked(asked.out, "running the demo"), training_bar() as progress:
        made = run_demo(asked.out, steps=asked.steps, progress=progress)
    output.report({"validation": made.report, "seconds": made.seconds, "training_seconds": made.training_seconds})
    print_report(made.report)
    stdout().print(f"the demo took {duration(made.seconds)}, {duration(made.training_seconds)} of it training")
    print_places(
        ("gallery", made.gallery), ("artifact", made.artifact), ("photos", made.photos), ("label maps", made.labels)
    )
    stdout().print("  open the gallery in a browser; `spade train` trains a model as good as the shipped one")
    stdout().print("  to paint with it:")
    stdout().print(line("  ", styled(command_line("spade", "serve", made.artifact), "bold")))
    print_next("spade", "infer", made.labels, free_folder("photos"), "--artifact", made.artifact)
