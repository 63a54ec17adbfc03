"""One place for a setting: its type, default, help text, group in `--help` and name on the command line.

A request is a frozen dataclass whose fields are declared with `setting`. `commands/options.py` makes the options of a
command from it. Configuration files and the table of options in the docs are made from the same fields.

    @dataclass(frozen=True, kw_only=True)
    class InferRequest:
        labels: Path = setting(help="A folder of label maps.", argument=True)
        batch_size: int = setting(1, help="Batch size (images per run of the graph).", least=1, most=4096)

        def __post_init__(self) -> None:
            check_ranges(self)

The help text is the documentation of the field; a string under the field says only what `--help` leaves out. Help texts
name other settings by their fields in backticks, as errors do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass
from typing import Any

from spade_deploy.errors import ConfigError, quoted

_KEY = "setting"
_ASKED = "asked"


@dataclass(frozen=True)
class Setting:
    """The facts about a setting besides its field's name, type and default."""

    help: str
    """One line for a person who reads `--help`, the docs or a configuration file."""
    group: str = ""
    """The heading in `--help`; the options without one come first."""
    flag: str = ""
    """The name on the command line, without dashes, if it differs from the name of the field."""
    metavar: str | None = None
    """The word for the value in `--help`; by default the type."""
    argument: bool = False
    """Whether it is given by its place on the command line, without a flag."""
    negatable: bool = False
    """Whether a switch has an opposite, which has its name with "no" in front."""
    parse: Callable[[str], Any] | None = None
    """Makes the value from the typed text; raises ConfigError or ValueError. None converts it to the field's type."""
    least: float | None = None
    """The smallest value that is allowed."""
    most: float | None = None
    """The largest value that is allowed."""
    bare: str = ""
    """The value that is meant if the flag stands without one; empty if the flag needs a value."""
    after: str = ""
    """The setting, by the name of its flag, that this one follows in `--help`; needed if that is in another class."""


def setting(default: Any = MISSING, *, help: str, default_factory: Any = MISSING, **facts: Any) -> Any:
    """A field of a request that is an option of a command; `facts` are fields of `Setting`."""
    metadata = {_KEY: Setting(help, **facts)}
    if default_factory is not MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def asked_of(kind: type) -> Any:
    """A field that holds the given settings of another dataclass: a mapping from its fields to the given values.

    A setting that is not given is not in the mapping. A preset, or the checkpoint that training goes on from, decides
    it.
    """
    return dataclasses.field(default_factory=dict, metadata={_ASKED: kind})


def setting_of(field: dataclasses.Field[Any]) -> Setting | None:
    """The facts that a field was declared with; None for a field that is no option."""
    found = field.metadata.get(_KEY)
    return found if isinstance(found, Setting) else None


def asked_kind(field: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a field that was declared with `asked_of`."""
    return field.metadata.get(_ASKED)


def check_ranges(request: Any) -> None:
    """Raise ConfigError for the first field whose value is outside `least` and `most`; None is not checked."""
    for field in dataclasses.fields(request):
        known, value = setting_of(field), getattr(request, field.name)
        if known is None or value is None:
            continue
        check_range(known.flag.replace("-", "_") or field.name, value, known.least, known.most)


def check_range(field: str, value: Any, least: float | None, most: float | None) -> None:
    """Raises ConfigError where `value` is below `least` or above `most`; None leaves that side open."""
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        raise ConfigError(f"`{field}`: {quoted(value)} is not {_range(least, most)}")


def _range(least: float | None, most: float | None) -> str:
    """The allowed range in words: 'in 1..4096', 'at least 1', 'at most 9'."""
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if least is None else f"in {least}..{most}"


def check_positive(field: str, value: int | None) -> None:
    """Raises ConfigError for a count below 1, such as that of threads; None is no value."""
    if value is not None and value < 1:
        raise ConfigError(f"`{field}`: {value} is not a positive number")


def check_one_of(field: str, value: str, allowed: Iterable[str], hint: str | None = None) -> None:
    """Raises ConfigError, which lists what is allowed, such as the members of an enum, where `value` is none of it."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"`{field}`: {quoted(str(value))} is not one of {', '.join(allowed)}", hint=hint)


def as_typed(value: Any) -> str:
    """A value as one types it on the command line: 256x512, 0,0.9, 128,64,32, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        is_size = len(value) == 2 and all(isinstance(part, int) for part in value)
        return ("x" if is_size else ",").join(map(str, value))
    return str(value)
