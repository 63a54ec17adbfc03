"""benchmarks/gpu: the steps in PyTorch, on a CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.export.spade import DeployModel
from spade_deploy.spec import (
    GraphKind,
)
from tests.support.bench_model import load_script, tiny_setting

records: Any = load_script("gpu.records")
report: Any = load_script("gpu.report")
numerics: Any = load_script("gpu.numerics")


def test_numerics_on_a_cpu(tmp_path: Path) -> None:
    outcome = records.run_step(records.Book("numerics"), partial(numerics.run_numerics, tiny_setting(tmp_path)))
    assert outcome.status == "done", outcome.reason
    mean = {row.name: row.figures["mean_abs"] for row in outcome.rows}
    assert mean["fp32 untouched"] == 0
    for kind in ("dense", "lookup"):
        assert 0 < mean[f"fp32 {kind}"] < 1e-5
        # Measured 0.8 and 0.9 of it.
        assert mean[f"fp16 {kind}"] <= 2 * mean["fp16 untouched"]
    assert {goal.name: goal.is_reached for goal in report.goals_of([outcome])} == {
        "fp16 dense: error against PyTorch's fp16, times": True,
        "fp16 lookup: error against PyTorch's fp16, times": True,
    }


class WrongModel(DeployModel):
    """A fold that is off by a hundredth."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.get_submodule("conv_img").weight.data.mul_(1.01)  # type: ignore[operator]


def test_a_wrong_fold_fails_both_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = load_script("gpu.torch_latency")
    monkeypatch.setattr(numerics, "build_model", lambda generator, kind, **named: WrongModel(generator, **named))
    small = tiny_setting(tmp_path, kinds=(GraphKind.DENSE,), batches=(1,))
    outcome = records.run_step(records.Book("numerics"), partial(numerics.run_numerics, small))
    assert outcome.status == "failed"
    assert [row.name for row in outcome.rows if row.failures] == ["fp32 dense", "fp16 dense"]
    timed = records.run_step(records.Book("torch"), partial(latency.run_torch_latency, small))
    rows = {row.name: row for row in timed.rows}
    assert rows["fp16 dense"].failures
    assert rows["fp16 dense"].times_ms == {"device": []}
    assert len(rows["fp16 untouched"].times_ms["device"]) == 2


def test_half_precision_is_held_to_twice_pytorchs_own() -> None:
    assert numerics.too_far_from_eager(2e-3, 1e-3) == ()
    assert "0.0021" in numerics.too_far_from_eager(2.1e-3, 1e-3)[0]
    assert numerics.too_far_from_eager(None, None) == ("its error is not finite",)
    assert numerics.too_far_from_eager(1.0, None) == ()  # PyTorch's own overflows


def test_tensor_float_is_off_inside_and_as_it_was_outside() -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with numerics.exact_float32():
        assert [flag.allow_tf32 for flag in flags] == [False, False]
    assert [flag.allow_tf32 for flag in flags] == before


def test_latency_in_pytorch_on_a_cpu(tmp_path: Path) -> None:
    latency = load_script("gpu.torch_latency")
    outcome = records.run_step(records.Book("torch"), partial(latency.run_torch_latency, tiny_setting(tmp_path)))
    assert outcome.status == "done", outcome.reason
    rows = {(row.name, row.batch): row for row in outcome.rows}
    names = {"fp16 untouched", latency.BASELINE, "fp16 dense", "fp16 dense, channels last", "fp16 lookup"}
    assert set(rows) == {(name, batch) for name in names for batch in (1, 2)}
    assert all(len(row.times_ms["device"]) == 2 for row in rows.values())
    assert rows[latency.BASELINE, 1].figures["faster_than_untouched"] == 1
    for batch in (1, 2):
        ours, base = rows["fp16 lookup", batch], rows[latency.BASELINE, batch]
        pairs = zip(base.times_ms["device"], ours.times_ms["device"], strict=True)
        assert ours.figures["faster_than_untouched"] == np.median([slow / fast for slow, fast in pairs])
        assert ours.figures["patterns_on_cpu_ms"] > 0


def test_each_candidate_has_a_row_as_a_cuda_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency, setting = load_script("gpu.torch_latency"), load_script("gpu.setting")
    monkeypatch.setattr(setting.Setting, "is_cuda", True)
    replays: list[int] = []

    def captured(_: Any, work: Any) -> tuple[Any, Any]:
        returned = work()
        image = returned[-1] if isinstance(returned, tuple) else returned
        if len(candidates) == 1:  # the second of all: its replay forgets to compute
            image.zero_()
        candidates.append(work)
        if len(candidates) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: replays.append(1), returned

    candidates: list[Any] = []
    monkeypatch.setattr(latency, "captured", captured)
    small = tiny_setting(tmp_path, batches=(2,))
    outcome = records.run_step(records.Book("torch"), partial(latency.run_torch_latency, small))
    rows = {row.name: row for row in outcome.rows}
    names = ["fp16 untouched", latency.BASELINE, "fp16 dense", "fp16 dense, channels last", "fp16 lookup"]
    assert list(rows) == [row for name in names for row in (name, f"{name}, CUDA graph")]
    graph = [rows[f"{name}, CUDA graph"] for name in names]
    assert [bool(row.failures) for row in graph] == [False, True, False, False, False]
    assert graph[1].failures == ("its replay makes another image than the module",)
    assert graph[2].note == "not measured: RuntimeError: operation not permitted when stream is capturing"
    assert [len(row.times_ms["device"]) for row in graph] == [2, 0, 0, 2, 2]
    assert len(replays) == 4 + 3 * (3 + 2)  # one to compare each, then warm-up and rounds
    # A graph is held to the baseline as a graph, which is the one that failed here.
    assert graph[0].figures["faster_than_untouched"] is None
    assert rows["fp16 dense"].figures["faster_than_untouched"] > 0


def test_a_training_step_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = load_script("gpu.training_step")
    # A CPU takes seconds for fp16.
    quick = {name: changes for name, changes in training.VARIANTS.items() if "fp16" not in name}
    monkeypatch.setattr(training, "VARIANTS", quick)
    small = tiny_setting(tmp_path, batches=(2,))
    outcome = records.run_step(records.Book("training"), partial(training.run_training_step, small))
    assert outcome.status == "done", outcome.reason
    assert len(outcome.rows) == 5
    for row in outcome.rows:
        assert row.figures["steps_per_s"] == 1000 / np.median(row.times_ms["device"])
        assert row.figures["peak_memory_bytes"] is None
    broken = training._measured(small, "whole", 2, partial(training._step, small, 2, {"betas": (2.0, 0.9)}))
    assert broken.failures
