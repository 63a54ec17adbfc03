"""The errors that typer finds in a command line, in the words and the form of all other errors.

typer brings a copy of click from 0.16 on and uses the package before; the classes are those of the typer that is there.
"""

from __future__ import annotations

import difflib
import re
from enum import Enum
from typing import Any

import typer

from spade_deploy.commands import output
from spade_deploy.commands.console import print_error, stdout_of_help
from spade_deploy.errors import ConfigError, quoted
from spade_deploy.printable import one_line

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Every error that typer raises for a command line, such as an unknown option."""


def print_usage_error(error: Any, group: Any) -> int:
    """Print what is wrong with the command line, and return the exit code. group: the commands that there are."""
    if type(error).__name__ == "NoArgsIsHelpError":
        stdout_of_help().print(error.ctx.get_help(), soft_wrap=True)
        return int(error.exit_code)
    told = as_config_error(error, group)
    print_error(told)
    return told.exit_code


def as_config_error(error: Any, group: Any) -> ConfigError:
    """The error with its next step. group: the commands that there are."""
    if error.ctx is None:
        error.ctx = _running_context(group)
    command = error.ctx.command_path
    helped = f"`{command} --help` lists what it takes"
    kind, text = type(error).__name__, one_line(error.message)
    if kind == "NoSuchOption":
        near = _near(error.option_name, _flags_of(error.ctx))
        return ConfigError(
            f"{one_line(error.option_name)} is not an option of `{command}`",
            hint=f"did you mean {near}? {helped}" if near else helped,
        )
    if kind == "MissingParameter":
        name = _name(error.param)
        what = _help(error.param)
        return ConfigError(f"{name} is missing" + (f": {what}" if what else ""), hint=f"{_usage(error)}; {helped}")
    if kind == "BadParameter" and error.param is not None:
        return _bad_value(error, text, helped)
    if kind == "BadOptionUsage":
        return _bad_option(error, text, helped)
    if (unknown := re.match(r"No such command '(.*?)'", text)) is not None:
        names = list(error.ctx.command.commands)
        near = _near(unknown[1], names)
        return ConfigError(
            f"{quoted(unknown[1])} is not a command of `{command}`",
            hint=f"did you mean `{command} {near}`? {helped}" if near else f"it has {', '.join(names)}",
        )
    if "unexpected extra argument" in text:
        extra = re.sub(r".*\((.*)\)$", r"\1", text)
        return ConfigError(
            f"{one_line(extra)}: `{command}` takes no such argument",
            hint=f"{_usage(error)}; a name with spaces needs quotes",
        )
    if text.startswith("Missing command"):
        return ConfigError(
            f"`{command}` needs a command", hint=f"it has {', '.join(error.ctx.command.commands)}; {helped}"
        )
    return ConfigError(text[:1].lower() + text[1:].rstrip("."), hint=helped)


def _bad_value(error: Any, text: str, helped: str) -> ConfigError:
    """An option or argument whose value cannot be converted."""
    name, option = _name(error.param), next((one for one in _options(error.ctx) if one.key == error.param.name), None)
    if option is None:
        return ConfigError(f"{name}: {text[:1].lower()}{text[1:].rstrip('.')}", hint=helped)
    kind, given = option.value_kind, output.typed_value(option.flag)
    allowed = [str(member) for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
    near = _near(given, allowed) if given else ""
    what = "what was given" if given is None else quoted(given)
    return ConfigError(
        f"{name}: {what} is not {option.takes}", hint=f"did you mean {near}? {helped}" if near else helped
    )


def _bad_option(error: Any, text: str, helped: str) -> ConfigError:
    name = one_line(error.option_name)
    if "requires an argument" in text or "requires" in text:
        option = next((one for one in _options(error.ctx) if one.flag == name), None)
        takes = f": {option.takes}" if option is not None else ""
        return ConfigError(f"{name} needs a value{takes}", hint=helped)
    if "does not take a value" in text:
        return ConfigError(f"{name} takes no value", hint=f"leave the part after = out; {helped}")
    return ConfigError(f"{name}: {text[:1].lower()}{text[1:].rstrip('.')}", hint=helped)


def _running_context(group: Any) -> Any:
    """A context of the command that runs, for an error that has none."""
    context, command = group.make_context("spade", [], resilient_parsing=True), group
    for word in output.running_command().split():
        command = command.commands[word]
        context = type(context)(command, parent=context, info_name=word)
    return context


def _options(ctx: Any) -> list[Any]:
    command = getattr(ctx, "command", None)
    return [*getattr(command, "options", ()), *getattr(command, "output_options", ())]


def _name(param: Any) -> str:
    """--batch-size, or LABELS for an argument."""
    return str(param.opts[0]) if param.param_type_name == "option" else str(param.name).upper()


def _help(param: Any) -> str:
    return one_line(getattr(param, "help", None) or "").rstrip(".")


def _usage(error: Any) -> str:
    words = [_name(param) for param in error.ctx.command.params if param.param_type_name == "argument"]
    return "usage: " + " ".join([error.ctx.command_path, *words, "[OPTIONS]"])


def _flags_of(ctx: Any) -> list[str]:
    return [flag for param in ctx.command.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)]


def _near(word: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
