"""The scripts of benchmarks/ as modules, and one small artifact that their tests and those of `spade bench` share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact
from tests.support.paths import ROOT


def load_script(name: str) -> Any:
    """A script of benchmarks/, imported as it is when it is run: its own folder comes first."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


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
