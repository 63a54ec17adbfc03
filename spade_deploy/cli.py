"""The command line: which commands there are, and how an error becomes a message and an exit code.

Each command has a file in `commands/` and is made from its request dataclasses. Nothing heavy is imported before a
command needs it: `spade --help` answers in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spade_deploy.commands.animate import animate
from spade_deploy.commands.bench import bench
from spade_deploy.commands.build import build
from spade_deploy.commands.check_labels import check_labels
from spade_deploy.commands.console import check_terminal_size, print_error, show_notes, stderr, styled
from spade_deploy.commands.data import data
from spade_deploy.commands.demo import demo
from spade_deploy.commands.evaluate import evaluate
from spade_deploy.commands.export import export
from spade_deploy.commands.import_generator import import_generator
from spade_deploy.commands.infer import infer
from spade_deploy.commands.inspect import doctor, inspect
from spade_deploy.commands.train import train
from spade_deploy.commands.validate import validate
from spade_deploy.errors import SpadeError, system_error
from spade_deploy.version import __version__

COMMANDS: tuple[TyperCommand | TyperGroup, ...] = (
    train,
    import_generator,
    export,
    infer,
    build,
    demo,
    data,
    validate,
    evaluate,
    bench,
    check_labels,
    inspect,
    doctor,
    animate,
)
"""The commands, in the order of `spade --help`."""


class _Commands(TyperGroup):
    """Prints an error that a user can mend as one message. Any other error is a defect and keeps its traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        check_terminal_size()  # the help, too, is wrapped by it
        return super().main(*args, **options)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for made in COMMANDS:
            self.commands[made.name or ""] = made

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpadeError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            told = system_error(error)
            if told is None:
                raise
            print_error(told)
            raise typer.Exit(told.exit_code) from error
        except KeyboardInterrupt:
            stderr().print(styled("stopped", "red"))
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train or import a SPADE (GauGAN) generator, export it to ONNX, prove it equal to PyTorch, run it fast.\n\n"
    "The main job, in an empty folder: [bold]spade train[/], [bold]spade export --fp16[/],"
    " [bold]spade infer labels/ out/[/]. Or all of it at once: [bold]spade demo[/].",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"spade-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    show_notes()


def main() -> None:
    """The console script."""
    # Python processes that are started from here, by libraries too, import nothing from the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app()
    except SystemExit as ended:
        # If this process trained together with peers, the watch over the peers ends it, with an exit code of its own.
        if (peers := sys.modules.get("spade_deploy.training.processes.peers")) is not None:
            peers.end_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise


if __name__ == "__main__":
    main()
