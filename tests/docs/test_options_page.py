"""docs/options.md is what the script makes of the request dataclasses."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_options", ROOT / "scripts" / "write_options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_not_stale(script: ModuleType) -> None:
    said = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert said == script.page(), "run `python scripts/write_options.py`"


def test_a_row_has_flag_type_range_default_and_help(script: ModuleType) -> None:
    rows = dict(script.commands())
    train = list(script.table(rows["spade train"]))
    assert "| `--batch-size` | an integer, 1..4,096 | `32` | Batch size (samples per step). |" in train
    assert "| `--betas` | a text | `0.0,0.9` | Adam's two betas, such as 0,0.9. |" in train
    assert "| `--flip`, `--no-flip` |  |  | Mirror half of the samples at random. |" in train
    assert "| **Losses and rates** | | | |" in train
    assert "| `OUT` | a path |  | Folder for train/, val/ and test/. |" in list(script.table(rows["spade data earth"]))
