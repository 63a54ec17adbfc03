"""SPADE with a width of its own in each level: what a spec may say, what is saved, and what the layers have."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from spade_deploy.errors import ConfigError
from spade_deploy.fields import digest_of
from spade_deploy.inspection.description import spec_rows
from spade_deploy.networks.build import build_generator
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, Upsampling, least_base, usual_widths

LABELS = LabelSpec(3)
OWN = {"level_channels": (30, 16, 7, 3, 2), "level_hidden": (4, 3, 2, 1, 4)}


def spec_of(**fields: Any) -> GeneratorSpec:
    return GeneratorSpec(LABELS, **{"base_channels": 2, "hidden_channels": 4, "height": 64, "width": 64, **fields})


def test_a_spec_without_own_widths_is_saved_as_before() -> None:
    saved = spec_of().to_json()
    assert not {"level_channels", "level_hidden"} & set(saved)
    # The digest that the version before this setting gave the same spec.
    assert digest_of(saved) == "7b2ca7485916f6d4de7b808256f37a2dc33588f4c99a59d5046fb5e3b363c023"
    assert GeneratorSpec.from_json(saved) == spec_of()


def test_own_widths_are_saved_and_read() -> None:
    spec = spec_of(**OWN)
    saved = json.loads(json.dumps(spec.to_json()))
    assert saved["level_channels"] == [30, 16, 7, 3, 2]
    assert GeneratorSpec.from_json(saved) == spec


def test_the_layers_have_the_widths_of_their_level() -> None:
    generator = build_generator(spec_of(**OWN))
    assert generator.fc.out_channels == 30
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.named_parameters()}
    assert shapes["G_middle_1.conv_1.weight_orig"] == (30, 30, 3, 3)
    assert shapes["G_middle_0.norm_0.mlp_gamma.weight"] == (30, 4, 3, 3)
    assert shapes["up_0.conv_s.weight_orig"] == (16, 30, 1, 1)
    assert shapes["up_1.norm_s.mlp_beta.weight"] == (16, 2, 3, 3)
    assert shapes["up_2.norm_1.mlp_shared.0.weight"] == (1, 3, 3, 3)
    assert shapes["up_3.conv_1.weight_orig"] == (2, 2, 3, 3)
    assert shapes["conv_img.weight"] == (3, 2, 3, 3)
    label = torch.zeros(1, 3, 64, 64)
    assert generator(label).shape == (1, 3, 64, 64)


def test_the_papers_widths_given_one_by_one_are_the_papers_network() -> None:
    plain, given = spec_of(), spec_of(level_channels=(32, 16, 8, 4, 2), level_hidden=(4,) * 5)
    assert given.blocks == plain.blocks
    assert (plain.level_text, given.level_text) == (
        "",
        "channels by level 32-16-8-4-2, hidden by level 4-4-4-4-4",
    )
    assert ("channels", f"2 base, 4 hidden, kernel 3; {given.level_text}") in spec_rows(given, "")


def test_the_least_base_channels_that_allow_widths() -> None:
    assert usual_widths(4, Upsampling.MOST) == (64, 32, 16, 8, 4, 2)
    assert least_base((64, 32, 16, 8, 4), Upsampling.NORMAL) == 4
    assert least_base((64, 32, 16, 8, 5), Upsampling.MORE) == 6
    assert least_base((64, 32, 16, 8, 4, 3), Upsampling.MOST) == 6
    assert least_base((10, 9, 3, 2, 1), Upsampling.NORMAL) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"level_channels": (32, 16, 8, 4)},
            "`level_channels` '32,16,8,4': 4 widths, and there are 5 levels with upsampling normal",
        ),
        (
            {"level_channels": (32, 16, 8, 4, 2), "upsampling": Upsampling.MOST, "height": 128, "width": 128},
            "5 widths, and there are 6 levels with upsampling most",
        ),
        (
            {"level_channels": (32, 17, 8, 4, 2)},
            "'32,17,8,4,2': width 17 of level 2 is not in 1..16, which is what `base_channels` 2 allows",
        ),
        ({"level_channels": (32, 16, 8, 4, 0)}, "width 0 of level 5 is not in 1..2"),
        ({"level_channels": (16, 16, 8, 4, 2)}, "`level_channels` '16,16,8,4,2': widths that do not descend"),
        ({"level_hidden": (4, 4, 4, 4)}, "`level_hidden` '4,4,4,4': 4 widths"),
        (
            {"level_hidden": (4, 5, 4, 4, 4)},
            "width 5 of level 2 is not in 1..4, which is what `hidden_channels` 4 allows",
        ),
    ],
)
def test_widths_that_no_generator_has_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(**fields)
    assert message in error.value.message


@pytest.mark.parametrize("architecture", [one for one in Architecture if one is not Architecture.SPADE])
def test_only_spade_has_them(architecture: Architecture) -> None:
    other = spec_of().with_architecture(architecture)
    with pytest.raises(ConfigError, match=f"`architecture` {architecture} contradicts `level_channels`"):
        GeneratorSpec(**{**vars(other), "level_channels": (30, 16, 7, 3, 2)})
    assert spec_of(**OWN).with_architecture(architecture).level_channels is None
