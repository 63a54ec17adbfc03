"""What the tests of ONNX Runtime's GPU providers begin with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.spec import Precision
from tests.support.stand_in import EDGES, stand_in_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return stand_in_artifact(tmp_path / "artifact", EDGES, (Precision.FP32, Precision.FP16))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
