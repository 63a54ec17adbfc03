"""The scripts of benchmarks/ as modules, and one small artifact that their tests and those of `spade bench` share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.spec import GeneratorSpec, LabelSpec
from tests.support.paths import ROOT


def load_script(name: str) -> Any:
    """A script of benchmarks/, imported as it is when it is run: its own folder comes first."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


TINY = GeneratorSpec(LabelSpec(7, True, True), base_channels=4, hidden_channels=8, height=32, width=32)


def tiny_setting(work: Path, **fields: Any) -> Any:
    """The `Setting` of benchmarks/gpu for a tiny model on the CPU; `fields` replace its own."""
    settings = {"batches": (1, 2), "rounds": 2, "device": "cpu", "quick": True, **fields}
    return load_script("gpu.setting").Setting(TINY, work, **settings)


def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the artifact is kept for the length of the session: an export takes ten seconds."""
    return tmp_path_factory.getbasetemp() / "benchmarks"


def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Dense and lookup graphs of a small generator with edges, and the checkpoint that they were exported from."""
    models = load_script("models")
    made: Artifact = models.make_artifact(
        work_folder(tmp_path_factory), models.SMALL, models.synthetic_maps(models.SMALL)
    )
    return made
