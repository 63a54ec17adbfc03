"""Imports of SPADE's neighbours, each against a second writing of its original: same tensors, same image."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import default_style, graph_tensors
from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.labels.sets import label_set
from spade_deploy.lookup.tables import lookup_tensors
from spade_deploy.networks.build import build_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs.import_request import RELEASED, ImportRequest
from spade_deploy.runs.importer import import_checkpoint, read_encoder_file, read_generator_file
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, LabelSpec, NormType, Upsampling
from spade_deploy.training.request import TrainRequest
from spade_deploy.training.resolve import new_setup
from tests.support import clade_by_the_facts as clade
from tests.support import oasis_by_the_facts as oasis
from tests.support import pix2pixhd_by_the_facts as pix2pixhd
from tests.support.exactness import FLOAT32_EPS, in_float64, named_inputs
from tests.support.families import FILES
from tests.support.generators import random_inputs

PIX2PIXHD = Architecture.PIX2PIXHD


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
            # Measured worst 2e-14, and 7e-13 of instance norm on uniform maps. pix2pixHD's biases before a batch norm
            # go into its mean, which is rounded to float32 once: 4e-8.
            limit = 16 * FLOAT32_EPS if name == "pix2pixhd, batch norm" else 2e-11
            assert (image - expected).abs().max() < limit
            for kind in spec.graph_kinds:
                model = build_model(generator, kind, dtype=torch.float64)
                fed = model_inputs(model, named_inputs(spec, label, instance, z))
                image = model(*(one.double() if one.is_floating_point() else one for one in fed))[1]
                assert (image - expected).abs().max() < limit, kind


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
    with pytest.raises(ConfigError, match="a segmap of 7 channels matches none of the released models"):
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


def test_positional_encoding_is_read_and_not_ignored(tmp_path: Path) -> None:
    state = clade.state_dict(6, False, 2, positions=True)
    request = ImportRequest(num_labels=6, size=(64, 64), upsampling=Upsampling.NORMAL)
    spec = read_generator_file(saved(state, tmp_path), request).spec
    assert spec.has_positions
    assert spec.to_json()["has_positions"] is True
    assert "has_positions" not in replace(spec, has_positions=False).to_json()  # versions without it read the others
    assert [tensor.name for tensor in graph_tensors(spec)] == ["label", "position"]
    assert [tensor.name for tensor in lookup_tensors(spec)][-1] == "position"
    with pytest.raises(ConfigError, match="`architecture` spade contradicts `has_positions` True"):
        GeneratorSpec(LabelSpec(3), has_positions=True)
    lacking = {key: one for key, one in state.items() if key != "up_0.norm_1.class_specified_affine.dist_conv_b.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 'up_0.norm_1.class_specified_affine.dist_conv_b.bias'"):
        read_generator_file(saved(lacking, tmp_path), request)


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


# --- pix2pixHD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("local_blocks", "size"), [(0, (512, 1024)), (3, (1024, 2048))])
def test_a_released_pix2pixhd_is_told_by_its_shapes(local_blocks: int, size: tuple[int, int], tmp_path: Path) -> None:
    state = {f"module.{name}": one for name, one in pix2pixhd.state_dict(36, 2, local_blocks=local_blocks).items()}
    found = read_generator_file(saved(state, tmp_path), ImportRequest())
    spec = found.spec
    assert (spec.architecture, spec.labels, spec.norm) == (PIX2PIXHD, label_set("cityscapes"), NormType.INSTANCE)
    assert (spec.base_channels, spec.halvings, spec.residual_blocks, spec.enhancer_blocks) == (2, 4, 9, local_blocks)
    assert (spec.height, spec.width) == size
    assert (spec.stride, spec.least_side) == ((16, 32) if local_blocks == 0 else (32, 64))
    assert re.search(r"the 36 segmap channels are cityscapes' .* change it with `preset`", found.guesses[0])
    # One for each norm: the entrance, 4 halvings, 9 blocks of 2, 4 doublings; and 3 + 3 blocks of 2 of the enhancer.
    biases = 27 + (3 + 2 * local_blocks if local_blocks else 0)
    assert any(f"the biases of {biases} convolutions went into the norm" in note for note in found.notes)
    assert GeneratorSpec.from_json(spec.to_json()) == spec


def test_a_published_pix2pixhd_is_saved_as_before_it_had_depths() -> None:
    """So that versions without these fields read its checkpoints and artifacts."""
    spec = GeneratorSpec(LabelSpec(3)).with_architecture(PIX2PIXHD)
    assert not {"halvings", "residual_blocks", "enhancer_blocks"} & set(spec.to_json())
    deep = replace(spec, residual_blocks=4, enhancer_blocks=3)
    assert {name: deep.to_json().get(name) for name in ("halvings", "residual_blocks", "enhancer_blocks")} == {
        "halvings": None,
        "residual_blocks": 4,
        "enhancer_blocks": 3,
    }
    with pytest.raises(ConfigError, match="`architecture` spade contradicts `residual_blocks` 4"):
        GeneratorSpec(LabelSpec(3), residual_blocks=4)


def test_statistics_that_old_instance_norms_saved_are_left_out(tmp_path: Path) -> None:
    released = FILES["pix2pixhd, local"]()
    old = dict(released.state)
    for name in ("model.2", "model.5", "model1_1.2"):
        width = len(old[f"{name[:-1]}{int(name[-1]) - 1}.bias"])
        old[f"{name}.running_mean"], old[f"{name}.running_var"] = torch.full((width,), 9.0), torch.full((width,), 9.0)
    found = read_generator_file(saved(old, tmp_path), released.request)
    plain = read_generator_file(saved(released.state, tmp_path), released.request)
    assert any("running statistics of 3 instance norms were left out" in note for note in found.notes)
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(tensor, found.module.state_dict()[name]), name


def test_what_contradicts_a_pix2pixhd_file_is_named(tmp_path: Path) -> None:
    depth = {"halvings": 2, "blocks": 2}
    local = pix2pixhd.state_dict(7, 2, **depth, local_blocks=2)
    path = saved(local, tmp_path)
    asked = ImportRequest(num_labels=7, size=(64, 64))
    with pytest.raises(CheckpointError, match=r"7 segmap channels, but these labels need 5 \(5 labels"):
        read_generator_file(path, ImportRequest(num_labels=5, size=(64, 64)))
    with pytest.raises(ConfigError, match="a segmap of 7 channels is not that of the released model"):
        read_generator_file(path, ImportRequest())
    with pytest.raises(ConfigError, match="`size` is needed"):
        read_generator_file(path, ImportRequest(num_labels=7))
    with pytest.raises(ConfigError, match="height 60 is not a multiple of 8 from 16 on"):
        read_generator_file(path, replace(asked, size=(60, 64)))
    with pytest.raises(CheckpointError, match="`upsampling` means nothing to pix2pixHD"):
        read_generator_file(path, replace(asked, upsampling=Upsampling.MORE))
    with pytest.raises(CheckpointError, match="has no weights of batch norm, which contradicts `norm` batch"):
        read_generator_file(path, replace(asked, norm=NormType.BATCH))
    with pytest.raises(CheckpointError, match=r"fed pictures \(label_nc 0\), and no label maps"):
        read_generator_file(saved(pix2pixhd.state_dict(3, 2, **depth), tmp_path), ImportRequest())
    cases = {
        "lacks 'enhancer_up.conv.weight'": {key: one for key, one in local.items() if key != "model1_2.2.weight"},
        r"the residual blocks \[0, 2\] of model1_2 do not follow": renamed(local, "model1_2.1.", "model1_2.2."),
        "the enhancer sees 7 channels, the global generator 6": {**local, "model.1.weight": torch.zeros(4, 6, 7, 7)},
        r"'conv_in.conv.weight' is \(6, 7, 7, 7\)": {**local, "model.1.weight": torch.zeros(6, 7, 7, 7)},
        "has 'model.90.weight'": {**local, "model.90.weight": torch.zeros(1)},
        "first convolution is 5 wide, not 7": {**local, "model1_1.1.weight": torch.zeros(2, 7, 5, 5)},
    }
    for message, state in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read_generator_file(saved(state, tmp_path), asked)
    with pytest.raises(CheckpointError, match="this is the discriminator"):
        read_generator_file(saved({"scale0_layer0.0.weight": torch.zeros(1)}, tmp_path), ImportRequest())


def renamed(state: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): one for key, one in state.items()}
