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

from spade_deploy.commands import output
from spade_deploy.commands.animate import animate
from spade_deploy.commands.bench import bench
from spade_deploy.commands.build import build
from spade_deploy.commands.check_labels import check_labels
from spade_deploy.commands.console import check_terminal_size, errors, print_error, show_notes, styled
from spade_deploy.commands.data import data
from spade_deploy.commands.demo import demo
from spade_deploy.commands.distill import distill
from spade_deploy.commands.evaluate import evaluate
from spade_deploy.commands.export import export
from spade_deploy.commands.help import fitted
from spade_deploy.commands.import_generator import import_generator
from spade_deploy.commands.infer import infer
from spade_deploy.commands.inspect import doctor, inspect
from spade_deploy.commands.options import CommandGroup
from spade_deploy.commands.package import package
from spade_deploy.commands.runs import runs
from spade_deploy.commands.serve import serve
from spade_deploy.commands.train import train
from spade_deploy.commands.usage import USAGE_ERROR, print_usage_error
from spade_deploy.commands.validate import validate
from spade_deploy.errors import SpadeError, reason_of, system_error
from spade_deploy.machine.signals import end_as_ctrl_c
from spade_deploy.version import __version__

COMMANDS: tuple[TyperCommand | TyperGroup, ...] = (
    train,
    distill,
    import_generator,
    export,
    infer,
    serve,
    build,
    package,
    demo,
    data,
    validate,
    evaluate,
    bench,
    check_labels,
    inspect,
    runs,
    doctor,
    animate,
)
"""The commands, in the order of `spade --help`."""


STOPPED = 130
"""The exit code of a command that Ctrl-C or SIGTERM stopped."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 it failed, or a part could not be used (the rest is done); 2 the command line is wrong;"
    " 130 stopped with Ctrl-C or SIGTERM. docs/output.md tells what is printed where, and what --json prints."
)


def _code_of(ended: SystemExit) -> int:
    """The exit code with which Python ends."""
    return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


class _Commands(CommandGroup):
    """Prints an error that a user can mend as one message. Any other error is a defect and keeps its traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for made in COMMANDS:
            self.commands[made.name or ""] = made

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        check_terminal_size()  # the help, too, is wrapped by it
        output.begin("", ())
        try:
            code = self._ended(args, options)
        except SystemExit as ended:
            code = _code_of(ended)
            if (told := output.finish(code)) != code:
                raise SystemExit(told) from ended
            raise
        except Exception as defect:
            output.fail(type(defect).__name__, reason_of(defect), None)
            output.finish(1)
            raise
        code = output.finish(code)
        if standalone_mode:
            sys.exit(code)
        return code

    def _ended(self, args: Any, options: Any) -> int:
        """Run the command line, print the error with which it ends, and return the exit code."""
        try:
            code = super().main(*args, **{**options, "prog_name": "spade", "standalone_mode": False})
        except USAGE_ERROR as error:
            return print_usage_error(error, self)
        except (KeyboardInterrupt, typer.Abort):
            output.fail("KeyboardInterrupt", "stopped", None)
            errors().print(styled("stopped", "red"))
            return STOPPED
        return code if isinstance(code, int) else 0

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
            raise typer.Abort from None  # click would end without a word

    def get_help(self, ctx: Any) -> str:
        return super().get_help(ctx) + "\n\n" + "\n".join(fitted(EXIT_CODES))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    end_as_ctrl_c()
    try:
        app()
    except BaseException as ended:
        # If this process trained together with peers, the watch over the peers ends it, with an exit code of its own.
        if (peers := sys.modules.get("spade_deploy.training.processes.peers")) is not None:
            if isinstance(ended, SystemExit):
                peers.end_process(_code_of(ended))
            else:
                peers.end_process(1, defect=ended)
        raise


if __name__ == "__main__":
    main()
