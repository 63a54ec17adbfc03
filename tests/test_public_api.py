"""The public Python API: its names, where they come from, what importing it costs, and README's six lines."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spade_deploy
from spade_deploy.artifact import LABEL, PIXELS
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import LabelSpec
from tests.support.generators import build_generator
from tests.support.paths import ROOT
from tests.support.stand_in import PLAIN, stand_in_artifact

NAMES = [
    "Artifact",
    "BenchRequest",
    "InferRequest",
    "ReleaseRequest",
    "SpadeError",
    "ValidationRequest",
    "__version__",
    "bench_artifact",
    "export_checkpoint",
    "infer",
    "make_images",
    "open_runtime",
    "validate",
]
"""A name that goes, or changes what it is, breaks somebody's program: say so in CHANGELOG."""


def declared() -> dict[str, str]:
    """Where type checkers are told that each name comes from."""
    tree = ast.parse(Path(spade_deploy.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_the_names() -> None:
    assert spade_deploy.__all__ == NAMES
    assert set(NAMES) <= set(dir(spade_deploy))


def test_what_runs_is_what_type_checkers_are_told() -> None:
    homes = declared()
    assert sorted([*homes, "__version__"]) == NAMES
    for name, module in homes.items():
        assert getattr(spade_deploy, name) is getattr(import_module(module), name), name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'spade_deploy' has no attribute 'paint'"):
        _ = spade_deploy.paint  # type: ignore[attr-defined]


def modules_after(code: str, *arguments: str) -> set[str]:
    """What a fresh interpreter has loaded after the code."""
    code += "\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_it_loads_nothing_heavy() -> None:
    assert not modules_after("import spade_deploy") & {"numpy", "torch", "onnx", "onnxruntime", "typer", "rich"}


def test_an_artifact_makes_images_without_pytorch(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact", PLAIN)
    code = (
        "import sys, numpy, spade_deploy\n"
        "artifact = spade_deploy.Artifact.open(sys.argv[1])\n"
        "with spade_deploy.open_runtime(artifact, backend='cpu') as runtime:\n"
        "    image = spade_deploy.make_images(runtime, numpy.zeros((64, 32), int))\n"
        "assert image.shape == (64, 32, 3)\n"
    )
    loaded = modules_after(code, str(artifact.path))
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx"}


def test_the_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build_generator(labels=LabelSpec(3), base_channels=2, hidden_channels=4, height=128, width=128)
    save_checkpoint(checkpoint_folder(new_run(tmp_path / "runs", "tiny"), 0), generator, step=0, origin="import")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    artifact = names["artifact"]
    assert artifact.path.resolve() == tmp_path / "runs" / "tiny" / "artifact"
    with spade_deploy.open_runtime(artifact) as runtime:
        inputs = {LABEL: np.zeros((1, 128, 128), np.uint8)}
        np.testing.assert_array_equal(names["image"], runtime.run(inputs, [PIXELS])[PIXELS][0])
    result = names["result"]
    assert [entry.candidate.name for entry in result.measured] == ["fp32 dense", "fp32 lookup"]
    assert all(result.figures(entry).images_per_s > 0 for entry in result.measured)
