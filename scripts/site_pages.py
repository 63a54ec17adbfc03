"""Hooks of mkdocs.yml: pages from outside of docs/, the page of the Python API, and links that work on both sides.

A page links to other files of the repository as the repository's own viewer wants it. On the site such a link leads to
the page that is made of the file, or to a copy of the file; a link that leads nowhere is left as it is, and the strict
build fails on it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

import spade_deploy

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "benchmarks/README.md": "benchmarks/README.md",
}
"""Pages outside of docs/ by their place in the repository, and their place on the site."""

API = "reference/api.md"

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[^)]*)?\))")


def on_config(config: Any) -> Any:
    """Give pages that mkdocs.yml does not place a place of their own, so that none is lost."""
    placed = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    left = [page for page in pages if page not in placed]
    if left:
        config.nav.append({"More": left})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside, the page of the API, and every file that a page links to."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, API, content=api_page()))
    for page in [file for file in files if file.is_documentation_page()]:
        if page.src_uri != API:
            for target in _linked(_source_of(page.src_uri)):
                if files.get_file_from_path(_place_of(target)) is None:
                    files.append(File.generated(config, _place_of(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    if page.file.src_uri == API:
        return markdown
    source, here = _source_of(page.file.src_uri), PurePosixPath(page.file.src_uri).parent.as_posix()

    def changed(match: re.Match[str]) -> str:
        target = _target(source, match[2])
        return match[0] if target is None else f"{match[1]}{relpath(_place_of(target), here)}{match[3]}"

    return _LINK.sub(changed, markdown)


def api_page() -> str:
    """The names of the public API, each with what its docstring says."""
    head = f"# Python API\n\n{(spade_deploy.__doc__ or '').strip()}\n"
    names = sorted(spade_deploy.__all__, key=str.lower)
    return head + "".join(f"\n::: {_home(name)}.{name}\n" for name in names if name != "__version__")


def _home(name: str) -> str:
    """The module in which a public name is defined."""
    return str(getattr(getattr(spade_deploy, name), "__module__", "spade_deploy"))


def _source_of(place: str) -> str:
    """The place in the repository of a page of the site."""
    return next((source for source, found in OUTSIDE.items() if found == place), f"docs/{place}")


def _place_of(source: str) -> str:
    """The place on the site of a file of the repository."""
    return OUTSIDE.get(source, source.removeprefix("docs/"))


def _target(source: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to; None if there is none."""
    found = normpath((PurePosixPath(source).parent / link).as_posix())
    if (ROOT / found).is_dir():
        found = f"{found}/README.md"
    return found if not found.startswith("..") and (ROOT / found).is_file() else None


def _linked(source: str) -> set[str]:
    text = (ROOT / source).read_text(encoding="utf-8")
    return {found for match in _LINK.finditer(text) if (found := _target(source, match[2])) is not None}
