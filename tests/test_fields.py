"""JSON <-> dataclasses: what each annotation takes, and what is said of all else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.fields import Count, Rule, Sha256, chosen, digest_of, from_json, matching, to_json

Even = Annotated[int, Rule(lambda number: number % 2 == 0, "an even number")]
Name = Annotated[str, matching("[a-z]+", "small letters")]


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Part:
    name: Name
    size: Count = 0

    def __post_init__(self) -> None:
        if self.size > 100:
            raise ConfigError(f"part: {self.size} is more than 100")


@dataclass(frozen=True)
class Own:
    text: str

    def to_json(self) -> str:
        return f"<{self.text}>"

    @classmethod
    def from_json(cls, value: Any) -> Own:
        if not isinstance(value, str):
            raise ConfigError("own: no text", hint="give one")
        return cls(value.strip("<>"))


@dataclass(frozen=True)
class Whole:
    number: int
    share: float = 0.5
    flag: bool = False
    text: str = ""
    color: Color = Color.RED
    path: Path | None = None
    even: Even = 0
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    texts: list[str] | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    own: Own = Own("a")


FULL = Whole(
    7, 0.25, True, "t", Color.BLUE, Path("a/b"), 4, (3, 4), ("x", "y"), (Part("p", 1), Part("q")), ["z"], {"a": 1.5},
    {"deep": [1, {"x": None}]}, Own("o"),
)  # fmt: skip


@pytest.mark.parametrize("record", [Whole(1), FULL])
def test_what_is_written_is_read(record: Whole) -> None:
    value = json.loads(json.dumps(to_json(record)))
    assert value == to_json(record)
    assert from_json(Whole, value) == record
    assert list(value) == list(Whole.__dataclass_fields__)


def test_what_is_written_is_plain() -> None:
    value = to_json(FULL)
    assert (value["color"], type(value["color"])) == ("blue", str)
    assert (value["path"], value["pair"], value["own"]) == ("a/b", [3, 4], "<o>")
    assert value["parts"] == [{"name": "p", "size": 1}, {"name": "q", "size": 0}]


def test_a_whole_number_is_a_float_but_no_bool_is_a_number() -> None:
    found = from_json(Whole, {"number": 1, "share": 2})
    assert (found.share, type(found.share)) == (2.0, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "7"}, "it: number: '7' is of type str, not int"),
        ({"number": True}, "it: number: True is of type bool, not int"),
        ({"number": 1.0}, "it: number: 1.0 is of type float, not int"),
        ({"number": None}, "it: number: None is of type NoneType, not int"),
        ({"share": True}, "it: share: True is of type bool, not float"),
        ({"flag": 1}, "it: flag: 1 is of type int, not bool"),
        ({"text": ["a"]}, "it: text: ['a'] is of type list, not str"),
        ({"color": "green"}, "it: color 'green' is not one of red, blue"),
        ({"color": ["red"]}, "it: color ['red'] is not one of red, blue"),
        ({"path": 5}, "it: path: 5 is of type int, not str"),
        ({"even": 3}, "it: even is 3, not an even number"),
        ({"even": "4"}, "it: even: '4' is of type str, not int"),
        ({"pair": [1]}, "it: pair: [1] is not a list of 2"),
        ({"pair": [1, "2"]}, "it: pair[1]: '2' is of type str, not int"),
        ({"names": "ab"}, "it: names: 'ab' is of type str, not list"),
        ({"names": ["a", 2]}, "it: names[1]: 2 is of type int, not str"),
        ({"parts": [{"name": "p"}, {"size": 1}]}, "it: parts[1]: field 'name' is missing"),
        ({"parts": [{"name": "P"}]}, "it: parts[0]: name is 'P', not small letters"),
        ({"parts": [{"name": "p", "size": -1}]}, "it: parts[0]: size is -1, not a number from 0 on"),
        ({"parts": [{"name": "p", "age": 1}]}, "it: parts[0]: unknown field 'age'; known are name, size"),
        ({"parts": [{"name": "p", "size": 101}]}, "part: 101 is more than 100"),
        ({"texts": {}}, "it: texts: {} is of type dict, not list"),
        ({"sizes": {"a": "b"}}, "it: sizes: a: 'b' is of type str, not float"),
        ({"sizes": [1]}, "it: sizes: [1] is of type list, not dict"),
        ({"own": 3}, "it: own: own: no text"),
    ],
)
def test_what_is_wrong_is_named_and_quoted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(Whole, {"number": 1, **change}, "it")
    assert caught.value.message == message


def test_the_hint_of_a_part_stays() -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(Whole, {"number": 1, "own": 3})
    assert (caught.value.message, caught.value.hint) == ("own: own: no text", "give one")


def test_fields_that_are_missing_or_unknown() -> None:
    with pytest.raises(ConfigError, match=r"^field 'number' is missing$"):
        from_json(Whole, {})
    with pytest.raises(ConfigError, match=r"^Part: 5 is of type int, not dict$"):
        from_json(Part, 5)
    with pytest.raises(ConfigError, match=r"^unknown field 'new'; known are name, size$"):
        from_json(Part, {"name": "p", "new": 1})
    assert from_json(Part, {"name": "p", "new": 1}, ignore_unknown=True) == Part("p")
    inner = {"number": 1, "new": 1, "parts": [{"name": "p", "new": 2}]}
    assert from_json(Whole, inner, ignore_unknown=True).parts == (Part("p"),)


def test_what_is_quoted_is_short_and_printable() -> None:
    for hostile in ("y" * 10**6, "\x1b[31m\n", ["z" * 5000] * 500, {"\x1b" * 5000: 1}, 10**60):
        for value in ({"number": 1, "flag": hostile}, {"number": 1, "sizes": {str(hostile): "a"}}):
            with pytest.raises(ConfigError) as caught:
                from_json(Whole, value)
            assert len(caught.value.message) < 200
            assert not set(caught.value.message) & {"\x1b", "\n"}


def test_a_choice() -> None:
    assert chosen(Color, "blue", "`color`") is Color.BLUE
    for wrong in ("green", 1, None, ["blue"]):
        with pytest.raises(ConfigError, match=r"^`color` .* is not one of red, blue$"):
            chosen(Color, wrong, "`color`")


def test_a_digest_is_of_the_value_not_of_the_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})
    assert from_json(_Digest, {"sha256": digest_of(1)}).sha256 == digest_of(1)
    with pytest.raises(ConfigError, match="not a SHA-256"):
        from_json(_Digest, {"sha256": "A" * 64})


@dataclass(frozen=True)
class _Digest:
    sha256: Sha256
