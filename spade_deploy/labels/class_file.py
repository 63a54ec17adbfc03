"""A file that names the classes of one's own data set and gives their colours, in the forms that such files come in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, quoted, reason_of
from spade_deploy.labels.class_lines import class_lines
from spade_deploy.labels.palette_file import read_utf8
from spade_deploy.spec import LabelSpec, Rgb

MAX_CLASSES = 4097
"""The most classes that a file may have: 4096 labels, and the one of unknown pixels."""
MAX_NAME = 80

FORMS = (
    "lines 'R G B name', 'name,R,G,B' or 'id name', CVAT's labelmap.txt, a JSON list of names, of colours or of"
    ' {"name", "color"}, or a data.yaml with names'
)
_FREE_COLORS: tuple[Rgb, ...] = ((0, 0, 0), (255, 255, 255), (224, 224, 192), (128, 128, 128))
"""Colours for unknown pixels, of which the first that no class has is taken."""


@dataclass(frozen=True)
class Classes:
    """The classes in the order of their ids."""

    names: tuple[str, ...]
    """Their names; empty if the file has none."""
    palette: tuple[Rgb, ...]
    """Their colours; empty if the file has none."""

    def __len__(self) -> int:
        return max(len(self.names), len(self.palette))


def class_labels(
    path: Path,
    num_labels: int | None = None,
    *,
    has_dontcare: bool = False,
    has_edges: bool = False,
    ignore_id: int | None = None,
) -> LabelSpec:
    """The labels that a class file, and what is said beside it, stand for.

    Without `num_labels` the file decides their number. Its last class is that of unknown pixels where `num_labels` or
    `ignore_id` says so; otherwise that class is added, with the name and colour of `ignore_id`. Raises ConfigError.
    """
    classes = read_class_file(path)
    count = len(classes)
    has_dontcare = has_dontcare or ignore_id is not None
    if num_labels is None:
        num_labels = count - 1 if ignore_id == count - 1 and count > 1 else count
    if count not in (num_labels, num_labels + has_dontcare):
        more = f", or {num_labels + 1} with that of unknown pixels" if has_dontcare else ""
        raise ConfigError(
            f"`classes`: {path} has {count} classes, but `num_labels` is {num_labels}{more}",
            hint="leave `num_labels` out: the file says how many there are",
        )
    names, palette = classes.names, classes.palette
    if has_dontcare and count == num_labels:
        is_known = ignore_id is not None and ignore_id < count
        names = (*names, names[ignore_id or 0] if is_known else "unknown") if names else ()
        free = next((color for color in _FREE_COLORS if color not in palette), _FREE_COLORS[0])
        palette = (*palette, palette[ignore_id or 0] if is_known else free) if palette else ()
    return LabelSpec(num_labels, has_dontcare, has_edges, names, palette, ignore_id)


def own_labels(
    num_labels: int,
    *,
    has_dontcare: bool = False,
    has_edges: bool = False,
    ignore_id: int | None = None,
) -> LabelSpec:
    """The labels of a data set whose classes have no names. Raises ConfigError."""
    return LabelSpec(num_labels, has_dontcare or ignore_id is not None, has_edges, ignore_id=ignore_id)


def read_class_file(path: Path) -> Classes:
    """Read names and colours, in any of FORMS. Raises ConfigError, which names the file and the line or entry."""
    text = read_utf8(path, "classes")
    if path.suffix.lower() in (".yaml", ".yml"):
        entries = _of_value(path, _yaml(path, text))
    elif text.lstrip()[:1] in ("[", "{"):
        entries = _of_value(path, _json(path, text))
    else:
        entries = _of_lines(path, text)
    return _checked(path, entries)


_Entry = tuple[str, "str | None", "Rgb | None"]
"""Where a class stands in the file, its name and its colour."""


def _checked(path: Path, entries: Sequence[_Entry]) -> Classes:
    if not entries:
        raise ConfigError(f"`classes`: {path} has no classes", hint=f"known are {FORMS}")
    if len(entries) > MAX_CLASSES:
        raise ConfigError(f"`classes`: {path} has {len(entries)} classes; at most {MAX_CLASSES} are read")
    for what, index in (("name", 1), ("colour", 2)):
        without = [entry[0] for entry in entries if entry[index] is None]
        if without and len(without) < len(entries):
            raise ConfigError(
                f"`classes`: {path}, {without[0]}: this class has no {what}, others have", hint=f"give each a {what}"
            )
    for where, name, _ in entries:
        if name is not None and (not name.isprintable() or not 0 < len(name) <= MAX_NAME):
            raise ConfigError(
                f"`classes`: {path}, {where}: {quoted(name)} is not a name; allowed are 1 to {MAX_NAME} printable"
                " characters"
            )
    return Classes(
        tuple(name for _, name, _ in entries if name is not None),
        tuple(color for _, _, color in entries if color is not None),
    )


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"`classes`: {path} is not valid YAML ({reason_of(error)})") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"`classes`: {path} is not valid JSON ({reason_of(error)})") from error


def _of_value(path: Path, value: Any) -> list[_Entry]:
    """The classes in what a JSON or YAML file holds."""
    if isinstance(value, Mapping):
        if isinstance(value.get("categories"), list):  # as COCO's annotations have it
            return _of_value(path, value["categories"])
        if "names" in value:
            return _of_parts(path, value)
        for key in ("classes", "labels"):
            if isinstance(value.get(key), list | Mapping):
                return _of_value(path, value[key])
        # Name to id. One number alone, or the count of classes of a data.yaml without names, is another setting.
        if len(value) > 1 and "nc" not in value and all(type(number) is int for number in value.values()):
            return _in_order(path, [(_id(path, str(name), number), str(name)) for name, number in value.items()])
        if all(_is_id(key) for key in value):
            return _in_order(path, [(int(key), entry) for key, entry in value.items()])
        return [
            (f"class {quoted(str(name))}", str(name), _color(path, str(name), color)) for name, color in value.items()
        ]
    if not isinstance(value, list):
        raise ConfigError(f"`classes`: {path} has no list of classes", hint=f"known are {FORMS}")
    if value and all(isinstance(entry, Mapping) and _is_id(entry.get("id")) for entry in value):
        return _in_order(path, [(int(entry["id"]), entry) for entry in value])
    return [_entry(path, f"entry {number}", entry) for number, entry in enumerate(value, 1)]


def _of_parts(path: Path, value: Mapping[Any, Any]) -> list[_Entry]:
    """A mapping with `names`, as the data.yaml of YOLO has it, and perhaps with `colors` or `palette`."""
    entries = _of_value(path, value["names"])
    colors = next((value[key] for key in ("colors", "colours", "palette") if value.get(key) is not None), None)
    if colors is not None:
        if not isinstance(colors, list) or len(colors) != len(entries):
            count = len(colors) if isinstance(colors, list) else 0
            raise ConfigError(f"`classes`: {path} has {len(entries)} names and {count} colours; each class needs both")
        entries = [
            (where, name, _color(path, where, color)) for (where, name, _), color in zip(entries, colors, strict=True)
        ]
    if isinstance(value.get("nc"), int) and value["nc"] != len(entries):
        raise ConfigError(f"`classes`: {path} says nc: {value['nc']}, but names {len(entries)} classes")
    return entries


def _in_order(path: Path, found: Sequence[tuple[int, Any]]) -> list[_Entry]:
    """Classes that say their ids. An id that the file leaves out stands for no class and is filled."""
    return _filled(path, [(number, _entry(path, f"id {number}", entry)) for number, entry in found])


def _filled(path: Path, found: Sequence[tuple[int, _Entry]]) -> list[_Entry]:
    """Classes in the order of their ids, with those that stand for no class."""
    entries = dict(found)
    if len(entries) < len(found):
        raise ConfigError(f"`classes`: {path} has the same id twice", hint="give each class an id of its own")
    if max(entries, default=0) >= MAX_CLASSES:
        raise ConfigError(f"`classes`: {path} has the id {max(entries)}; allowed are 0..{MAX_CLASSES - 1}")
    has_names = any(name is not None for _, name, _ in entries.values())
    colors = {color for _, _, color in entries.values() if color is not None}
    # A colour that no class has, and no drawing program offers: no pixel should become such an id.
    unused = next((color for red in range(1, 256) if (color := (red, 0, 1)) not in colors), None) if colors else None
    return [
        entries.get(number, (f"id {number}", f"unused {number}" if has_names else None, unused))
        for number in range(max(entries, default=-1) + 1)
    ]


def _entry(path: Path, where: str, entry: Any) -> _Entry:
    """One class of a list: a name, [r, g, b], [r, g, b, name], or an object."""
    if isinstance(entry, str):
        return where, entry, None
    if isinstance(entry, list) and len(entry) >= 3:
        name = " ".join(map(str, entry[3:]))
        return where, name or None, _color(path, where, entry[:3])
    if isinstance(entry, Mapping):
        color = next((entry[key] for key in ("color", "colour", "rgb") if entry.get(key) is not None), None)
        named = entry.get("name")
        if isinstance(named, str) or (named is None and color is not None):
            return where, named, None if color is None else _color(path, where, color)
    hint = f"known are {FORMS}"
    if isinstance(entry, bool | int | float):  # YAML's reading of: yes, no, on, off, 3
        hint = 'put names such as "yes", "no" or "3" in quotes'
    raise ConfigError(f"`classes`: {path}, {where}: {quoted(entry)} is no class", hint=hint)


def _of_lines(path: Path, text: str) -> list[_Entry]:
    lines = class_lines(path, text, FORMS)
    entries = [
        (line.number, (line.where, line.name, None if line.color is None else _color(path, line.where, line.color)))
        for line in lines
    ]
    with_ids = [(number, entry) for number, entry in entries if number is not None]
    return _filled(path, with_ids) if with_ids else [entry for _, entry in entries]


def _color(path: Path, where: str, value: Any) -> Rgb:
    """A colour of three numbers or a text such as '#80ff00'."""
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        digits = value.removeprefix("#")
        return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
    if isinstance(value, list) and len(value) == 3:
        parts = [int(part) if isinstance(part, str) and re.fullmatch(r"\d{1,3}", part) else part for part in value]
        if all(type(part) is int and 0 <= part <= 255 for part in parts):
            return parts[0], parts[1], parts[2]
    raise ConfigError(
        f"`classes`: {path}, {where}: {quoted(value)} is not a colour: give three whole numbers in 0..255"
    )


def _id(path: Path, name: str, number: int) -> int:
    if number < 0:
        raise ConfigError(
            f"`classes`: {path}, class {quoted(name)}: {number} is not an id; allowed are 0..{MAX_CLASSES - 1}",
            hint="leave it out, and say which id means unknown with `ignore_id`",
        )
    return number


def _is_id(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (
        isinstance(value, str) and re.fullmatch(r"\d{1,4}", value) is not None
    )
