"""JSON <-> frozen dataclasses, the one way: the annotation of a field says what its JSON must be.

`from_json` makes a dataclass of a JSON object that somebody else wrote, and `to_json` is its inverse. An error says
where the value stands, quotes it, cut, and says what is allowed: "graphs[0]: opset: '18' is of type str, not int".

Annotations may be: bool, int, float, str, Path, enums, Any, other dataclasses, `X | None`, `tuple[X, ...]`,
`tuple[X, Y]`, `list[X]`, `dict[str, X]`, `Mapping[str, X]`, and `Annotated[X, Rule(...)]` for a value that must be more
than of a type, best as a name of the module, such as `Sha256`. A dataclass with a `from_json` or `to_json` of its own
is read and written by it.

It is written by hand. Of the libraries, cattrs makes 18 of the text '18' and 1 of true; msgspec does not quote what is
of a wrong type, does not list what an enum allows, and cannot refuse unknown fields of a dataclass. A layer over either
would be as long as this file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.files.reading import sha256_of_bytes

Record = TypeVar("Record")
Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True)
class Rule:
    """A condition on a value besides its type; it is written as `Annotated[type, Rule(...)]`."""

    holds: Callable[[Any], bool]
    """Whether a value of the right type is allowed."""

    wanted: str
    """What is allowed, in words."""


def matching(pattern: str, wanted: str) -> Rule:
    """The rule that a whole text matches a regular expression."""
    compiled = re.compile(pattern)
    return Rule(lambda text: compiled.fullmatch(text) is not None, wanted)


Count = Annotated[int, Rule(lambda number: number >= 0, "a number from 0 on")]
"""A whole number that is not negative."""

CountOrNone = Annotated[int | None, Rule(lambda number: number is None or number >= 0, "a number from 0 on")]
"""A whole number that is not negative, or None where nobody counted."""

Sha256 = Annotated[str, matching(r"[0-9a-f]{64}", "a SHA-256")]
"""The SHA-256 of a file, 64 hexadecimal digits."""

Sha256OrNone = Annotated[str, matching(r"([0-9a-f]{64})?", "a SHA-256")]
"""The SHA-256 of a file, or an empty text where there is no file."""


def from_json(kind: type[Record], value: Any, where: str = "", *, ignore_unknown: bool = False) -> Record:
    """Make the dataclass `kind` from a JSON object. A field that is missing there gets its default.

    where: what the object is, with which messages begin. ignore_unknown: fields that the dataclass does not have are
    left out, also in the dataclasses inside it; without it they are refused.
    Raises ConfigError, as `__post_init__` of the dataclass does.
    """
    given = of_type(value, dict, where or kind.__name__)
    hints, required = _fields_of(cast(Hashable, kind))
    if not ignore_unknown:
        unknown = sorted(set(given) - set(hints))
        if unknown:
            raise ConfigError(_at(where, f"unknown field {quoted(unknown[0])}; known are {', '.join(hints)}"))
    missing = next((name for name in required if name not in given), None)
    if missing is not None:
        raise ConfigError(_at(where, f"field {missing!r} is missing"))
    return kind(
        **{
            name: parse(hint, given[name], _at(where, name), ignore_unknown=ignore_unknown)
            for name, hint in hints.items()
            if name in given
        }
    )


def to_json(record: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it, in the order of its fields: tuples are lists; enums and paths are texts."""
    return {entry.name: _plain(getattr(record, entry.name)) for entry in dataclasses.fields(record)}


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys: its text is hashed without spaces, keys sorted."""
    return sha256_of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def parse(kind: Any, value: Any, where: str, *, ignore_unknown: bool = False) -> Any:
    """The value that JSON holds, as an annotation wants it. Raises ConfigError that begins with `where`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = parse(inner[0], value, where, ignore_unknown=ignore_unknown)
        for rule in inner[1:]:
            if not rule.holds(found):
                raise ConfigError(f"{where} is {quoted(value)}, not {rule.wanted}")
        return found
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (only,) = (one for one in inner if one is not type(None))
        return parse(only, value, where, ignore_unknown=ignore_unknown)
    if origin in (tuple, list):
        return _sequence(kind, value, where, ignore_unknown)
    if origin in (dict, Mapping):
        entries = of_type(value, dict, where)
        return {
            name: parse(inner[1], entry, _at(where, quoted(name)[1:-1]), ignore_unknown=ignore_unknown)
            for name, entry in entries.items()
        }
    if hasattr(kind, "from_json"):
        try:
            return kind.from_json(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
    if dataclasses.is_dataclass(kind):
        return from_json(cast(type[Any], kind), value, where, ignore_unknown=ignore_unknown)
    if issubclass(kind, Enum):
        return kind(_one_of([member.value for member in kind], value, where))
    if kind is float:
        return float(of_type(value, (float, int), where))
    return Path(of_type(value, str, where)) if kind is Path else of_type(value, kind, where)


def chosen(kind: type[Choice], value: Any, where: str) -> Choice:
    """The member of an enum that has this value. Raises ConfigError with what is allowed."""
    return kind(_one_of(list(kind), value, where))


def of_type(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """The value itself. Raises ConfigError unless it is of that type; a bool is no number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = kinds[0].__name__
        raise ConfigError(f"{where}: {quoted(value)} is of type {type(value).__name__}, not {wanted}")
    return value


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The annotation of each field by its name, and the names of those without a default."""
    hints = get_type_hints(kind, include_extras=True)
    entries = [entry for entry in dataclasses.fields(kind) if entry.init]
    missing = dataclasses.MISSING
    required = [entry.name for entry in entries if entry.default is missing and entry.default_factory is missing]
    return {entry.name: hints[entry.name] for entry in entries}, tuple(required)


def _sequence(kind: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    entries = of_type(value, (list, tuple), where)
    if origin is list or inner[-1] is Ellipsis:
        inner = inner[:1] * len(entries)
    elif len(entries) != len(inner):
        raise ConfigError(f"{where}: {quoted(value)} is not a list of {len(inner)}")
    pairs = zip(inner, entries, strict=True)
    return origin(parse(k, e, f"{where}[{n}]", ignore_unknown=ignore_unknown) for n, (k, e) in enumerate(pairs))


def _one_of(allowed: Any, value: Any, where: str) -> Any:
    # Only texts are compared: True would equal 1, and a list cannot be looked up.
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{where} {quoted(value)} is not one of {', '.join(allowed)}")
    return value


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "to_json"):
        return value.to_json()
    return to_json(value)


def _at(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what
