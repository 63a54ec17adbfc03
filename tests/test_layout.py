"""The house stays easy to live in: few parameters, files of readable length, tests where one looks for them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "spade_deploy"
TESTS = ROOT / "tests"
MAX_PARAMETERS = 8
MAX_LINES = 300
OWN_FOLDERS = {"benchmarks", "deploy", "docs", "examples", "fuzz", "golden", "kills", "support"}
"""Folders of tests that are about no folder of the package."""


def crowded(source: str) -> Iterator[tuple[str, int]]:
    """The functions of a module that take too many parameters, and how many."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                yield node.name, count


def test_no_function_takes_more_than_eight_parameters() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": n
        for path in PACKAGE.rglob("*.py")
        for name, n in crowded(path.read_text())
    }
    assert found == {}


def test_too_many_parameters_are_noticed() -> None:
    assert list(crowded("class A:\n  def f(self, a, b, c, d, *, e, f, g, h): ...\n")) == []
    assert list(crowded("class A:\n  def f(self, a, b, c, d, *, e, f, g, h, i): ...\n")) == [("f", 9)]


def test_every_long_file_has_its_reason_in_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([\w/]+\.py)`", text[text.index("**Longer than 300 lines**") :]))
    long = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert listed == long


def test_tests_are_the_tree_of_the_package() -> None:
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS)
        if folder.parts and folder.parts[0] not in OWN_FOLDERS:
            assert (PACKAGE / folder / "__init__.py").is_file(), f"{path}: the package has no such folder"


def test_helpers_of_tests_are_in_support() -> None:
    for path in TESTS.rglob("*.py"):
        top = path.relative_to(TESTS).parts[0]
        if not path.name.startswith("test_") and top not in OWN_FOLDERS:
            assert path.name in ("conftest.py", "__init__.py"), f"{path} belongs into tests/support"
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (conftest|test_\w+)\b", source, flags=re.MULTILINE), path


@pytest.mark.parametrize("name", ["utils", "helpers", "misc", "common"])
def test_no_module_is_named_after_nothing(name: str) -> None:
    assert not list(PACKAGE.rglob(f"{name}.py"))
