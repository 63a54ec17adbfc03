"""The scripts behind the figures of training: they run, compare before they time, and refuse what does not agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.spec import NormType
from spade_deploy.training.config import Amp
from tests.support.bench_model import load_script


@pytest.fixture(scope="module")
def speed() -> Any:
    return load_script("training_speed")


@pytest.fixture(scope="module")
def measured(speed: Any) -> Any:
    setup = speed.make_setup("earth", Path("unused"), quick=True)
    assert setup.generator.norm is not NormType.INSTANCE
    return speed.measure(setup, speed.make_batches(setup, Path("nowhere"))[:2], torch.device("cpu"), 1)


def test_every_candidate_makes_the_same_first_losses_and_is_timed(speed: Any, measured: Any) -> None:
    assert set(measured["candidates"]) == set(measured["rounds"][0]["seconds"]) == {speed.PLAIN, *speed.OURS}
    assert measured["candidates"][speed.PLAIN]["faster_than_plain"] == 1.0
    assert all(row["seconds_per_step"] > 0 for row in measured["candidates"].values())
    assert measured["first_losses"][speed.PLAIN]["l1"] > 0.1  # images that are no black


@pytest.mark.parametrize("name", ["fp32", "fp32, lookup", "bf16"])
@pytest.mark.parametrize("loss", ["adversarial", "feature_matching", "l1"])
def test_a_loss_that_differs_ends_the_run(speed: Any, measured: Any, name: str, loss: str) -> None:
    losses = {candidate: dict(values) for candidate, values in measured["first_losses"].items()}
    speed.check_first_losses(losses)
    losses[name][loss] += 2 * speed.ALLOWED[Amp.BF16] * 1.5
    with pytest.raises(SystemExit, match=f"{name}: the first {loss} is"):
        speed.check_first_losses(losses)


def test_a_lookup_that_is_none_ends_the_run(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "OURS", {"fp32, lookup": (Amp.OFF, speed.Modulation.LOOKUP)})
    monkeypatch.setattr(speed.Learner, "_beside", lambda self, part: ())
    setup = speed.make_setup("earth", Path("unused"), quick=True)
    with pytest.raises(SystemExit, match="pattern tables 0 times"):
        speed.measure(setup, speed.make_batches(setup, Path("nowhere"))[:1], torch.device("cpu"), 1)


def test_loading_is_measured_from_made_up_files(speed: Any, tmp_path: Path) -> None:
    setup = speed.make_setup("ade20k", tmp_path, quick=True)
    found = speed.measure_loading(setup, tmp_path, tmp_path / "nowhere", 2, workers_tried=(0,))
    assert found["seconds_per_batch_by_workers"]["0"] > 0
    assert "72 x 72" in found["what"]


def test_a_row_of_the_memory_table() -> None:
    row = load_script("training_memory").row("earth", 1, Amp.BF16)
    assert row["bytes"]["total"] == sum(row["bytes"][part] for part in ("weights", "learning", "activations"))
    assert row["bytes"]["process_on_cpu"] > row["bytes"]["total"]
