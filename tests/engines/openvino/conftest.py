"""What the tests of OpenVINO begin with: an empty cache for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from spade_deploy.files.user_cache import VARIABLE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled models, which is not there yet."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"
