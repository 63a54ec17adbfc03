"""benchmarks/gpu/lookup_on_card.py on a CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.export.pattern_finder import Capacity
from spade_deploy.spec import Precision
from tests.support.bench_model import load_script, tiny_setting

records: Any = load_script("gpu.records")
lookup: Any = load_script("gpu.lookup_on_card")


def outcome_of(setting: Any) -> Any:
    return records.run_step(records.Book("lookup"), partial(lookup.run_lookup, setting))


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's cases run where it is installed: test_gpu_triton.py has them."""
    monkeypatch.setattr(lookup, "has_triton", lambda device: False)


@pytest.mark.usefixtures("without_triton")
def test_the_step_on_a_cpu(tmp_path: Path) -> None:
    outcome = outcome_of(tiny_setting(tmp_path))
    assert outcome.status == "done", outcome.reason
    rows = {(row.name, row.batch): row for row in outcome.rows}
    names = [lookup.DENSE, lookup.CONTIGUOUS, lookup.GIVEN, lookup.FOUND, lookup.FINDING]
    cases = [("fp16", 1), ("fp16", 2), ("fp32", 1)]
    assert set(rows) == {(f"{precision} 32 {name}", batch) for precision, batch in cases for name in names}
    for (name, batch), row in rows.items():
        assert len(row.times_ms["device"]) == 2
        if lookup.FINDING in name:
            assert row.times_ms["end_to_end"] == []
            continue
        assert len(row.times_ms["end_to_end"]) == 2
        assert 0 < row.figures["mean_abs"] < (1e-6 if "fp32" in name else 1e-3)
        dense = rows[f"{name[:4]} 32 {lookup.DENSE}", batch]
        assert row.figures["mean_abs"] <= 2 * dense.figures["mean_abs"]
    assert outcome.facts["left out for lack of time"] == []


@pytest.mark.usefixtures("without_triton")
def test_a_table_that_is_too_small_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny_setting(tmp_path, batches=(1,))
    monkeypatch.setattr(
        lookup, "capacities", lambda spec, maps, batch: dict.fromkeys((1, 2, 4, 8, 16, 32), Capacity(9, 9))
    )
    failed = {row.name: row.failures for row in outcome_of(setting).rows if row.failures}
    assert set(failed) == {f"{p} 32 {name}" for p in ("fp16", "fp32") for name in (lookup.FOUND, lookup.FINDING)}
    assert all("windows without a place" in reasons[0] for reasons in failed.values())


def test_a_wrong_image_is_no_figure() -> None:
    image = torch.zeros(1, 3, 4, 4)
    pixels = lookup.to_pixels(image)
    assert lookup.judged((pixels, image), image, Precision.FP16, {}) == (
        {"mean_abs": 0.0, "max_abs": 0.0, "psnr_db": None},
        "",
    )
    off = image + 0.1
    figures, failure = lookup.judged((lookup.to_pixels(off), off), image, Precision.FP16, {})
    assert figures["psnr_db"] == pytest.approx(26.02, abs=0.01)
    assert failure == "PSNR 26.0 dB is under 35 dB"
    before = {lookup.DENSE: {"mean_abs": 0.06}}
    assert lookup.judged((lookup.to_pixels(off), off), image, Precision.FP16, before)[1] == ""
    before = {lookup.DENSE: {"mean_abs": 0.04}}
    assert "over twice" in lookup.judged((lookup.to_pixels(off), off), image, Precision.FP16, before)[1]
    assert lookup.judged((pixels, off), image, Precision.FP16, before)[1] == "its pixels are not those of its image"
    assert "NaN" in lookup.judged((pixels, image / 0), image, Precision.FP16, {})[1]


@pytest.mark.usefixtures("without_triton")
def test_cases_that_would_begin_too_late_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "TIME_S", -1.0)
    outcome = outcome_of(tiny_setting(tmp_path, batches=(1,)))
    assert outcome.rows == []
    assert outcome.facts["left out for lack of time"] == ["fp16 32 batch 1", "fp32 32 batch 1"]


@pytest.mark.slow
def test_the_graph_with_its_finder_in_onnx_runtime(tmp_path: Path) -> None:
    in_ort = load_script("gpu.lookup_in_ort")
    book = records.Book("lookup_ort")
    outcome = records.run_step(
        book, partial(in_ort.run_lookup_in_ort, tiny_setting(tmp_path, batches=(2,)), provider=in_ort.CPU)
    )
    assert outcome.status == "done", outcome.reason
    rows = {row.name: row for row in outcome.rows}
    names = (in_ort.DENSE, in_ort.LOOKUP, in_ort.FOUND)
    assert set(rows) == {f"fp32 {in_ort.DENSE}", *(f"fp16 {name}" for name in names)}
    for name, row in rows.items():
        assert len(row.times_ms["end_to_end"]) == 2
        if name.startswith("fp16"):
            # Measured 5e-4 at most: half precision. A wrong row makes 1e-2 and more.
            assert 0 < row.figures["mean_abs"] < 2e-3
    image = {in_ort.IMAGE: np.ones((1, 3, 2, 2))}
    assert "PSNR 6.0 dB" in in_ort.judged(image, 0 * image[in_ort.IMAGE])[1]
    overflow = {**image, in_ort.EXCESS: np.array([0, 3])}
    assert "[0, 3]" in in_ort.judged(overflow, image[in_ort.IMAGE])[1]
