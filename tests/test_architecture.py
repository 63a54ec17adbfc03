"""The import rule, as far as import-linter cannot see it: what a fresh interpreter really loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
        "inspection",
        "diagnosis",
        "validation",
        "engines.runtime",
        "engines.ort",
        "label_lint",
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
