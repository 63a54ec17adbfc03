"""JSON of others made into the fields of frozen dataclasses, and back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from spade_deploy.errors import ConfigError, quoted


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it: tuples are lists and enums strings, as a reader of the file will see them."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return value


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "bool": bool,
    "int | None": (int, type(None)),
}


def checked_fields(cls: type, given: Any, what: str) -> dict[str, Any]:
    """The fields of `cls` as JSON gives them. Raises ConfigError."""
    value: dict[str, Any] = dict(typed(given, dict, what))
    types = {field.name: str(field.type) for field in fields(cls)}
    unknown = sorted(set(value) - set(types))
    if unknown:
        raise ConfigError(f"{what}: unknown field {quoted(unknown[0])}; known are {', '.join(types)}")
    missing = next((name for name in ("num_labels", "labels") if name in types and name not in value), None)
    if missing:
        raise ConfigError(f"{what}: field {missing!r} is missing")
    for name, entry in value.items():
        kind = _FIELD_TYPES.get(types[name])
        if kind is not None:
            typed(entry, kind, f"{what}: {name}")
    return value


def typed(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """The value, which is of that type. Raises ConfigError."""
    is_bool_for_int = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or is_bool_for_int:
        raise ConfigError(f"{what}: {quoted(value)} is of type {type(value).__name__}")
    return value
