"""A file of colours, one for each id: the palette of colour-coded label maps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.spec import Rgb

MAX_BYTES = 4 << 20
"""The largest file of colours or classes that is read."""
_MAX_NAME = 80


def read_utf8(path: Path, field: str) -> str:
    """The text of a file. field: the setting that names it. Raises ConfigError."""
    try:
        # utf-8-sig: Windows' editor puts a byte order mark before the text.
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{field}`: {path} cannot be read: it is not UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"`{field}`: {path} cannot be read ({reason_of(error)})", hint="check the path of the file"
        ) from error


def read_palette_file(path: Path) -> tuple[tuple[Rgb, ...], tuple[str, ...]]:
    """Colours, and names where every line has one, from a JSON list of [r, g, b] or lines 'R G B [name]'.

    One entry an id, in the order of the ids; '#' starts a comment. Raises ConfigError.
    """
    text = read_utf8(path, "palette")
    entries = _json_entries(path, text) if text.lstrip().startswith("[") else _line_entries(text)
    colors: list[Rgb] = []
    for where, entry in entries:
        red, green, blue = (_part(part) for part in (*entry[:3], *[None] * 3)[:3])
        if red is None or green is None or blue is None:
            raise ConfigError(
                f"`palette`: {path}, {where}: {_shown(entry)} does not begin with three whole numbers in 0..255"
            )
        colors.append((red, green, blue))
    if not colors:
        raise ConfigError(f"`palette`: {path} has no colours", hint="lines of 'R G B name', or JSON [[r, g, b], ...]")
    names = tuple(" ".join(map(str, entry[3:])) for _, entry in entries)
    for (where, _), name in zip(entries, names, strict=True):
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise ConfigError(
                f"`palette`: {path}, {where}: {_shown(name)} is not a name; allowed are {_MAX_NAME} printable"
                " characters"
            )
    return tuple(colors), names if all(names) else ()


def _part(value: Any) -> int | None:
    """A part of a colour, of JSON or of a line; None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= 255 else None


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json_entries(path: Path, text: str) -> list[tuple[str, list[Any]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"`palette`: {path} is not valid JSON ({reason_of(error)})") from error
    return [(f"entry {n}", entry if isinstance(entry, list) else [entry]) for n, entry in enumerate(value)]


def _line_entries(text: str) -> list[tuple[str, list[Any]]]:
    lines = [(f"line {n}", line.split("#")[0].replace(",", " ").split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(where, parts) for where, parts in lines if parts]
