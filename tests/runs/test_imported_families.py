"""Imports of SPADE's neighbours, each against a second writing of its original: same tensors, same image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import default_style
from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.build import build_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs.import_request import RELEASED, ImportRequest
from spade_deploy.runs.importer import import_checkpoint, read_encoder_file, read_generator_file
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, LabelSpec, Upsampling
from spade_deploy.training.request import TrainRequest
from spade_deploy.training.resolve import new_setup
from tests.support import clade_by_the_facts as clade
from tests.support import oasis_by_the_facts as oasis
from tests.support.exactness import in_float64, named_inputs
from tests.support.families import FILES
from tests.support.generators import random_inputs


def saved(state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "best_net_G.pth"
    torch.save(state, path)
    return path


def wide(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", list(FILES))
def test_the_network_and_every_graph_equal_the_second_writing(name: str, tmp_path: Path) -> None:
    released = FILES[name]()
    found = read_generator_file(saved(released.state, tmp_path), released.request)
    assert not found.module.training
    spec, generator = found.spec, in_float64(found.module)
    torch.manual_seed(3)
    for label, instance, z in (random_inputs(spec, 2), uniform(spec)):
        asked = None if z is None else z.double()
        expected = released.generate(wide(released.state), label, instance if spec.labels.has_edges else None, asked)
        # An image that is one colour, or that tanh has saturated, would compare nothing.
        assert expected.std() > 0.1
        assert expected.abs().mean() < 0.8
        with torch.no_grad():
            image = generator(make_segmap(label, instance, spec.labels).double(), asked)
            # Measured worst 6e-15 with batch norm, 2e-13 with instance norm.
            assert (image - expected).abs().max() < 5e-12
            for kind in spec.graph_kinds:
                model = build_model(generator, kind, dtype=torch.float64)
                fed = model_inputs(model, named_inputs(spec, label, instance, z))
                image = model(*(one.double() if one.is_floating_point() else one for one in fed))[1]
                assert (image - expected).abs().max() < 5e-12, kind


def uniform(spec: Any) -> Any:
    """Maps of two halves, most of whose pixels see one class alone."""
    label, instance, z = random_inputs(spec, 2)
    label[:], instance[:] = 1, 0
    label[:, :, : label.shape[2] // 2] = 2
    return label, instance, z


# --- CLADE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RELEASED))
def test_a_released_clade_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    labels = label_set(name)
    path = saved(clade.state_dict(labels.num_ids, labels.has_edges, 2), tmp_path)
    found = read_generator_file(path, ImportRequest())
    upsampling, height, width = RELEASED[name]
    spec = found.spec
    assert (spec.architecture, spec.labels, spec.base_channels) == (Architecture.CLADE, labels, 2)
    assert (spec.upsampling, spec.height, spec.width) == (upsampling, height, width)
    assert spec.graph_kinds == tuple(GraphKind)
    assert re.search(rf"the \d+ segmap channels are {name}'s", found.guesses[0])


def test_what_contradicts_a_clade_file_is_named(tmp_path: Path) -> None:
    state = clade.state_dict(6, True, 2)
    path, asked = saved(state, tmp_path), {"upsampling": Upsampling.NORMAL, "size": (64, 64)}
    with pytest.raises(CheckpointError, match=r"tables of 6 classes with an edge channel.*7 ids without an one"):
        read_generator_file(path, ImportRequest(labels=LabelSpec(7), **asked))
    with pytest.raises(CheckpointError, match="the file has 7 segmap channels, but these labels need 4"):
        read_generator_file(path, ImportRequest(num_labels=4, **asked))
    with pytest.raises(ConfigError, match="a segmap of 7 channels is none of the released models"):
        read_generator_file(path, ImportRequest())
    labels = ImportRequest(num_labels=6, has_edges=True, **asked)
    other = {**state, "fc.weight": torch.zeros(32, 9, 3, 3)}
    with pytest.raises(CheckpointError, match=r"'fc.weight' takes 9 channels, but the tables with an edge .* imply 7"):
        read_generator_file(saved(other, tmp_path), labels)
    other = {**state, "up_1.norm_s.class_specified_affine.bias": torch.zeros(5, 16)}
    with pytest.raises(CheckpointError, match=r"'up_1.norm_s.class_specified_affine.bias' is \(5, 16\)"):
        read_generator_file(saved(other, tmp_path), labels)
    lacking = {name: tensor for name, tensor in state.items() if name != "up_2.norm_1.inst_conv.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 'up_2.norm_1.inst_conv.bias'"):
        read_generator_file(saved(lacking, tmp_path), labels)


def test_positional_encoding_is_refused_and_not_ignored(tmp_path: Path) -> None:
    state = clade.state_dict(6, False, 2)
    state["head_0.norm_0.class_specified_affine.dist_conv_w.weight"] = torch.zeros(1, 2, 1, 1)
    with pytest.raises(CheckpointError, match="positional encoding of CLADE-ICPE") as caught:
        read_generator_file(saved(state, tmp_path), ImportRequest())
    assert "_dist" in str(caught.value.hint)


def test_an_import_says_which_network_it_is(tmp_path: Path) -> None:
    released = FILES["clade"]()
    result = import_checkpoint(saved(released.state, tmp_path), released.request, runs_dir=tmp_path / "runs")
    assert result.described.startswith("clade, 7 segmap channels, 64 x 128, upsampling normal, sync_batch norm")


# --- OASIS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "order"),
    [
        ("ade20k", 151, list(range(151))),  # its files hold 0 for unknown pixels themselves
        ("coco", 183, [*range(1, 183), 0]),  # a file's id k is channel k + 1
        ("cityscapes", 35, list(range(35))),
    ],
)
@pytest.mark.parametrize("noise", [64, 0])
def test_a_released_oasis_is_told_by_its_shapes(
    name: str, channels: int, order: list[int], noise: int, tmp_path: Path
) -> None:
    state = oasis.state_dict(channels, 2, noise=noise, hidden=2)
    found = read_generator_file(saved(state, tmp_path), ImportRequest())
    spec = found.spec
    assert (spec.architecture, spec.z_dim, spec.doublings) == (Architecture.OASIS, noise or None, 5)
    assert (spec.labels.num_ids, spec.labels.has_edges) == (channels, False)
    assert (spec.height, spec.width) == ((256, 512) if name == "cityscapes" else (256, 256))
    assert re.search(rf"the labels are {name}'s, judged by the number of channels", found.guesses[0])
    # The channel of each id, of all convolutions that see the labels.
    moved = [*range(noise), *(noise + channel for channel in order)]
    for key in ("fc.weight", "body.2.norm_1.mlp_shared.0.weight"):
        assert torch.equal(found.module.state_dict()[key], state[key][:, moved]), key
    assert any("unknown pixels" in note for note in found.notes) == (name == "coco")


def test_what_contradicts_an_oasis_file_is_named(tmp_path: Path) -> None:
    state = oasis.state_dict(6, 2)
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError, match="70 channels, of which these labels are 5: 65 are left for the noise"):
        read_generator_file(path, ImportRequest(num_labels=5, size=(64, 64)))
    with pytest.raises(CheckpointError, match="70 channels, of which these labels are 151: -81 are left"):
        read_generator_file(path, ImportRequest("ade20k"))
    with pytest.raises(ConfigError, match=r"70 channels of noise and labels are none of .* ade20k 215"):
        read_generator_file(path, ImportRequest())
    with pytest.raises(ConfigError, match="`size` is needed"):
        read_generator_file(path, ImportRequest(num_labels=6))
    with pytest.raises(CheckpointError, match="`has_edges`: OASIS sees no edges"):
        read_generator_file(path, ImportRequest(num_labels=5, has_edges=True, size=(64, 64)))
    with pytest.raises(CheckpointError, match="`upsampling` means nothing to OASIS"):
        read_generator_file(path, ImportRequest(num_labels=6, size=(64, 64), upsampling=Upsampling.MORE))
    asked = ImportRequest(num_labels=6, size=(64, 64))
    wrong = {**state, "fc.weight": torch.zeros(32, 69, 3, 3)}
    with pytest.raises(CheckpointError, match=r"'fc.weight' takes 69 channels, but the modulation 70"):
        read_generator_file(saved(wrong, tmp_path), asked)
    wrong = {**state, "body.3.norm_s.mlp_shared.0.weight": torch.zeros(7, 69, 3, 3)}
    with pytest.raises(CheckpointError, match=r"'body.3.norm_s.mlp_shared.0.weight' is \(7, 69, 3, 3\)"):
        read_generator_file(saved(wrong, tmp_path), asked)
    spec = read_generator_file(saved(state, tmp_path), asked).spec
    with pytest.raises(CheckpointError, match="the generator has no style vector"):
        read_encoder_file(tmp_path / "latest_net_E.pth", spec)


def test_an_average_of_weights_is_taken_from_a_file_of_two(tmp_path: Path) -> None:
    both = {"netG": oasis.state_dict(6, 2, seed=1), "netEMA": oasis.state_dict(6, 2, seed=2)}
    found = read_generator_file(saved(both, tmp_path), ImportRequest(num_labels=6, size=(64, 64)))
    assert torch.equal(found.module.conv_img.weight, both["netEMA"]["conv_img.weight"])
    assert any("of 2 generators in the file 'netEMA' was taken" in guess for guess in found.guesses)


def test_noise_is_asked_for_and_drawn_where_none_is_given() -> None:
    spec = GeneratorSpec(LabelSpec(3), base_channels=2).with_architecture(Architecture.OASIS)
    generator = build_generator(spec)
    with pytest.raises(ValueError, match="OASIS needs noise"):
        generator(torch.zeros(1, 3, 64, 64))
    first, second = default_style(spec, 2)
    assert np.array_equal(first, second)
    assert 0.7 < first.std() < 1.3  # zeros are nothing that a network was trained on
    spade = GeneratorSpec(LabelSpec(3), z_dim=8)
    assert not default_style(spade).any()
    assert default_style(GeneratorSpec(LabelSpec(3))) is None


def test_oasis_is_not_trained_here() -> None:
    with pytest.raises(ConfigError, match="`architecture` oasis is not trained here"):
        new_setup(TrainRequest(generator={"architecture": Architecture.OASIS}), downloads=False)
