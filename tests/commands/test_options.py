"""Commands that are made from request dataclasses: what typer shows, what a handler gets, what errors name."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import RunsFolder, command
from spade_deploy.errors import ConfigError
from spade_deploy.settings import asked_of, check_ranges, setting


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def parse_pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    if not second.isdigit():
        raise ConfigError(f"`size`: {text} is not AxB")
    return int(first), int(second)


@dataclass(frozen=True)
class Inner:
    colour: Colour = setting(Colour.RED, help="Its colour.", group="Looks")
    size: tuple[int, int] | None = setting(None, help="AxB.", parse=parse_pair, flag="inner-size")
    hidden: int = 7


@dataclass(frozen=True)
class Network:
    channels: int = setting(64, help="Its width.", least=1, most=1024)
    is_fast: bool = setting(True, help="Fast or not.", flag="fast", negatable=True)


@dataclass(frozen=True, kw_only=True)
class Request:
    source: Path = setting(help="What is read.", argument=True)
    names: tuple[str, ...] = setting((), help="May be repeated.", flag="name")
    inner: Inner = field(default_factory=Inner)
    asked: Mapping[str, Any] = asked_of(Network)
    count: int = setting(3, help="How many.", least=1, most=9, after="source")
    loud: bool = setting(False, help="Loudly.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.loud and self.inner.hidden == 0:
            raise ConfigError("`loud` contradicts `inner.hidden`")


@dataclass
class Done:
    """What came of a command line."""

    got: list[Any] = field(default_factory=list)
    code: int = 0
    text: str = ""
    error: ConfigError | None = None


def run(*arguments: str) -> Done:
    done = Done()

    @command("try", requests=lambda: (Request, RunsFolder), flags={"odd": "--even"})
    def handler(asked: Request, place: RunsFolder) -> None:
        """Try it."""
        done.got.extend((asked, place))

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        try:
            TyperGroup(name="top", commands={"try": handler}).main(["try", *arguments])
        except SystemExit as ended:
            done.code = int(ended.code or 0)
        except ConfigError as error:
            done.error = error
    done.text = out.getvalue()
    return done


def test_what_is_typed_arrives_in_the_request() -> None:
    typed = ["in", "--name", "a", "--name", "b", "--colour", "blue", "--inner-size", "3x4", "--no-fast", "--runs", "r"]
    done = run(*typed, "--count", "9", "--loud")
    assert done.code == 0
    asked, place = done.got
    assert asked == Request(
        source=Path("in"),
        names=("a", "b"),
        inner=Inner(Colour.BLUE, (3, 4)),
        asked={"is_fast": False},
        count=9,
        loud=True,
    )
    assert place == RunsFolder(Path("r"))


def test_what_is_not_typed_is_the_default_or_not_asked() -> None:
    asked, place = run("in").got
    assert asked == Request(source=Path("in"))
    assert asked.asked == {}
    assert place.runs == Path("runs")


def test_the_help_has_groups_defaults_and_order() -> None:
    text = run("--help").text
    for part in (
        "Try it.",
        "How many.",
        "What is read.",
        "Looks",
        "--colour red|blue",
        "[default: red]",
        "--fast",
        "--no-fast",
        "[default: 3]",
    ):
        assert part in text, part
    assert re.search(r"^  --fast, --no-fast +\S", text, re.MULTILINE)
    assert "64" not in text, "what is only asked for has no default"
    assert [*re.findall(r"--(count|name|inner-size|channels|loud|runs)\b", text)] == [
        *("count", "name", "inner-size", "channels", "loud", "runs")
    ]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("in", "--count", "10"), "`count`: 10 is not in 1..9"),
        (("in", "--inner-size", "3"), "`inner_size`: 3 is not AxB"),
    ],
)
def test_an_error_names_the_field_and_is_shown_with_the_flag(typed: tuple[str, ...], message: str) -> None:
    error = run(*typed).error
    assert error is not None
    assert error.message == message
    assert in_flags(error.message) == message.replace("`count`", "--count").replace("`inner_size`", "--inner-size")


def test_flags_of_fields_of_their_own_names_and_of_extras() -> None:
    run("in")
    told = (
        "`is_fast` and `fast`, `no_fast`; `asked.channels`, `channels`; `odd`; `source`; `spade try --name`; `doctor`"
    )
    assert in_flags(told) == (
        "--fast and --fast, --no-fast; --channels, --channels; --even; SOURCE; `spade try --name`; `doctor`"
    )
    assert in_flags("`count`", {"count": "--number"}) == "--number"


def test_a_usage_error_is_typer_s() -> None:
    done = run("in", "--colour", "green")
    assert done.code == 2
    assert "--colour" in done.text
    assert done.got == []
