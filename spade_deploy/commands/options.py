"""Commands made from request dataclasses: options, arguments and help text come from their fields (`settings.setting`).

    def _requests() -> tuple[type[InferRequest], type[RunsFolder]]:
        from spade_deploy.inference.request import InferRequest

        return InferRequest, RunsFolder

    @command("infer", panel=MAIN, requests=_requests)
    def infer(asked: InferRequest, place: RunsFolder) -> None:
        \"""Make a photo of every label map in a folder.\"""

typer parses and prints the help, as for a function that is written by hand. The requests are imported when the command
is looked at, so `spade --help` loads none of them. Libraries that do this (pydantic-typer, typantic) want pydantic
models, whose import alone takes longer than `spade --help` may; dataclass-click knows neither typer nor its panels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from spade_deploy.commands import output
from spade_deploy.commands.flags import use_flags
from spade_deploy.commands.help import help_of_command, help_of_group
from spade_deploy.commands.request_options import Option, flag_table, in_order, options_of, request_from
from spade_deploy.errors import MissingDependencyError
from spade_deploy.settings import setting

MAIN, CHECK = "The main job", "Check"
"""The headings of `spade --help`."""


@dataclass(frozen=True)
class RunsFolder:
    """Where a command looks for runs."""

    runs: Path = setting(Path("runs"), help="Folder of runs, searched for the newest one.")


class CommandGroup(TyperGroup):
    """Several commands under one word."""

    def get_help(self, ctx: Any) -> str:
        return help_of_group(self, ctx)


class RequestCommand(TyperCommand):
    """A command whose options are made from request dataclasses, when they are first looked at."""

    def __init__(
        self,
        name: str,
        handler: Callable[..., None],
        requests: Callable[[], Sequence[type]],
        *,
        panel: str | None = None,
        needs: str = "",
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self.requests = requests
        self._handler, self._needs, self._extra_flags = handler, needs, flags or {}
        self._made: list[Any] | None = None
        text = inspect.cleandoc(handler.__doc__ or "")
        super().__init__(name, help=text, rich_help_panel=panel)

    @cached_property
    def options(self) -> list[Option]:
        """Every option and argument, in the order in which the help lists them."""
        return in_order([option for request in self.requests() for option in options_of(request)])

    @cached_property
    def output_options(self) -> list[Option]:
        """The options that every command has: how it reports."""
        return list(options_of(output.OutputOptions))

    @property
    def flags(self) -> dict[str, str]:
        """The flag of every field, for `in_flags`."""
        return {**flag_table([*self.options, *self.output_options]), **self._extra_flags}

    @property
    def params(self) -> list[Any]:
        """The parameters in typer's own form."""
        if self._made is None:
            single = typer.Typer(add_completion=False)
            table = self.flags
            single.command()(
                _with_parameters([option.parameter(table) for option in (*self.options, *self.output_options)])
            )
            self._made = typer.main.get_command(single).params
        return self._made

    @params.setter
    def params(self, value: list[Any]) -> None:
        """Ignored: the base class sets an empty list here, and the parameters are made from the requests."""

    def get_help(self, ctx: Any) -> str:
        return help_of_command(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.begin(ctx, args)
        return super().parse_args(ctx, self.with_bare_values(args))

    def begin(self, ctx: Any, args: list[str]) -> None:
        """From now on messages name this command's flags, and are reported as its command line asks."""
        use_flags(self.flags)
        output.begin(ctx.command_path.partition(" ")[2] or str(self.name), args)

    def with_bare_values(self, args: list[str]) -> list[str]:
        """The command line, with the default value added after each flag that may stand alone and does so."""
        bare = {option.flag: option.setting.bare for option in self.options if option.setting.bare}
        filled: list[str] = []
        for arg, following in zip(args, [*args, "-"][1:], strict=True):
            filled.append(arg)
            if arg in bare and following.startswith("-"):
                filled.append(bare[arg])
        return filled

    def flags_in(self, ctx: Any) -> dict[str, str]:
        """How messages of this run of the command name each field."""
        return self.flags

    def invoke(self, ctx: Any) -> Any:
        use_flags(self.flags_in(ctx))
        output.use(request_from(output.OutputOptions, ctx.params))
        return ctx.invoke(self._run, **ctx.params)

    def _run(self, **values: Any) -> None:
        with needed(self._needs):
            self._handler(*(request_from(request, values) for request in self.requests()))


Command = TypeVar("Command", bound=RequestCommand)


def command(
    name: str,
    *,
    requests: Callable[[], Sequence[type]],
    panel: str | None = None,
    needs: str = "",
    flags: Mapping[str, str] | None = None,
    kind: type[Command] = RequestCommand,  # type: ignore[assignment]
) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function that takes one argument for each request; its docstring is the help.

    requests: imports and returns the dataclasses. panel: MAIN or CHECK. needs: the extra of this package that brings
    what the command imports (pip install 'spade-deploy[EXTRA]'). flags: what errors name beside the fields of the
    requests, and the flag of each. kind: the class of the command, such as one that
    also reads a configuration file.
    """
    return lambda handler: kind(name, handler, requests, panel=panel, needs=needs, flags=flags)


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """If an import inside the block fails, raise an error whose hint installs the extra that brings the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not extra or error.name is None or error.name.startswith("spade_deploy"):
            raise
        raise MissingDependencyError(
            f"this command needs {error.name}, which is not installed", hint=f"pip install 'spade-deploy[{extra}]'"
        ) from error


def _with_parameters(parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """A function with these parameters, from whose signature typer makes options; it is not called."""

    def typed(**values: Any) -> None: ...

    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return typed
