"""docs/choosing.md: its plot and its table are made of the result, and say what is in it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench_model import load_script
from tests.support.paths import ROOT

page = load_script("choosing_page")
RESULT = ROOT / "benchmarks" / "results" / "choosing.json"


def point(model: str, name: str, precision: str, graph: str | None, ms: float, db: float | None) -> dict[str, Any]:
    engine = "plain export" if graph is None else "OpenVINO"
    kind = "plain" if graph is None else "graph"
    return {
        "model": model, "name": name, "kind": kind, "engine": engine, "precision": precision, "graph": graph,
        "p50_ms": ms, "again_ms": 0.9 * ms, "times_as_fast_as_plain": 100 / ms, "psnr_db": db, "kernel": 0.0612,
    }  # fmt: skip


def result(*, has_student: bool) -> dict[str, Any]:
    points = [
        point("Earth model", "plain export, ONNX Runtime", "fp32", None, 100.0, 131.0),
        point("Earth model", "OpenVINO fp32 dense", "fp32", "dense", 80.0, None),
        point("Earth model", "OpenVINO fp32 lookup", "fp32", "lookup", 40.0, 130.0),
        point("Earth model", "OpenVINO bf16 lookup", "bf16", "lookup", 25.0, 61.2),
        {"model": "Earth model", "name": "OpenVINO int8 lookup", "engine": "OpenVINO", "reason": "it is not there"},
    ]
    points += [point("half", "OpenVINO bf16 lookup", "bf16", "lookup", 10.0, 22.0)] if has_student else []
    return {
        "machine": {"cpu_model": "model 7", "cpu_kind": "amx"},
        "threads": 2,
        "tiles": ["0000", "0001"],
        "others_share": [0.0, 0.0, 0.5, 0.0],
        "models": {"Earth model": {}} | ({"half": {}} if has_student else {}),
        "reference": {"kernel": 0.0611},
        "points": points,
    }


@pytest.mark.parametrize("has_student", [False, True])
def test_headline_and_table_say_what_is_in_the_result(has_student: bool, tmp_path: Path) -> None:
    value = result(has_student=has_student)
    text = tmp_path / "choosing.md"
    text.write_text(f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n", encoding="utf-8")
    page.write_table(value, text)
    found = text.read_text(encoding="utf-8")
    assert found.startswith(
        f"before\n\n{page.BEGIN}\nmodel 7 (amx), 2 threads, 2 held-out tiles of 128 x 128 pixels, 4 rounds (3"
    )
    assert found.endswith(f"{page.END}\n\nafter\n")
    assert "old" not in found
    assert (
        "- Exact: the fastest is OpenVINO fp32 lookup: 40.0 ms, 2.50 times as fast as a plain export in ONNX Runtime;"
        " 130 dB, kernel distance 0.061." in found
    )
    assert "- Lower precision: the fastest is OpenVINO bf16 lookup: 25.0 ms" in found
    assert ("- Student: the fastest is half, OpenVINO bf16 lookup: 10.0 ms" in found) is has_student
    assert "| Earth model | OpenVINO | fp32 | dense | 80.0 | 72.0 | 1.25 | identical | 0.061 |" in found
    assert "Not measured: Earth model, OpenVINO int8 lookup (it is not there)." in found
    rows = [line for line in found.splitlines() if line.startswith(("| Earth", "| half"))]
    assert len(rows) == 4 + has_student
    with pytest.raises(ValueError, match="are missing"):
        page.write_table(value, Path(__file__))


@pytest.mark.parametrize("has_student", [False, True])
def test_the_plot_is_transparent_and_names_what_it_shows(has_student: bool, tmp_path: Path) -> None:
    path = tmp_path / "images" / "choosing.svg"
    page.draw(result(has_student=has_student), path)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    words = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"lookup graph", "dense graph", "fp32", "bf16", "Earth model, OpenVINO"} <= words
    assert ("half" in words) is has_student
    text = path.read_text(encoding="utf-8")
    for color in ("#000000", "#ffffff"):  # black letters or a white sheet would not read on one of both pages
        assert color not in text


def test_the_page_has_the_table_of_the_result() -> None:
    value = json.loads(RESULT.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert page.shown(value) in text
