"""From a request dataclass to the options that typer shows, and from the values that were typed back to a request."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from spade_deploy.commands.flags import in_flags
from spade_deploy.errors import ConfigError
from spade_deploy.settings import Setting, asked_kind, setting_of

Request = TypeVar("Request")


@dataclass(frozen=True)
class Option:
    """An option or argument of a command: a field of a request, and how it is typed."""

    field: str
    """The name of the field."""
    path: tuple[str, ...]
    """The fields that lead to it, from the request on; the last is `field`."""
    setting: Setting
    """Help text, flag and limits that the field was declared with."""
    kind: Any
    """The type that typer converts to."""
    default: Any
    """Its value if it is not given; `inspect.Parameter.empty` if it has to be given."""
    usual: Any
    """The default of the field itself, which differs from `default` for an option that is only used when it is given.
    None if the field has no default."""

    @property
    def key(self) -> str:
        """Its name as a parameter and in a configuration file."""
        return (self.setting.flag or self.field).replace("-", "_")

    @property
    def flag(self) -> str:
        """The flag that is typed, such as --batch-size, or the name of an argument."""
        return self.key.upper() if self.setting.argument else "--" + self.key.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it stands alone, without a value."""
        return bool in (self.kind, *get_args(self.kind))

    @property
    def is_list(self) -> bool:
        """Whether it may be given several times."""
        return any(get_origin(kind) is list for kind in (self.kind, *get_args(self.kind)))

    @property
    def value_kind(self) -> Any:
        """The type of a value, or of one of them if it is given several times."""
        kind = next((each for each in get_args(self.kind) if each is not type(None)), self.kind)
        return next(iter(get_args(kind)), kind)

    @property
    def takes(self) -> str:
        """What a value has to be, in words, as far as the type says it."""
        kind = self.value_kind
        if isinstance(kind, type) and issubclass(kind, Enum):
            return f"one of {', '.join(kind)}"
        return {int: "an integer", float: "a number", bool: "true or false", Path: "a path"}.get(kind, "a text")

    def parameter(self, table: Mapping[str, str]) -> inspect.Parameter:
        """The parameter from which typer makes the option. table: the flags that stand for fields in its help."""
        known, text = self.setting, in_flags(self.setting.help, table)
        if known.argument:
            info = typer.Argument(help=text, metavar=known.metavar, show_default=False)
        else:
            opposite = f"/--no-{self.flag.removeprefix('--')}" if known.negatable else ""
            info = typer.Option(
                self.flag + opposite, help=text, metavar=known.metavar, rich_help_panel=known.group or None
            )
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=Annotated[self.kind, info]
        )

    def value_of(self, typed: Any) -> Any:
        """The field's value from what typer made of the text. Raises ConfigError that names the field."""
        if typed is None or self.setting.parse is None:
            return tuple(map(self._in_kind, typed)) if isinstance(typed, list | tuple) else self._in_kind(typed)
        try:
            return self.setting.parse(typed)
        except ConfigError as error:
            # One parser serves several settings (sizes, for example), and its message names only one of them.
            message = re.sub(r"^`\w+`", f"`{self.key}`", error.message)
            raise ConfigError(message, hint=error.hint) from error
        except ValueError as error:
            raise ConfigError(f"`{self.key}`: {error}") from error

    def _in_kind(self, typed: Any) -> Any:
        """A path or a member of an enum from its text: older versions of typer convert only when they call a function
        themselves (0.20 does, 0.29 does not)."""
        is_made = isinstance(self.value_kind, type) and issubclass(self.value_kind, Path | Enum)
        return self.value_kind(typed) if is_made and isinstance(typed, str) else typed


def options_of(request: type, path: tuple[str, ...] = (), *, is_asked: bool = False) -> Iterator[Option]:
    """Every option of a request, including the options of the requests inside it.

    is_asked: no option gets a default, since only those that are given count.
    """
    hints = get_type_hints(request)
    for field in dataclasses.fields(request):
        here = (*path, field.name)
        if (inner := asked_kind(field)) is not None:
            yield from options_of(inner, here, is_asked=True)
        elif (known := setting_of(field)) is not None:
            yield Option(field.name, here, known, *_kind_and_defaults(field, known, hints[field.name], is_asked))
        elif not is_asked and dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name], here)


def _kind_and_defaults(
    field: dataclasses.Field[Any], known: Setting, hint: Any, is_asked: bool
) -> tuple[Any, Any, Any]:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    kind = kinds[0] if get_origin(hint) in (Union, UnionType) else hint
    if known.parse is not None:
        kind = str
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING and not is_asked:
        return kind, inspect.Parameter.empty, None
    usual = None if default is dataclasses.MISSING else default
    return (kind | None, None, usual) if is_asked or usual in (None, ()) else (kind, usual, usual)


def in_order(options: Sequence[Option]) -> list[Option]:
    """The options as `--help` lists them: in the order of declaration, unless `after` names the one to follow."""
    ordered = [option for option in options if not option.setting.after]
    for option in options:
        if option.setting.after:
            ordered.insert(1 + [other.key for other in ordered].index(option.setting.after), option)
    return ordered


SAME_SETTING = {
    "labels_dir": "labels",
    "images_dir": "images",
    "instances_dir": "instances",
    "val_labels_dir": "val_labels",
    "val_images_dir": "val_images",
    "val_instances_dir": "val_instances",
    "crop_size": "size",
    "runs_dir": "runs",
}
"""Names that Python's functions and data settings have for what an option of another name sets."""


def flag_table(options: Sequence[Option]) -> dict[str, str]:
    """The table for `flags.in_flags`: the names of options and fields, and `no_NAME` for switches, with their flags."""
    table = {option.key: option.flag for option in options}
    for option in options:
        for name in (option.field, ".".join(option.path)):
            table.setdefault(name, option.flag)
        if option.setting.negatable:
            table[f"no_{option.key}"] = f"--no-{option.flag.removeprefix('--')}"
    for name, key in SAME_SETTING.items():
        if key in table:
            table.setdefault(name, table[key])
    return table


def request_from(request: type[Request], values: Mapping[str, Any]) -> Request:
    """Make a request from values by the names of the options. Raises ConfigError for a value that it refuses."""
    found: dict[str, Any] = {}
    for option in options_of(request):
        place = found
        for name in option.path[:-1]:
            place = place.setdefault(name, {})
        place[option.field] = option.value_of(values[option.key])
    return _made(request, found)


def _made(request: type[Request], found: Mapping[str, Any]) -> Request:
    hints, given = get_type_hints(request), dict(found)
    for field in dataclasses.fields(request):  # type: ignore[arg-type]
        if asked_kind(field) is not None:
            given[field.name] = {name: value for name, value in given[field.name].items() if value is not None}
        elif field.name in given and setting_of(field) is None:
            given[field.name] = _made(hints[field.name], given[field.name])
    return request(**given)
