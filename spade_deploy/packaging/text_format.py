"""A protobuf message as text, as config.pbtxt wants it, without the package protobuf.

https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """The name of an enum's value, which stands without quotation marks."""


def text_of(message: Mapping[str, Any]) -> str:
    """The fields of a message by name -> text. A mapping is a message, a list or tuple a field that is repeated.

    Raises TypeError for a value of another type than bool, int, float, str and `Word`.
    """
    return "\n".join(_lines(message, "")) + "\n"


def map_field(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A field of the type map<string, ...>, whose entries are messages with a key and a value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int | float):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value.encode())) + '"'
    raise TypeError(f"{value!r} is no value of a protobuf field")


def _escaped(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
