"""The lines of a text or CSV file that names the classes of a data set: which part is the id, the name, the colour.

A first line of headings says it. Without one, all lines together do: a whole number in front of every name is its id.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError, quoted

_NAMES = frozenset({"name", "names", "class", "classes", "label", "labels", "class_name", "category"})
_IDS = frozenset({"id", "idx", "index", "class_id", "label_id"})
_COLORS = frozenset({"color", "colour", "hex", "rgb"})
_CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))
_COMMENT = re.compile(r"(^|\s)#(?![0-9a-fA-F]{6}(\W|$)).*")  # the colour '#80ff00' is no comment
_CVAT = re.compile(r"(?P<name>.+?):\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*(:.*)?")
_HEX = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class ClassLine:
    """A class as a line of a file has it."""

    where: str
    """Which line it is."""
    name: str | None = None
    """Its name."""
    color: list[str] | str | None = None
    """Its colour as it is written: three numbers, or '#80ff00'."""
    number: int | None = None
    """Its id; None if the order of the lines is that of the ids."""


def class_lines(path: Path, text: str, forms: str) -> list[ClassLine]:
    """The classes of a text. forms: what is known, for errors. Raises ConfigError, which names the line."""
    lines = [(f"line {n}", _COMMENT.sub("", line).strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(where, line) for where, line in lines if line]
    headings = [cell.lower() for cell in _cells(lines[0][1])] if lines else []
    if _are_headings(headings, is_alone=len(lines) == 1):
        rows = [(where, _cells(line)) for where, line in lines[1:]]
        if _IDS & {*headings} or all(len(cells) == len(headings) for _, cells in rows):
            return [_by_headings(path, where, headings, cells) for where, cells in rows]
        lines = lines[1:]  # names of several words between blanks
    return [_by_pattern(path, where, number, rest, forms) for where, number, rest in _with_ids(lines)]


def _with_ids(lines: Sequence[tuple[str, str]]) -> list[tuple[str, int | None, str]]:
    """The lines, divided into id and rest if every one of them begins with an id of its own.

    A number before a name is one; before three other numbers it is one if these ids count from 0 or 1, as it might be
    the red of a colour.
    """
    split = [(where, re.fullmatch(r"(\d{1,5})\s*[:,;\s]\s*(.+)", line)) for where, line in lines]
    with_ids = [(where, int(found[1]), found[2]) for where, found in split if found is not None]
    numbers = {number for _, number, _ in with_ids}
    behind = {_leading_numbers(rest) for _, _, rest in with_ids}
    counts = sorted(numbers) in ([*range(len(lines))], [*range(1, len(lines) + 1)])
    if len(numbers) == len(lines) and (behind == {0} or (behind == {3} and counts)):
        return [*with_ids]
    return [(where, None, line) for where, line in lines]


def _leading_numbers(text: str) -> int:
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    return next((index for index, part in enumerate(parts) if not part.isdigit()), len(parts))


def _cells(line: str) -> list[str]:
    """The cells of a line: between tabs, semicolons or commas where there are any, else between blanks."""
    delimiter = next((mark for mark in "\t;," if mark in line), None)
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _are_headings(cells: Sequence[str], *, is_alone: bool) -> bool:
    if any(all(channel in cells for channel in channels) for channels in _CHANNELS):
        return True
    if not _NAMES & {*cells} or is_alone:
        return False
    return len(cells) == 1 or bool((_IDS | _COLORS) & {*cells})


def _by_headings(path: Path, where: str, headings: Sequence[str], cells: Sequence[str]) -> ClassLine:
    if len(cells) != len(headings):
        raise ConfigError(
            f"`classes`: {path}, {where}: has {len(cells)} columns, and the first line has {len(headings)}",
            hint="separate the columns by commas, and put names with a comma in quotes",
        )
    row = dict(zip(headings, cells, strict=True))
    name = next((row[key] for key in headings if key in _NAMES and row[key]), None)
    color: list[str] | str | None = next((row[key] for key in headings if key in _COLORS), None)
    for channels in _CHANNELS:
        if all(channel in row for channel in channels):
            color = [row[channel] for channel in channels]
    if isinstance(color, str) and not _HEX.fullmatch(color) and len(parts := re.findall(r"[^\s,;()\[\]]+", color)) == 3:
        color = parts
    number = next((row[key] for key in headings if key in _IDS), None)
    if number is not None and not re.fullmatch(r"\d{1,5}", number):
        raise ConfigError(f"`classes`: {path}, {where}: {quoted(number)} is not an id", hint="give a whole number")
    return ClassLine(where, name, color, None if number is None else int(number))


def _by_pattern(path: Path, where: str, number: int | None, line: str, forms: str) -> ClassLine:
    """'R G B name', 'name,R,G,B', 'name #80ff00', CVAT's 'name:R,G,B::', or a name alone."""
    if found := _CVAT.fullmatch(line):
        return ClassLine(where, found["name"].strip(), [found["r"], found["g"], found["b"]], number)
    cells = _cells(line) if '"' in line else [part for part in re.split(r"[,;\s]+", line) if part]
    if len(cells) >= 3 and all(part.isdigit() for part in cells[:3]):
        return ClassLine(where, " ".join(cells[3:]) or None, cells[:3], number)
    if len(cells) > 3 and all(part.isdigit() for part in cells[-3:]):
        return ClassLine(where, " ".join(cells[:-3]), cells[-3:], number)
    if len(cells) > 1 and _HEX.fullmatch(cells[-1]):
        return ClassLine(where, " ".join(cells[:-1]), cells[-1], number)
    if re.search(r"[,;:]\s*#?\d", line):
        raise ConfigError(
            f"`classes`: {path}, {where}: {quoted(line)} is neither a name nor a name and a colour",
            hint=f"known are {forms}",
        )
    return ClassLine(where, cells[0] if len(cells) == 1 else line, None, number)
