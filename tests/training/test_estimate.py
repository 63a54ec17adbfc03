"""What a run is said to need: against real tensors, against a real process, and never leaving anything behind."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.errors import TrainingError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec
from spade_deploy.training import estimate as module
from spade_deploy.training.config import Amp, Setup, TrainConfig
from spade_deploy.training.device import free_bytes
from spade_deploy.training.estimate import Estimate, estimate, per_process
from spade_deploy.training.step_memory import CPU_EXCESS, PROCESS_BYTES, StepMemory, cpu_bytes
from spade_deploy.training.steps import Learner

CPU = torch.device("cpu")

estimate_memory = cache(module.estimate_memory)
"""A second or two each."""


@pytest.fixture(autouse=True)
def _estimate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "estimate_memory", estimate_memory)


def setup_of(spec: dict[str, Any] | None = None, side: int = 64, **train: Any) -> Setup:
    generator = {"base_channels": 2, "hidden_channels": 4, "height": side, "width": side, **(spec or {})}
    settings = {"steps": 100, "batch_size": 2, "discriminator": DiscriminatorSpec(base_channels=2), **train}
    return Setup(
        TrainConfig(**settings),
        GeneratorSpec(LabelSpec(3), **generator),
        DataConfig(load_size=(side, side), crop_size=(side, side)),
    )


class TestMemory:
    def test_weights_and_what_learning_keeps_are_those_of_a_real_learner(self) -> None:
        setup = setup_of({"z_dim": 4}, ema_decay=0.9)
        learner = Learner(setup, CPU)
        networks = [*learner.networks.values(), learner.average.module]  # type: ignore[union-attr]
        kept = {t.untyped_storage().data_ptr(): t for n in networks for t in [*n.parameters(), *n.buffers()]}
        found = estimate_memory(setup)
        # Beside networks: spectral norm's weights, made in the first pass, which count as learning.
        assert found.weights == pytest.approx(sum(t.untyped_storage().nbytes() for t in kept.values()), rel=0.05)
        learned = sum(p.numel() * 4 for network in learner.networks.values() for p in network.parameters())
        assert 3 * learned <= found.learning <= 4.2 * learned  # gradients, two moments, and at most a copy of all

    def test_activations_grow_with_the_batch_and_shrink_with_half_precision(self) -> None:
        one, two, half = (
            estimate_memory(setup_of(batch_size=size, amp=amp)).activations
            for size, amp in ((2, Amp.OFF), (4, Amp.OFF), (4, Amp.BF16))
        )
        assert 1.9 < two / one < 2.1  # measured: 2.07
        assert 0.45 < half / two < 0.8  # measured: 0.66

    def test_parts_of_a_batch_need_less_than_the_whole(self) -> None:
        whole, parts = (estimate_memory(setup_of(batch_size=4, accumulate=count)) for count in (1, 4))
        assert parts.activations < 0.4 * whole.activations
        assert parts.weights == whole.weights

    def test_the_perceptual_network_counts(self) -> None:
        without, with_vgg = estimate_memory(setup_of()), estimate_memory(setup_of(perceptual_file=Path("nowhere.pth")))
        vgg = 51.9e6  # bytes of VGG19 up to relu5_1: 12.9 million weights
        assert with_vgg.weights - without.weights == pytest.approx(vgg, rel=0.01)

    def test_a_network_far_too_large_for_this_machine_leaves_no_trace(self) -> None:
        setup = setup_of({"base_channels": 256, "hidden_channels": 512}, side=512, batch_size=128)
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        assert estimate_memory(setup).total > 1 << 40
        assert torch.equal(torch.rand(3), expected)
        assert torch.nn.Linear(1, 1).to(torch.float64).weight.dtype is torch.float64

    def test_a_step_that_ends_early_is_no_estimate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Learner, "_backward", lambda self, loss, *rest, **named: loss.item())
        with pytest.raises(RuntimeError, match="ended early"):
            estimate_memory.__wrapped__(setup_of())


class TestEstimate:
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the process's share was measured on Linux")
    def test_a_real_process_takes_what_was_estimated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        setup = setup_of({"base_channels": 8, "hidden_channels": 32}, side=128, steps=1000)
        found = estimate(setup, CPU, steps_timed=1)
        assert found.is_measured
        assert found.memory_bytes == pytest.approx(cpu_bytes(found.from_shapes), rel=0.25)  # measured: 0.98 of it
        assert found.seconds_per_step is not None
        assert found.seconds == pytest.approx(1000 * found.seconds_per_step)
        assert not list(tmp_path.iterdir())

    def test_what_cannot_fit_is_not_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_measured", lambda *_: pytest.fail("a real step was tried"))
        monkeypatch.setattr(module, "free_bytes", lambda _: 100 << 20)
        found = estimate(setup_of(), CPU)
        assert not found.is_measured
        assert found.seconds is None
        assert found.fits is False
        assert found.memory_bytes == PROCESS_BYTES + round(CPU_EXCESS * found.from_shapes.total)
        assert any("not tried" in note and "0.1 GiB is free" in note for note in found.notes)

    def test_a_step_that_runs_out_of_memory_leaves_what_was_estimated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_measured", lambda *_: None)
        found = estimate(setup_of(), CPU)
        assert (found.is_measured, found.seconds_per_step) == (False, None)
        assert "a real step ran out of memory" in found.notes

    def test_a_run_in_epochs_needs_to_know_the_data(self) -> None:
        setup = setup_of(steps=None, epochs=3)
        assert estimate(setup, CPU, steps_timed=0).steps is None
        assert estimate(setup, CPU, steps_timed=0, steps_per_epoch=7).steps == 21

    def test_one_of_several_processes_has_its_share_of_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert per_process(setup_of(batch_size=8), 4).train.batch_size == 2
        asked = []
        monkeypatch.setattr(
            module, "estimate_memory", lambda setup: asked.append(setup.train.batch_size) or StepMemory(1, 1, 1)
        )
        estimate(setup_of(batch_size=8), CPU, steps_timed=0, processes=4)
        assert asked == [2]

    def test_an_error_of_the_process_is_told(self, tmp_path: Path) -> None:
        missing = tmp_path / "vgg.pth"
        with pytest.raises(TrainingError, match=f"a step failed: .*{missing}"):
            estimate(setup_of(perceptual_file=missing), CPU, steps_timed=1)


class TestTheProcess:
    def request(self, **train: Any) -> Any:
        return {"setup": json.loads(json.dumps(setup_of(**train).to_json())), "device": "cpu", "steps": 2}

    @pytest.mark.parametrize(
        "error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("[enforce fail] can't allocate memory")]
    )
    def test_running_out_of_memory_is_an_answer(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(Learner, "step", fail)
        assert module._answer(self.request()) == {"out_of_memory": True}

    def test_another_error_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("something else")

        monkeypatch.setattr(Learner, "step", fail)
        with pytest.raises(RuntimeError, match="something else"):
            module._answer(self.request())

    def test_the_generators_own_steps_are_among_the_timed_ones(self) -> None:
        answer = module._answer(self.request(discriminator_steps=3, amp="bf16"))
        assert len(answer["seconds"]) == 2
        assert answer["peak_bytes"] > 100 << 20


def test_free_memory_is_known() -> None:
    assert free_bytes(CPU) > 1 << 20


def test_what_fits_and_what_does_not() -> None:
    plain = Estimate("cpu", 100, True, StepMemory(1, 2, 3), 100, 0.5, 10)
    assert (plain.fits, plain.seconds, plain.from_shapes.total) == (True, 5.0, 6)
    assert replace(plain, free_bytes=99).fits is False
    assert replace(plain, free_bytes=None).fits is None
