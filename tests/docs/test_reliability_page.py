"""docs/reliability.md names tests and bounds; they are there, and they are these."""

from __future__ import annotations

import re

from tests.fuzz import watch
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 10
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_bounds_are_those_of_the_fuzz() -> None:
    assert watch.MAX_GROWTH_BYTES == 1.5 * 2**30
    assert "| memory | 1.5 GiB in addition to what the process had before |" in PAGE
    assert f"| time | {watch.CPU_LIMIT_S:.0f} s of computing, {watch.BLOCKED_LIMIT_S:.0f} s of waiting |" in PAGE
    assert f"| a message, a hint | under {watch.MAX_MESSAGE} characters" in PAGE


def test_the_readme_leads_to_the_page() -> None:
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
