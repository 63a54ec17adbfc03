"""Damage of JSON files field by field, and of their text."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from .bytes_damage import damage_bytes

# What json.dumps cannot write is put in afterwards, in place of these texts.
_RAW = {
    "@@HUGE@@": "9" * 5000,
    "@@NEGATIVE HUGE@@": "-" + "9" * 400,
    "@@E999@@": "1e999",
    "@@NAN@@": "NaN",
    "@@INFINITY@@": "-Infinity",
    "@@DEEP LIST@@": "[" * 100_000 + "]" * 100_000,
    "@@DEEP OBJECT@@": '{"a":' * 50_000 + "0" + "}" * 50_000,
    "@@SURROGATE@@": '"\\ud800"',
    "@@MINUS ZERO@@": "-0",
}
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -1.5,
    1e308,
    "",
    "0",
    "x",
    "y" * 100_000,
    "é" * 300,
    "名" * 100,
    "\x00",
    "a\x1b[31mred\x1b[0m\r\nb",
    "\u202eright to left\u2028",
    "[/red] [bold]markup[/]",
    "%s %n {0} {name}",
    "../x",
    "../../../../tmp/x",
    "/etc/passwd",
    "/dev/zero",
    "C:\\x",
    "a/b",
    ".hidden",
    ".",
    "x" * 255 + ".onnx",
    "0" * 64,
    "f" * 64,
    [],
    {},
    [0],
    [[]],
    ["x"] * 5000,
    [None],
    [1, 2],
    {"": 0},
    {"a": {"b": {"c": []}}},
    list(range(1000)),
    {str(n): n for n in range(2000)},
    *_RAW,
)


def damage_json(
    rng: random.Random, value: Any, seal: Callable[[dict[str, Any]], None] | None = None
) -> tuple[bytes, str]:
    """A JSON file of `value` with one to three fields damaged, or its text.

    seal: called with the damaged object before it is written, to make digests in it right again.
    """
    if rng.random() < 0.2:
        return _damaged_text(rng, value)
    value = copy.deepcopy(value)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, what = _damaged_field(rng, value)
        said.append(what)
    if seal is not None and isinstance(value, dict):
        try:
            seal(value)
        except (ValueError, TypeError, RecursionError, OverflowError):
            said.append("no digest can be made of it")
    return _written(value), "; ".join(said)


def _damaged_field(rng: random.Random, value: Any) -> tuple[Any, str]:
    places = list(_places(value))
    if not places:
        return rng.choice(ODD), "another value altogether"
    # Fields near the top decide more than the many below: choose a depth, then a place.
    depth = rng.choice(sorted({len(place) for place in places}))
    place = rng.choice([place for place in places if len(place) == depth])
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    key, path = place[-1], "/".join(map(str, place))[:120]
    kind = rng.choice(("odd", "odd", "odd", "odd", "near", "delete", "rename", "swap", "wrap", "grow", "twice"))
    if kind == "odd":
        new = copy.deepcopy(rng.choice(ODD))
        owner[key] = new
        return value, f"{path} = {str(new)[:60]!r}"
    if kind == "near":
        owner[key] = _near(rng, owner[key])
        return value, f"{path} = {str(owner[key])[:60]!r}"
    if kind == "delete":
        del owner[key]
        return value, f"{path} is missing"
    if kind == "rename" and isinstance(owner, dict):
        new = rng.choice(
            ("", "../x", "/etc/passwd", "\x1b[31m", "@@SURROGATE@@"[2:-2], "名" * 80, str(key) + " ", "x" * 5000)
        )
        owner[new] = owner.pop(key)
        return value, f"{path} is called {new[:40]!r}"
    if kind == "swap":
        other = rng.choice(places)
        target = value
        for part in other[:-1]:
            target = target[part]
        if other[: len(place)] != place and place[: len(other)] != other:
            owner[key], target[other[-1]] = target[other[-1]], owner[key]
            return value, f"{path} and {'/'.join(map(str, other))[:80]} swapped"
        return value, "unchanged"
    if kind == "wrap":
        owner[key] = rng.choice(([owner[key]], {"value": owner[key]}, str(owner[key])[:1000], [owner[key]] * 3))
        return value, f"{path} wrapped as {type(owner[key]).__name__}"
    if kind == "grow" and isinstance(owner[key], (list, dict)):
        entry = owner[key]
        if isinstance(entry, list):
            owner[key] = entry * rng.choice((2, 50, 2000)) if entry else [None] * 10
        else:
            entry[rng.choice(("", "extra", "__class__", "../x"))] = rng.choice(ODD)
        return value, f"{path} has more entries"
    if kind == "twice" and isinstance(owner, dict):
        owner[f"@@TWICE@@{key}"] = rng.choice((None, 0, "x", [], owner[key]))
        return value, f"{path} is there twice"
    owner[key] = None
    return value, f"{path} = null"


def _near(rng: random.Random, value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, value ^ 1, 0, value << 40))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e6, 0.0, value + 1, 1e-320))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), value[::-1], value * 20, " " + value, value + "\n"))
    if isinstance(value, list):
        return rng.choice((value[:-1], value[::-1], value * 2, value[:1]))
    if isinstance(value, dict):
        return dict(list(value.items())[:-1])
    return 0


def _places(value: Any, above: tuple[Any, ...] = ()) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for count, (key, entry) in enumerate(entries):
        if count == 200:
            return
        yield (*above, key)
        if len(above) < 8:
            yield from _places(entry, (*above, key))


def _written(value: Any) -> bytes:
    text = json.dumps(value, indent=1)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.replace('"@@TWICE@@', '"').encode()


def _damaged_text(rng: random.Random, value: Any) -> tuple[bytes, str]:
    text = json.dumps(value, indent=1)
    kind = rng.choice(
        ("bytes", "bytes", "bytes", "bom", "utf-16", "latin-1", "empty", "comma", "more", "nul", "large", "deep")
    )
    if kind == "bytes":
        return damage_bytes(rng, text.encode())
    if kind == "bom":
        return b"\xef\xbb\xbf" + text.encode(), "a byte order mark"
    if kind == "utf-16":
        return text.encode("utf-16"), "UTF-16"
    if kind == "latin-1":
        return text.replace("e", "\xe9", 3).encode("latin-1"), "Latin-1"
    if kind == "empty":
        return rng.choice((b"", b"\n", b"null", b"[]", b"0", b'"text"', b"{}", b"{" * 200_000)), "nearly nothing"
    if kind == "comma":
        return text.replace("\n}", ",\n}").encode(), "a comma too many"
    if kind == "more":
        return (text + text).encode(), "twice in one file"
    if kind == "nul":
        return text.encode() + b"\x00" * 10, "zeros at its end"
    if kind == "large":
        return text.encode() + b" " * rng.choice((1 << 20, 17 << 20, 65 << 20)), "many spaces at its end"
    return b"[" * 500_000 + text.encode(), "half a million brackets before it"
