"""Generators under prefixes, in wrappers and beside other networks; tensors of every type."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.runs.importer import ImportedGenerator, read_encoder_file, read_generator_file
from spade_deploy.spec import LabelSpec, Upsampling
from tests.support.generators import build_generator

LABELS = LabelSpec(5)
REQUEST = ImportRequest(labels=LABELS, upsampling=Upsampling.NORMAL, size=(32, 32))
SMALL = {"labels": LABELS, "base_channels": 2, "hidden_channels": 4, "height": 32, "width": 32, "training_steps": 1}
WEIGHT = "up_1.conv_0.weight_orig"

State = dict[str, Tensor]


@pytest.fixture(scope="module", name="state")
def _state() -> State:
    return dict(build_generator(**SMALL).state_dict())


def read(value: Any, folder: Path, request: ImportRequest = REQUEST) -> ImportedGenerator:
    torch.save(value, folder / "g.pth")
    return read_generator_file(folder / "g.pth", request)


def is_same(found: ImportedGenerator, state: State) -> bool:
    own = found.module.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], value) for key, value in state.items())


def under(prefix: str, state: State) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "netG.", "generator.", "generator_ema.", "_orig_mod.", "module.module.", "model.netG.module.",
        "_orig_mod.module.", "module._orig_mod.", "G.", "anything.at.all.",
    ],
)  # fmt: skip
def test_prefixes_are_dropped_and_said(prefix: str, state: State, tmp_path: Path) -> None:
    found = read({**under(prefix, state), "epoch": 7}, tmp_path)
    assert is_same(found, state)
    shown = prefix.replace("_orig_mod.", "").rstrip(".")
    assert not shown or any(f"'{shown}'" in note and "dropped" in note for note in found.notes)
    assert any("1 entries beside it were left out: 'epoch'" in note for note in found.notes)
    assert found.guesses == ()


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "net_G", "netG", "params_ema", "model_state_dict", "model", "G_ema", "generator", "any_name"],
)
def test_wrappers_are_opened_and_said(wrapper: str, state: State, tmp_path: Path) -> None:
    content = {wrapper: OrderedDict(state), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "epoch": 3}
    found = read(content, tmp_path)
    assert is_same(found, state)
    assert any(f"'{wrapper}'" in note for note in found.notes)
    found = read({"checkpoint": {"models": content}}, tmp_path)
    assert is_same(found, state)
    assert any(f"'checkpoint.models.{wrapper}'" in note for note in found.notes)


def test_the_middle_of_a_name(state: State, tmp_path: Path) -> None:
    """Blocks that torch.compile wrapped one by one."""
    compiled = {key.replace("up_1.", "up_1._orig_mod."): value for key, value in state.items()}
    assert any("_orig_mod" in key for key in compiled)
    assert is_same(read(compiled, tmp_path), state)


def test_parametrised_spectral_norm_is_the_same_three_tensors(state: State, tmp_path: Path) -> None:
    names = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        renamed[f"{stem}.parametrizations.weight.{names[last]}" if last in names else key] = value
    assert sum("parametrizations" in key for key in renamed) > 30
    assert is_same(read(renamed, tmp_path), state)
    # PyTorch itself, asked what it calls them.
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(2, 3, 3))
    assert {key for key in layer.state_dict() if "weight" in key} == {
        f"parametrizations.weight.{name}" for name in names.values()
    }


class TestSeveralNetworks:
    """A trainer's whole checkpoint: G, D, E, an average of G."""

    def content(self, state: State) -> dict[str, Any]:
        average = {key: value * 2 if value.is_floating_point() else value for key, value in state.items()}
        return {
            "state_dict": {
                **under("generator.", state),
                **under("discriminator.", {"discriminator_0.model0.0.weight": torch.zeros(2)}),
                **under("generator_ema.", average),
            },
            "pytorch-lightning_version": "2.0",
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4}]}],
        }

    def test_the_average_is_taken_and_said_to_be_a_guess(self, state: State, tmp_path: Path) -> None:
        found = read(self.content(state), tmp_path)
        assert torch.equal(found.module.state_dict()[WEIGHT], state[WEIGHT] * 2)
        (guess,) = found.guesses
        assert "of 2 generators in the file 'state_dict.generator_ema' was taken" in guess
        assert "not 'state_dict.generator'" in guess
        assert "`part`" in guess

    def test_the_other_on_request(self, state: State, tmp_path: Path) -> None:
        wanted = ImportRequest(labels=LABELS, upsampling=Upsampling.NORMAL, size=(32, 32), part="state_dict.generator")
        found = read(self.content(state), tmp_path, wanted)
        assert is_same(found, state)
        assert found.guesses == ()
        with pytest.raises(ConfigError, match="`part`: 'x' is not in"):
            read(self.content(state), tmp_path, ImportRequest(part="x"))

    def test_one_state_under_two_names_is_one(self, state: State, tmp_path: Path) -> None:
        found = read({"model": state, "state_dict": state}, tmp_path)
        assert is_same(found, state)
        assert found.guesses == ()

    def test_an_encoder_under_a_prefix(self, tmp_path: Path) -> None:
        generator = build_generator(**{**SMALL, "z_dim": 4})
        from spade_deploy.networks.encoder import StyleEncoder

        encoder = StyleEncoder(4, 2)
        torch.save(under("netE.module.", dict(encoder.state_dict())), tmp_path / "e.pth")
        notes: list[str] = []
        found = read_encoder_file(tmp_path / "e.pth", generator.spec, notes).state_dict()
        assert all(torch.equal(found[key], value) for key, value in encoder.state_dict().items())
        assert any("'netE.module'" in note for note in notes)


def _sparse(value: Tensor) -> Tensor:
    return value.to_sparse()


BAD_TYPES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "other float8": (lambda value: value.to(torch.float8_e5m2), "is float8_e5m2"),
    "complex": (lambda value: torch.complex(value, value), "is complex64"),
    "int8": (lambda value: value.to(torch.int8), "is int8"),
    "int64": (lambda value: value.to(torch.int64), "is int64"),
    "uint16": (lambda value: value.abs().to(torch.uint16), "is uint16"),
    "bool": (lambda value: value > 0, "is bool"),
    "sparse": (_sparse, "is sparse_coo, not dense"),
    "compressed sparse": (lambda value: value.flatten(1).to_sparse_csr(), "is sparse_csr, not dense"),
    "quantised": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is quantised"),
    "meta": (lambda value: value.to("meta"), "has a shape but no values"),
    "no dimensions": (lambda value: value.flatten()[0], r"is \(\)"),
    "empty": (lambda value: value[:0], r"is \(0, "),
    "NaN": (lambda value: value * float("nan"), "holds NaN or infinity"),
    "beyond float32": (lambda value: value.double() * 1e300, "float32 cannot hold"),
    "a number": (lambda value: 5, f"lacks '{WEIGHT}'"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*quantize.*:UserWarning")
@pytest.mark.parametrize("kind", BAD_TYPES)
def test_tensors_that_are_refused(kind: str, state: State, tmp_path: Path) -> None:
    make, message = BAD_TYPES[kind]
    with pytest.raises(CheckpointError, match=message) as caught:
        read({**state, WEIGHT: make(state[WEIGHT])}, tmp_path)
    assert WEIGHT in caught.value.message
    assert len(caught.value.message) < 600


GOOD_TYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": lambda value: value.half(),
    "bfloat16": lambda value: value.bfloat16(),
    "float64": lambda value: value.double(),
    "not contiguous": lambda value: value.transpose(0, 1).contiguous().transpose(0, 1),
    "a parameter": torch.nn.Parameter,
    "channels last": lambda value: value.contiguous(memory_format=torch.channels_last),
    "a part of a larger one": lambda value: torch.cat([value, value])[: len(value)],
}


@pytest.mark.parametrize("kind", GOOD_TYPES)
def test_tensors_that_are_read(kind: str, state: State, tmp_path: Path) -> None:
    given = GOOD_TYPES[kind](state[WEIGHT])
    found = read({**state, WEIGHT: given}, tmp_path)
    assert torch.equal(found.module.state_dict()[WEIGHT], given.detach().float())
    is_converted = given.dtype != torch.float32
    assert is_converted == any(
        f"converted to float32 from {str(given.dtype).removeprefix('torch.')}" in note for note in found.notes
    )


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool, torch.uint16])
def test_the_same_of_safetensors(kind: torch.dtype, state: State, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    plain = {key: value.contiguous() for key, value in state.items()}
    safetensors.torch.save_file({**plain, WEIGHT: plain[WEIGHT].to(kind)}, path)
    with pytest.raises(CheckpointError, match=f"is {str(kind).removeprefix('torch.')}"):
        read_generator_file(path, REQUEST)


def test_names_of_any_length_are_cut(state: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which such a network does not have") as caught:
        read({**state, "\ud800\x1b[31m" + "x" * 5000: torch.zeros(1)}, tmp_path)
    assert len(caught.value.message) < 600
    caught.value.message.encode()
    assert "\x1b" not in caught.value.message
