"""One place for a setting: its type, default, help text, group in `--help` and name on the command line.

A request is a frozen dataclass whose fields are declared with `setting`. `commands/options.py` makes the options of a
command from it, and what else lists settings (a configuration file, the table in the docs) reads the same fields.

    @dataclass(frozen=True, kw_only=True)
    class InferRequest:
        labels: Path = setting(help="A folder of label maps.", argument=True)
        batch_size: int = setting(1, help="Images a run of the graph.", least=1, most=4096)

        def __post_init__(self) -> None:
            check_ranges(self)

The help text is the documentation of the field: a string under it says only what `--help` leaves out. It names other
settings by their fields in backticks, as errors do.
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
    """What is known of a setting beside its field's name, type and default."""

    help: str
    """One line for a person who reads `--help`, the docs or a configuration file."""
    group: str = ""
    """The heading in `--help`; the options without one come first."""
    flag: str = ""
    """The name on the command line, without dashes, where it is not the name of the field."""
    metavar: str | None = None
    """What stands for the value in `--help`; by default the type."""
    argument: bool = False
    """Whether it is given by its place on the command line, without a flag."""
    negatable: bool = False
    """Whether a switch has an opposite, which has its name with "no" in front."""
    parse: Callable[[str], Any] | None = None
    """From the text that is typed to the value; raises ConfigError or ValueError. None: the type says how."""
    least: float | None = None
    """The smallest value that is allowed."""
    most: float | None = None
    """The largest value that is allowed."""
    bare: str = ""
    """What is meant where the flag stands without a value; nothing: it needs one."""
    after: str = ""
    """The name (of its flag) of the setting that it follows in `--help`, where that one stands in another class."""


def setting(default: Any = MISSING, *, help: str, default_factory: Any = MISSING, **facts: Any) -> Any:
    """A field of a request that is an option of a command; `facts` are fields of `Setting`."""
    metadata = {_KEY: Setting(help, **facts)}
    if default_factory is not MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def asked_of(kind: type) -> Any:
    """A field for what was asked of the settings of another dataclass: a mapping from its fields to the given values.

    What was not asked for is not in the mapping: a preset, or a checkpoint that training goes on from, decides it.
    """
    return dataclasses.field(default_factory=dict, metadata={_ASKED: kind})


def setting_of(field: dataclasses.Field[Any]) -> Setting | None:
    """What `setting` said of a field; None for a field that is no option."""
    found = field.metadata.get(_KEY)
    return found if isinstance(found, Setting) else None


def asked_kind(field: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a field that was declared with `asked_of`."""
    return field.metadata.get(_ASKED)


def check_ranges(request: Any) -> None:
    """Raises ConfigError for the first field whose value is outside `least` and `most`; None is no value."""
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
    """A value as it is typed: 256x512, 0,0.9, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ("x" if all(isinstance(part, int) for part in value) else ",").join(map(str, value))
    return str(value)
