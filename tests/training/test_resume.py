"""What a resumed run takes up again, part by part: each is used by the steps here, so a forgotten one changes them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spade_deploy import runs
from spade_deploy.errors import CheckpointError
from spade_deploy.spec import NormType
from spade_deploy.training.config import Amp, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.loop import train
from spade_deploy.training.resume import _refuse_other_settings
from spade_deploy.training.steps import Learner
from tests.support.training_runs import Noise, equal, new_run, rows, setup_of, weights

CPU = torch.device("cpu")
SETUPS: dict[str, Setup] = {
    # The encoder's noise follows from the number of steps done, and so does whose turn it is.
    "styles, a generator step in two": setup_of({"z_dim": 5, "norm": NormType.BATCH}, discriminator_steps=2),
    # Three updates are in the warm-up of the average, where its decay is another one each time.
    "an average": setup_of({"norm": NormType.BATCH}, ema_decay=0.9, ema_batches=2),
    "half precision": setup_of({"norm": NormType.BATCH}, amp=Amp.FP16),
}


def shaken(step: int, batch: Batch) -> Batch:
    """A batch with noise of PyTorch's own random state, as an augmentation or dropout would draw it.

    Not the first two, which an average's statistics are estimated on, when that is asked for.
    """
    return replace(batch, photo=batch.photo + 0.1 * torch.randn_like(batch.photo)) if step > 2 else batch


def everything(checkpoint: Path) -> list[Any]:
    encoder = checkpoint / runs.ENCODER_FILE
    return [*weights(checkpoint), load_file(encoder) if encoder.exists() else None]


@pytest.mark.parametrize("name", SETUPS)
def test_a_resumed_run_repeats_the_unbroken_one_in_everything_it_saves(tmp_path: Path, name: str) -> None:
    setup = SETUPS[name]
    whole, again = new_run(tmp_path / "whole"), new_run(tmp_path / "again")
    first = train(setup, run=whole, source=Noise(shaken))
    second = train(setup, run=again, source=Noise(shaken), resume=runs.checkpoint_folder(whole, 3))
    assert rows(whole)[4:] == rows(again)[1:]
    assert first.losses == second.losses
    assert equal(everything(first.checkpoint), everything(second.checkpoint))
    assert (whole / "samples/step_00000006.png").read_bytes() == (again / "samples/step_00000006.png").read_bytes()


def learned(setup: Setup, steps: int) -> Learner:
    learner = Learner(setup, CPU, lambda: [Noise.batch(2, 77)])
    for step in range(steps):
        learner.step(Noise.batch(2, step), 1.0)
    return learner


def resumed(learner: Learner, step: int) -> Learner:
    """Another learner with the state of the first, as a checkpoint holds it."""
    other = Learner(learner.setup, CPU, lambda: [Noise.batch(2, 77)])
    other.restore(learner.deployed(), copy.deepcopy(learner.state()), step, learner.encoder)
    return other


def test_random_numbers_go_on_where_they_were() -> None:
    learner = learned(setup_of(), 1)
    torch.randn(17)
    state = copy.deepcopy(learner.state())
    expected = torch.randn(3)
    Learner(learner.setup, CPU).restore(learner.generator, state, 1)
    assert torch.equal(torch.randn(3), expected)


def test_the_number_of_steps_done_goes_on() -> None:
    """Styles are drawn by it, and with `discriminator_steps` it says who learns."""
    setup = SETUPS["styles, a generator step in two"]
    learner = learned(setup, 1)
    other = resumed(learner, 1)
    assert other.steps_done == 1
    before = copy.deepcopy(other.generator.state_dict())
    other.step(Noise.batch(2, 1), 1.0)  # the second step is the discriminator's alone
    names = [name for name, _ in other.generator.named_parameters()]
    assert all(torch.equal(before[name], other.generator.state_dict()[name]) for name in names)


def test_the_average_and_what_trains_are_two_and_come_back_each_in_its_place() -> None:
    learner = learned(SETUPS["an average"], 3)
    other = resumed(learner, 3)
    name = "up_3.conv_0.weight_orig"
    assert learner.average is not None
    assert other.average is not None
    own, averaged = learner.generator.state_dict()[name], learner.average.module.state_dict()[name]
    assert not torch.equal(own, averaged)
    assert torch.equal(other.generator.state_dict()[name], own)
    assert torch.equal(other.average.module.state_dict()[name], averaged)
    assert other.average.updates == 3
    # In the fourth update the decay is 5 / 14 of the warm-up; one that began anew would take 2 / 11.
    other.step(Noise.batch(2, 3), 1.0)
    expected = 5 / 14 * averaged.double() + 9 / 14 * other.generator.state_dict()[name].double()
    found = other.average.module.state_dict()[name].double()
    wrong = 2 / 11 * averaged.double() + 9 / 11 * other.generator.state_dict()[name].double()
    assert (found - expected).abs().max() < 1e-3 * (wrong - expected).abs().max()


def test_the_loss_scaler_comes_back_with_its_scale_and_its_count() -> None:
    learner = learned(SETUPS["half precision"], 0)
    learner._scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    for step in range(2):
        learner.step(Noise.batch(2, step), 1.0)
    other = resumed(learner, 2)
    assert other._scaler.get_scale() == 64.0
    other.step(Noise.batch(2, 2), 1.0)
    assert other._scaler.get_scale() == 128.0  # the third good step in a row


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("train", {"seed": 1}),
        ("train", {"batch_size": 8}),
        ("train", {"weight_l1": 3.0}),
        ("train", {"lr_generator": 0.5}),
        ("train", {"decay_start": 0.75}),
        ("train", {"ema_decay": 0.5}),
        ("train", {"discriminator_steps": 2}),
        ("data", {"flip": False}),
        ("data", {"load_size": (64, 64)}),
        ("generator", {"base_channels": 8}),
        ("generator", {"z_dim": 7}),
    ],
    ids=lambda found: next(iter(found)) if isinstance(found, dict) else "",
)
def test_a_setting_that_a_step_depends_on_stays_as_it_was(part: str, changes: dict[str, Any]) -> None:
    saved = setup_of()
    now = replace(saved, **{part: replace(getattr(saved, part), **changes)})
    (name,) = changes
    with pytest.raises(CheckpointError, match=f"c: {part}.{name}.* was .* and is now "):
        _refuse_other_settings(Path("c"), saved.to_json(), now.to_json())


def test_what_no_step_depends_on_may_change() -> None:
    saved = setup_of()
    changes = {"steps": 99, "workers": 3, "save_every": 7, "log_every": 9, "keep_checkpoints": 5, "eval_samples": 3}
    now = replace(saved, train=replace(saved.train, **changes))  # type: ignore[arg-type]
    _refuse_other_settings(Path("c"), saved.to_json(), now.to_json())
