"""The import rule, as far as import-linter cannot see it: what a fresh interpreter really loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.import_graph import circles, import_graph, only_types, read_package

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnxscript", "tensorrt", "onnxruntime", "pycuda", "safetensors", "matplotlib", "jinja2"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "inference",
        "inspection.describe",
        "inspection.doctor",
        "validation",
        "engines.open",
        "engines.ort.runtime",
        "labels.lint",
        "evaluation",
        "metrics",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(module: str) -> None:
    assert not loaded_by(f"import spade_deploy.{module}") & HEAVY


def test_the_command_line_loads_no_numpy() -> None:
    # The budget of `spade --help`, 0.4 s, is mostly imports; measured 0.15 s.
    assert "numpy" not in loaded_by("import spade_deploy.cli")


def test_the_check_can_fail() -> None:
    assert "torch" in loaded_by("import spade_deploy.networks.spade")


def test_architecture_names_what_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "spade_deploy"
    top = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    for name in top - {"__init__"}:
        assert name in text, f"ARCHITECTURE.md does not mention {name}"


def test_no_utils_and_no_asserted_user_input() -> None:
    names = {path.name for path in (ROOT / "spade_deploy").rglob("*.py")}
    assert not names & {"utils.py", "helpers.py", "misc.py", "common.py"}


def test_no_module_imports_itself_through_others() -> None:
    """At the top of files and inside functions: an import that waits hides a circle, and does not break it."""
    assert circles(import_graph(ROOT / "spade_deploy")) == []


def test_imports_for_types_are_for_types_alone() -> None:
    wrong = {name: found for name, tree in read_package(ROOT / "spade_deploy").items() if (found := only_types(tree))}
    assert wrong == {}


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    sources = {
        "__init__": "",
        "a": "from p import b",
        "b": "def f():\n    from p.q.c import g",
        "q/__init__": "from p.q.c import g",
        "q/c": "import p.a",
        "d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x\nelse:\n    y = x()",
        "e": "from p.d import y\nimport p.d",
    }
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
    assert circles(import_graph(package)) == [["p.a", "p.b", "p.q.c"]]
    assert only_types(read_package(package)["p.d"]) == ["x"]
