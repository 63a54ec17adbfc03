"""Files, folders, modules and their names that pages, docstrings and comments speak of are there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "spade_deploy"
PAGES = (
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
"""CHANGELOG.md is history, and names what was there then."""
SOURCES = tuple(
    path for name in ("spade_deploy", "tests", "benchmarks", "scripts") for path in sorted((ROOT / name).rglob("*.py"))
)
FOREIGN = frozenset({"torch.py", "onnxruntime.py", "/openapi.json", "answer.json", "data.yaml", "serve.yaml"})
"""Files of others, which are spoken of: in the current folder the first would be imported instead of the packages. Then
what a server answers under that path, a method in JavaScript, the file in which YOLO names classes, and one that a
reader writes."""

FILE = re.compile(r"(?<![\w/.@-])[\w./*<>-]*[\w*>]\.(?:py|md|json|yaml|j2)\b")
FOLDER = re.compile(r"(?<![\w/.:-])(?:tests|benchmarks|docs|scripts|spade_deploy|examples|docker)/[\w./*<>-]*")
DOTTED = re.compile(r"(?<![\w.])spade_deploy(?:\.\w+)+")
IMPORT = re.compile(r"from (spade_deploy[\w.]*) import (\w+(?:, \w+)*)")
NAME_IN_FILE = re.compile(r"([\w./-]+\.py): (?:`?)([A-Za-z_]\w*)(?![\w:])")
ROLE = re.compile(r"`(\w+)\.(\w+)(?:\([^`]*\))?`")


ENDINGS = frozenset(
    {"py", "md", "json", "jsonl", "yaml", "j2", "npy", "npz", "onnx", "html", "png", "txt", "toml", "jpg", "csv"}
)


@dataclass(frozen=True)
class Text:
    """Some prose of a file."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@cache
def texts() -> tuple[Text, ...]:
    """All pages, docstrings and comments."""
    return tuple(text for path in (*PAGES, *SOURCES) for text in texts_of(path))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def texts_of(path: Path) -> Iterator[Text]:
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from (Text(path, number, line) for number, line in enumerate(source.splitlines(), start=1))
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string)
    for node in nodes_of(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Text(path, node.lineno, node.value.value)


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a module defines or imports at its top, under conditions as well."""
    found: set[str] = set()
    waiting: list[ast.AST] = [nodes_of(path)[0]]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
            elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
                waiting.append(node)
    return frozenset(found)


@cache
def members() -> frozenset[str]:
    """Every method, field and attribute of a class of the package: what may follow the name of an object."""
    found: set[str] = set()
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef):
                        found.add(part.name)
                    elif isinstance(part, ast.AnnAssign | ast.Assign):
                        targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                        found.update(target.id for target in targets if isinstance(target, ast.Name))
                        found.update(target.attr for target in targets if isinstance(target, ast.Attribute))
    return frozenset(found)


@cache
def literals(path: Path) -> frozenset[str]:
    """The strings of a source that may be names of files, without their folders."""
    texts = (node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return frozenset(text.rpartition("/")[2] for text in texts if len(text) < 80)


def is_written(name: str, said: Path) -> bool:
    """Whether the package, or the file that speaks of it, writes or reads a file of this name."""
    sources = [source for source in SOURCES if PACKAGE in source.parents or source == said]
    return any(name.rpartition("/")[2] in literals(source) for source in sources)


def is_there(name: str, said: Path) -> bool:
    """Whether a path exists, seen from the root, the package, or the folder of the file that speaks of it."""
    name = name.rstrip("/.")
    if name in FOREIGN or (not name.endswith((".py", ".md")) and is_written(name, said)):
        return True
    pattern = re.sub(r"<[^>]*>", "*", name)
    folders = (ROOT, PACKAGE, said.parent)
    if re.search(r"[A-Z]{2,}", pattern.rpartition("/")[2]) and not pattern.endswith(".md"):
        # gpu-CARD.json: a word in capitals stands for something, and the folder is to be there.
        return any((folder / pattern).parent.is_dir() for folder in folders)
    if "*" in pattern:
        return any(any(folder.glob(pattern)) for folder in folders)
    return any((folder / pattern).exists() for folder in folders)


def module_of(dotted: str) -> tuple[Path | None, list[str]]:
    """The file of the longest module that a dotted name begins with, and the names that follow."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py"), parts[count:]
        if (place / "__init__.py").is_file():
            return place / "__init__.py", parts[count:]
    return None, parts


def resolves(dotted: str) -> bool:
    module, rest = module_of(dotted)
    return module is not None and (not rest or rest[0] in names_in(module))


def test_files_and_folders_are_there() -> None:
    missing = [
        f"{text}: {name}"
        for text in texts()
        for name in sorted({found.rstrip("/.") for pattern in (FILE, FOLDER) for found in pattern.findall(text.text)})
        if not is_there(name, text.path)
    ]
    assert not missing, "\n".join(missing)


def test_modules_and_their_names_are_there() -> None:
    missing = [f"{text}: {name}" for text in texts() for name in DOTTED.findall(text.text) if not resolves(name)]
    assert not missing, "\n".join(missing)


def test_names_after_a_file_are_in_it() -> None:
    """`labels/pairs.py: read_maps`."""
    missing = []
    for text in texts():
        for file, name in NAME_IN_FILE.findall(text.text):
            found = [folder / file for folder in (ROOT, PACKAGE, text.path.parent) if (folder / file).is_file()]
            if "_" in name and found and not any(name in names_in(path) for path in found):
                missing.append(f"{text}: {file}: {name}")
    assert not missing, "\n".join(missing)


def test_what_is_imported_in_pages_and_scripts_inside_strings_is_there() -> None:
    missing = []
    for path in (*PAGES, *SOURCES):
        for module, names in IMPORT.findall(path.read_text(encoding="utf-8")):
            missing += [
                f"{path.relative_to(ROOT)}: from {module} import {name}"
                for name in names.split(", ")
                if not resolves(f"{module}.{name}")
            ]
    assert not missing, "\n".join(missing)


def test_names_of_a_module_in_backticks_are_in_it() -> None:
    """`tolerances.is_undecided`: where the first part is a module of the package, the second is in it."""
    modules: dict[str, list[Path]] = {}
    homes: dict[str, set[str]] = {}
    for path in SOURCES:
        if PACKAGE in path.parents:
            stem = path.parent.name if path.name == "__init__.py" else path.stem
            modules.setdefault(stem, []).append(path)
            for name in names_in(path):
                homes.setdefault(name, set()).add(stem)
    wrong = []
    for text in texts():
        for module, name in ROLE.findall(text.text):
            if module in modules:
                is_right = any(name in names_in(path) for path in modules[module]) or name in members()
            else:  # a name of the package alone, said of another module
                is_right = "_" not in name or name not in homes or name in members()
            if not is_right and name not in ENDINGS:
                wrong.append(f"{text}: {module}.{name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("tests/docs/test_named_paths.py", True),
        ("tests/test_named_paths.py", False),
        ("test_readme.py", True),
        ("labels/pairs.py", True),
        ("labels/nothing.py", False),
        ("benchmarks/results/peers-*.json", True),
        ("benchmarks/results/nothing-*.json", False),
        ("benchmarks/results/gpu-CARD.json", True),
        ("nowhere/gpu-CARD.json", False),
        ("manifest.json", True),
        ("manifests.json", False),
    ],
)
def test_the_search_finds_what_is_gone(text: str, is_right: bool) -> None:
    found = [name for pattern in (FILE, FOLDER) for name in pattern.findall(f"see `{text}`.")]
    assert found
    said = Path(__file__) if text == "test_readme.py" else ROOT / "README.md"
    assert all(is_there(name, said) for name in found) is is_right
    assert resolves("spade_deploy.labels.pairs.read_maps")
    assert not resolves("spade_deploy.labels.pairs.nothing")
    assert not resolves("spade_deploy.nothing")
