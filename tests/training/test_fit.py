"""What is chosen for a machine fits it, what was asked for stays, and a training that cannot fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.errors import TrainingError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training import fit
from spade_deploy.training.config import Modulation, Setup, TrainConfig
from spade_deploy.training.device import free_bytes, left_in_container
from spade_deploy.training.fit import Machine, chosen, refuse_if_too_large, upper_limit, with_width
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.step_memory import StepMemory, estimate_memory

GB = 10**9


def own(size: int = 256, **train: Any) -> Setup:
    data = DataConfig("custom", Path("x"), load_size=(size, size), crop_size=(size, size))
    return Setup(TrainConfig(epochs=1, **train), GeneratorSpec(LabelSpec(4), height=size, width=size), data)


@pytest.fixture
def simple_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step needs 1 GB a sample at the paper's width, less in proportion, and 1 GB besides; 2.6 s less a test."""

    def made_up(setup: Setup) -> StepMemory:
        samples = setup.train.batch_size // setup.train.accumulate
        return StepMemory(GB, 0, round(GB * samples * setup.generator.base_channels / 64))

    monkeypatch.setattr(fit, "estimate_memory", made_up)


def picked(free: float, is_cuda: bool = True, samples: int = 1000, **asked: Any) -> tuple[int, int]:
    """Base channels and batch size that are chosen."""
    request = TrainRequest(**{"data": DataRequest(preset="custom"), **asked})
    setup = own(**dict(request.train))
    setup = replace(setup, generator=replace(setup.generator, **request.generator))
    found, _ = chosen(setup, request, Machine(round(free * GB), is_cuda), samples)
    return found.generator.base_channels, found.train.batch_size


@pytest.mark.usefixtures("simple_memory")
@pytest.mark.parametrize(
    ("free", "expected"),
    [(80, (64, 32)), (30, (64, 16)), (12, (64, 8)), (6.5, (64, 4)), (5, (32, 4)), (4, (32, 4)), (2.6, (16, 4))],
)
def test_the_largest_that_takes_four_fifths_is_chosen(free: float, expected: tuple[int, int]) -> None:
    assert picked(free) == expected
    width, batch = expected
    assert GB * (1 + batch * width / 64) <= 0.8 * free * GB


@pytest.mark.usefixtures("simple_memory")
def test_what_was_asked_for_and_few_samples_are_kept_to() -> None:
    assert picked(80, samples=5) == (64, 4)
    assert picked(80, samples=3) == (64, 2)
    assert picked(3, train={"batch_size": 6}) == (16, 6)
    assert picked(12, generator={"base_channels": 48}) == (48, 8)
    assert picked(80, is_cuda=False) == (32, 8)
    assert picked(3, train={"batch_size": 24}, generator={"base_channels": 64}) == (64, 24)
    assert picked(3, paper=True) == (64, 32)


@pytest.mark.usefixtures("simple_memory")
def test_it_is_told_and_the_other_networks_are_narrowed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "usable_cores", lambda: 6)
    request = TrainRequest(DataRequest(preset="custom"))
    found, (note,) = chosen(own(), request, Machine(4 * GB, True), 100)
    assert note == (
        "chosen for this machine with 4.0 GB free: `batch_size` 4, `base_channels` 32 (hidden and"
        " discriminator channels alike), `workers` 5; `paper` takes the paper's settings"
    )
    assert (found.generator.hidden_channels, found.train.discriminator.base_channels) == (64, 32)
    assert found.train.workers == 5
    monkeypatch.setattr(fit, "usable_cores", lambda: 1)
    assert chosen(own(), request, Machine(None, True), 100)[0].train.workers == 0


@pytest.mark.usefixtures("simple_memory")
def test_a_data_set_of_the_paper_keeps_its_settings() -> None:
    data = DataConfig("coco", Path("x"), load_size=(256, 256), crop_size=(256, 256))
    setup = replace(own(), data=data)
    assert chosen(setup, TrainRequest(), Machine(GB, True), 100) == (setup, ())


@pytest.mark.usefixtures("simple_memory")
def test_what_cannot_fit_is_refused_with_what_would_fit() -> None:
    setup = own(batch_size=32)
    refuse_if_too_large(setup, Machine(33 * GB, True))
    with pytest.raises(
        TrainingError, match=r"needs 33\.0 GB of memory, and 32\.9 GB are free: `batch_size` 32"
    ) as caught:
        refuse_if_too_large(setup, Machine(round(32.9 * GB), True))
    assert caught.value.hint == "`accumulate` 2 would fit, with 17.0 GB"
    with pytest.raises(TrainingError) as caught:
        refuse_if_too_large(setup, Machine(3 * GB, True))
    assert caught.value.hint == (
        "`batch_size` 4 `base_channels` 16 `hidden_channels` 32 `discriminator_channels` 16 would fit, with 2.0 GB"
    )
    with pytest.raises(TrainingError) as caught:
        refuse_if_too_large(setup, Machine(GB, True))
    assert "more memory" in (caught.value.hint or "")
    with pytest.raises(TrainingError) as caught:
        refuse_if_too_large(setup, Machine(20 * GB, True), is_resumed=True)
    assert "batch_size" not in (caught.value.hint or "")
    refuse_if_too_large(setup, Machine(None, True))
    refuse_if_too_large(own(batch_size=32, modulation=Modulation.LOOKUP), Machine(GB, True))


def test_small_networks_are_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "estimate_memory", lambda setup: pytest.fail("it was estimated"))
    refuse_if_too_large(with_width(own(64, batch_size=4), 16), Machine(3 * GB, False))


def test_the_upper_limit_is_above_the_estimate() -> None:
    setup = with_width(own(32, batch_size=8), 8)
    needed = estimate_memory(setup)
    assert needed.total < upper_limit(setup)
    # Without what any process takes, too: the activations alone are below the share of the pixels.
    assert needed.activations < 8 * 32 * 32 * 40_000 * 8 / 64


def test_a_container_may_leave_less(tmp_path: Path) -> None:
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 1\ninactive_file 50\n"),
    ):
        (tmp_path / name).write_text(text)
    assert left_in_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_container(tmp_path) is None
    assert left_in_container(tmp_path / "none") is None
    assert (free_bytes(torch.device("cpu")) or 1) > 0
