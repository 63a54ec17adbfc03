"""Checkpoints: bit-exact round trips, and every kind of damage is a CheckpointError that says what is wrong."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spade_deploy.errors import CheckpointError
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.runs import (
    CHECKPOINT_JSON,
    DISCRIMINATOR_FILE,
    ENCODER_FILE,
    GENERATOR_FILE,
    OPTIMIZERS_FILE,
    find_checkpoint_by_digest,
    read_checkpoint_info,
)
from spade_deploy.runs.checkpoint import Imported, TrainingState, load_generator, load_training_state, save_checkpoint
from spade_deploy.runs.tensors import is_finite
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training.config import TrainConfig
from spade_deploy.training.presets import preset
from spade_deploy.training.saved_setup import load_setup

SPEC = GeneratorSpec(LabelSpec(3), base_channels=2, hidden_channels=4, height=32, width=32)
STATE = TrainingState({"weight": torch.arange(3.0)}, {"generator": {"lr": 1e-4}, "random": torch.get_rng_state()})


def make(folder: Path, state: TrainingState | None = STATE, origin: str = "train") -> SpadeGenerator:
    torch.manual_seed(0)
    module = SpadeGenerator(SPEC).train()
    with torch.no_grad():
        module(torch.rand(2, 3, 32, 32))  # statistics and spectral vectors that are not those of a fresh module
    setup = replace(preset("earth", size=(32, 32)), train=TrainConfig(steps=5)) if state is not None else None
    save_checkpoint(folder, module, step=7, origin=origin, setup=setup, state=state, imported=Imported("x.pth"))
    return module


def rewrite_json(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / CHECKPOINT_JSON
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_generator(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other tensors with a digest that fits, as someone else's tool would write them."""
    tensors = load_file(folder / GENERATOR_FILE)
    change(tensors)
    save_file(tensors, folder / GENERATOR_FILE)
    digest = sha256((folder / GENERATOR_FILE).read_bytes()).hexdigest()
    rewrite_json(folder, lambda value: value.update(generator_sha256=digest))


def test_round_trip_is_bit_exact_and_in_eval_mode(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step_00000007"
    module = make(folder)
    before = torch.get_rng_state()
    loaded = load_generator(folder)
    assert torch.equal(before, torch.get_rng_state()), "loading draws no numbers from the caller's"
    assert not loaded.module.training
    assert loaded.spec == SPEC
    assert (loaded.info.step, loaded.info.origin, loaded.info.source) == (7, "train", "x.pth")
    state = module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())
    segmap = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(module.eval()(segmap), loaded.module(segmap))
    assert find_checkpoint_by_digest(loaded.info.generator_sha256, folder, tmp_path) is not None


def test_training_state_round_trip(tmp_path: Path) -> None:
    make(tmp_path / "c")
    state = load_training_state(tmp_path / "c")
    assert torch.equal(state.discriminator["weight"], torch.arange(3.0))
    assert state.rest["generator"] == {"lr": 1e-4}
    assert load_setup(tmp_path / "c").train == TrainConfig(steps=5)


@pytest.mark.parametrize(
    "facts", [[], None, {"perceptual": torch.zeros(3)}, {"samples": {"count": torch.zeros(3)}}, {"steps": [{1: 2}]}]
)
def test_a_training_state_of_the_wrong_types_is_damaged(tmp_path: Path, facts: object) -> None:
    make(tmp_path / "c", TrainingState({"weight": torch.arange(3.0)}, {"facts": facts}))
    with pytest.raises(CheckpointError, match=r"facts is .*, not a dictionary of plain values"):
        load_training_state(tmp_path / "c")


def test_an_imported_model_has_no_training_state(tmp_path: Path) -> None:
    make(tmp_path / "c", state=None, origin="import")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [CHECKPOINT_JSON, GENERATOR_FILE]
    for load in (load_training_state, load_setup):
        with pytest.raises(CheckpointError, match="cannot be resumed"):
            load(tmp_path / "c")
    assert load_generator(tmp_path / "c").info.origin == "import"


@pytest.mark.parametrize("name", [GENERATOR_FILE, DISCRIMINATOR_FILE, OPTIMIZERS_FILE])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    make(tmp_path / "c")
    content = bytearray((tmp_path / "c" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "c" / name).write_bytes(content)
    load = load_generator if name == GENERATOR_FILE else load_training_state
    with pytest.raises(CheckpointError, match=rf"{name}.*SHA-256"):
        load(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "c")


def test_an_encoder_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    spec, folder = replace(SPEC, z_dim=4), tmp_path / "c"
    encoder = StyleEncoder(4, spec.base_channels)
    save_checkpoint(folder, SpadeGenerator(spec), step=1, origin="import", imported=Imported("x"), encoder=encoder)
    before = torch.get_rng_state()
    loaded = load_generator(folder)
    assert torch.equal(before, torch.get_rng_state()), "loading draws no numbers from the caller's"
    assert loaded.encoder is not None
    assert not loaded.encoder.training
    state = encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.encoder.state_dict().items())
    save_file({name: 2 * tensor for name, tensor in state.items()}, folder / ENCODER_FILE)
    with pytest.raises(CheckpointError, match=rf"{ENCODER_FILE}.*SHA-256"):
        load_generator(folder)
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(CheckpointError, match=ENCODER_FILE):
        load_generator(folder)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for message, change in {
        "conv_img.bias is missing": lambda tensors: tensors.pop("conv_img.bias"),
        "extra is not known": lambda tensors: tensors.update(extra=torch.zeros(1)),
        r"fc.bias is float32 \(5,\) and should be float32 \(32,\)": lambda t: t.update({"fc.bias": torch.zeros(5)}),
        r"fc.bias is float16 \(32,\)": lambda t: t.update({"fc.bias": torch.zeros(32).half()}),
    }.items():
        make(folder)
        rewrite_generator(folder, change)
        with pytest.raises(CheckpointError, match=message):
            load_generator(folder)


def test_a_spec_that_asks_for_terabytes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    for changes in ({"base_channels": 1024}, {"hidden_channels": 8192}, {"base_channels": 1024, "z_dim": 65_536}):
        make(tmp_path / "c")
        rewrite_json(tmp_path / "c", lambda value, changes=changes: value["generator"].update(changes))
        with pytest.raises(CheckpointError, match="does not fit its spec"):
            load_generator(tmp_path / "c")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("base_channels", 1026, r"an even number in 2\.\.1024"),
        ("base_channels", 2**62, r"an even number in 2\.\.1024"),
        ("hidden_channels", 8193, r"in 1\.\.8192"),
        ("kernel_size", 7, "1, 3 or 5"),
        ("z_dim", 2**40, r"in 1\.\.65536"),
        ("height", 2**40, "more than 8192 pixels"),
        ("width", 8224, "more than 8192 pixels"),
    ],
)
def test_sizes_have_a_bound(field: str, value: int, allowed: str, tmp_path: Path) -> None:
    make(tmp_path / "c")
    rewrite_json(tmp_path / "c", lambda described: described["generator"].update({field: value}))
    with pytest.raises(CheckpointError, match=allowed) as caught:
        load_generator(tmp_path / "c")
    assert str(value) in caught.value.message


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    make(tmp_path / "c")
    rewrite_json(tmp_path / "c", lambda value: value.update(format_version=99))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        load_generator(tmp_path / "c")


def test_settings_of_another_kind_are_an_error(tmp_path: Path) -> None:
    make(tmp_path / "c")
    rewrite_json(tmp_path / "c", lambda value: value["train"].update(batch_size="many"))
    with pytest.raises(CheckpointError, match="batch_size"):
        load_setup(tmp_path / "c")


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([GENERATOR_FILE, OPTIMIZERS_FILE, CHECKPOINT_JSON]), st.data())
def test_damaged_files_with_a_digest_that_fits_are_read_or_refused(tmp_path: Path, name: str, data: Any) -> None:
    """The digest finds accidents; what is left is a file made so on purpose."""
    folder = tmp_path / "c"
    make(folder)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 3000) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.sampled_from([len(content), 200, 7, 0]))])
    if name != CHECKPOINT_JSON:
        digest = sha256((folder / name).read_bytes()).hexdigest()
        field = "generator_sha256" if name == GENERATOR_FILE else "optimizers_sha256"
        rewrite_json(folder, lambda value: value.update({field: digest}))
    for load in (load_generator, load_training_state, load_setup):
        with contextlib.suppress(CheckpointError):
            load(folder)


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "c"
    make(folder)
    before = read_checkpoint_info(folder)

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert read_checkpoint_info(folder) == before
    assert load_generator(folder).info == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_seen_in_weights_and_in_statistics(value: float) -> None:
    for name in ("conv_img.bias", "head_0.norm_0.param_free_norm.running_var"):
        module = SpadeGenerator(SPEC)
        assert is_finite(module)
        module.state_dict()[name].view(-1)[0] = value
        assert not is_finite(module)


class TestNumbers:
    """Weights of NaN are refused where they are read: what is made of them is some colour, not an error."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_generator_that_would_make_nan_is_not_loaded(
        self, tmp_path: Path, make_generator: Callable[..., Any], value: float
    ) -> None:
        generator = make_generator()
        generator.get_parameter("conv_img.bias").data[0] = value
        save_checkpoint(tmp_path / "c", generator, step=1, origin="train")
        with pytest.raises(CheckpointError, match=r"generator\.safetensors: conv_img\.bias has values that are not"):
            load_generator(tmp_path / "c")
