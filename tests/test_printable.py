"""What others wrote is shown as what it is, and never obeyed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from spade_deploy.files.atomic import write_text
from spade_deploy.pages import render as pages
from spade_deploy.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # the same in one character (C1)
        ("a\rb\x08\x7f", r"a\rb\x08\x7f"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\u2066x\u2069\u200f", r"\u2066x\u2069\u200f"),
        ("\ufeffa\u2028b", r"\ufeffa\u2028b"),
        ("\U000e0041", r"\U000e0041"),
        (os.fsdecode(b"b\xff.png"), r"b\xff.png"),
        ("\ud800", r"\ud800"),
        ("[/red] :smile: 漢字 é ü 😀 \\", "[/red] :smile: 漢字 é ü 😀 \\"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_the_rest_is_not(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode("utf-8")


def test_a_name_is_one_line() -> None:
    assert one_line("a\nerror: b\tc") == r"a\nerror: b\tc"


def test_every_character_can_be_printed() -> None:
    text = printable("".join(map(chr, range(sys.maxunicode + 1))))
    text.encode("utf-8")
    assert not any(character for character in text if ord(character) in (*range(9), *range(11, 32), *range(127, 160)))


def test_pages_show_names_as_the_terminal_does(tmp_path: Path) -> None:
    """And can be written: a name that is no UTF-8 would end in an error."""
    pytest.importorskip("jinja2")
    facts = [("model", os.fsdecode(b"b\xff") + "\x1b[31m\u202e <script>")]
    page = pages.render(
        "gallery.html.j2", title="t", lead="l", facts=facts, legend=[], rows=[], samples=[], plot="", credits=""
    )
    write_text(tmp_path / "index.html", page)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert r"b\xff\x1b[31m\u202e &lt;script&gt;" in text
