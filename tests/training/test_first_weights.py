"""`--init`: which weights a run begins with, when its network is that of the given model and when it is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spade_deploy.errors import CheckpointError
from spade_deploy.networks.build import build_generator
from spade_deploy.runs.shipped import shipped_generator
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.device import choose_device
from spade_deploy.training.first_weights import first_weights
from spade_deploy.training.learner import LearningNetworks
from spade_deploy.training.presets import preset


def earth_spec() -> GeneratorSpec:
    return preset("earth").generator


def with_style() -> GeneratorSpec:
    return replace(earth_spec(), z_dim=8)


def test_the_same_network_takes_every_tensor() -> None:
    tensors, notes = first_weights("earth", build_generator(earth_spec()))
    assert notes == ()
    wanted = shipped_generator().state_dict()
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_a_network_with_a_style_keeps_its_first_layer_alone() -> None:
    earth = preset("earth")
    setup = Setup(replace(earth.train, init="earth"), with_style(), earth.data)
    learner = LearningNetworks(setup, choose_device("cpu"))
    random = {name: tensor.clone() for name, tensor in learner.generator.state_dict().items()}
    (note,) = learner.begin()
    assert note == (
        "this network has a style vector and that of earth has none: the first layer begins with random weights, all"
        " others with those of earth"
    )
    shipped = shipped_generator().state_dict()
    for name, tensor in learner.generator.state_dict().items():
        assert torch.equal(tensor, random[name] if name.startswith("fc.") else shipped[name]), name
    assert learner.generator.state_dict()["fc.weight"].shape == (4096, 8)


def test_the_other_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = build_generator(with_style())
    monkeypatch.setattr("spade_deploy.training.first_weights.shipped_generator", lambda _: given)
    own = build_generator(earth_spec())
    tensors, (note,) = first_weights("earth", own)
    assert note.startswith("only the network of earth has a style vector: the first layer begins with random weights")
    assert tensors.keys() == own.state_dict().keys()
    assert torch.equal(tensors["fc.weight"], own.state_dict()["fc.weight"])
    assert torch.equal(tensors["conv_img.weight"], given.state_dict()["conv_img.weight"])


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"base_channels": 8}, r"^`init`: the network of earth has `base_channels` 16, not 8$", "spade distill"),
        (
            {"base_channels": 8, "hidden_channels": 4, "z_dim": 8},
            r"^`init`: the network of earth has `base_channels` 16, not 8, `hidden_channels` 32, not 4$",
            "spade distill",
        ),
    ],
)
def test_other_widths_are_refused_by_name(changed: dict[str, int], message: str, hint: str) -> None:
    generator = build_generator(replace(earth_spec(), **changed))
    with pytest.raises(CheckpointError, match=message) as caught:
        first_weights("earth", generator)
    assert hint in str(caught.value.hint)


def test_other_labels_styles_and_architectures_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = replace(earth_spec(), labels=LabelSpec(5))
    with pytest.raises(CheckpointError, match=r"has 17 channels of labels, not 5$"):
        first_weights("earth", build_generator(labels))
    with pytest.raises(CheckpointError, match=r"has `architecture` spade, not crn$") as caught:
        first_weights("earth", build_generator(earth_spec().with_architecture(Architecture.CRN)))
    assert "spade distill" not in str(caught.value.hint)
    given = build_generator(with_style())
    monkeypatch.setattr("spade_deploy.training.first_weights.shipped_generator", lambda _: given)
    with pytest.raises(CheckpointError, match=r"has a style vector of 8 numbers, not 4$"):
        first_weights("earth", build_generator(replace(with_style(), z_dim=4)))
