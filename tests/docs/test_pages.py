"""Every link, picture and `spade` command line of every page: it leads somewhere, it is used, its flags exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from spade_deploy.cli import app
from tests.support.paths import ROOT

PAGES = (
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code, where brackets are no links and `#` begins a comment."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(page: Path, link: str) -> bool:
    if link.startswith("https://"):
        return False
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    return not target.exists() or (bool(anchor) and anchor not in anchors(target))


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in LINK.findall(prose(page))]
    assert len(links) > 150
    assert [f"{page.name}: {link}" for page, link in links if leads_nowhere(page, link)] == []


@pytest.mark.parametrize("link", ["nothing.md", "training.md#nothing", "#nothing", "images/nothing.png"])
def test_a_link_that_leads_nowhere_is_seen(link: str) -> None:
    assert leads_nowhere(ROOT / "docs" / "cpu.md", link)


def test_every_picture_is_on_a_page() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in LINK.findall(prose(page))}
    kept = {path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()}
    assert sorted(path.name for path in kept - shown) == []


def command_lines(text: str) -> list[str]:
    """The `spade ...` lines of a page's blocks, continued ones joined, and those in its sentences."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(found.split()) for found in re.findall(r"`(spade [^`]+)`", sentences)]
    return [re.split(r"\s#|\s[|>]\s", line)[0] for line in lines if re.match(r"spade( |$)", line)]


def problem_with(line: str) -> str | None:
    """What is wrong with the names of command and flags in a line; its values may stand for others (`N`, `DIR`)."""
    words = shlex.split(line)[1:]
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) and hasattr(command, "commands"):
        return f"{line}: no command {words[0]}"
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flags |= {"--json", "--quiet", "--log-file", "--help", "-h"}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in flags]
    return f"{line}: {unknown}" if unknown else None


def test_commands_and_flags_exist() -> None:
    lines = [line for page in PAGES if page.name != "CHANGELOG.md" for line in command_lines(page.read_text("utf-8"))]
    assert len(lines) > 150
    assert [problem for problem in map(problem_with, lines) if problem] == []


@pytest.mark.parametrize(
    "line",
    ["spade trian", "spade train --fast", "spade runs compare A B --style", "spade data mars OUT", "spade infer -z"],
)
def test_a_command_that_does_not_exist_is_seen(line: str) -> None:
    assert problem_with(line)
