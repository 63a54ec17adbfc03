"""The synthesis network of SIMS: a pass written once more, and where its canvas comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spade_deploy.networks.sims import SemiParametricGenerator, bank_of_generator, encoder_widths, give_bank
from spade_deploy.networks.spade import make_segmap
from spade_deploy.retrieval.build import BankBuilder
from spade_deploy.retrieval.canvas import make_canvas
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, Upsampling
from tests.support.memory_banks import blocks, photo_of

LABELS = LabelSpec(5, has_dontcare=True)
SPEC = GeneratorSpec(LABELS, base_channels=2, height=64, width=64).with_architecture(Architecture.SIMS)


def test_widths() -> None:
    large = GeneratorSpec(LABELS, upsampling=Upsampling.MOST).with_architecture(Architecture.SIMS)
    assert list(encoder_widths(large).values()) == [64, 128, 256, 512, 512, 512, 512, 512]
    assert list(encoder_widths(SPEC).values()) == [2, 4, 8, 16, 16, 16]


def test_a_hand_made_pass_gives_the_same_image() -> None:
    """Written once more with functional calls alone, in float64."""
    torch.manual_seed(0)
    generator = SemiParametricGenerator(SPEC).double().eval()
    for parameter in generator.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # scales and offsets that are not 1 and 0
    weights = {name: tensor.detach() for name, tensor in generator.named_parameters()}
    functional = nn.functional

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        x = functional.conv2d(x, weights[f"{conv}.weight"], padding=1, stride=stride)
        mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
        scale, offset = (weights[f"{norm}.{which}"][:, None, None] for which in ("weight", "bias"))
        return functional.leaky_relu((x - mean) / (variance + 1e-5).sqrt() * scale + offset, 0.2)

    segmap, canvas = torch.rand(2, 6, 64, 96, dtype=torch.float64), torch.randn(2, 4, 64, 96, dtype=torch.float64)
    encoded, x = {}, torch.cat([segmap, canvas], dim=1)
    for index in range(6):
        x = layer(x, f"encode_{index}.conv", f"encode_{index}.norm", 2 if index else 1)
        encoded[64 >> index] = x
    x = None
    for index in range(6):
        height = 2 << index
        width, cell = height * 3 // 2, 64 // height
        shares = segmap.reshape(2, 6, height, cell, width, cell).mean((3, 5))
        larger = [] if x is None else [functional.interpolate(x, size=(height, width), mode="bilinear")]
        x = torch.cat([*larger, shares, encoded[height]], dim=1)
        for part in (0, 1):
            x = layer(x, f"refine_{index}.conv_{part}", f"refine_{index}.norm_{part}")
    image = torch.tanh(functional.conv2d(x, weights["conv_img.weight"], weights["conv_img.bias"]))
    with torch.no_grad():
        found = generator(segmap, canvas=canvas)
        assert (found - image).abs().max() < 1e-12  # measured 2e-15
        canvas[:, 3] = 1 - canvas[:, 3]
        assert (generator(segmap, canvas=canvas) - image).abs().max() > 1e-3  # the holes are seen


def test_the_canvas_is_that_of_the_bank() -> None:
    torch.manual_seed(0)
    generator = SemiParametricGenerator(SPEC).eval()
    builder = BankBuilder(LABELS)
    for number in range(4):
        builder.add(number, blocks(number, 16), photo_of(number))
    bank = builder.bank(100)
    label = np.stack([blocks(7, 16)[:64, :64], blocks(8, 16)[:64, :64]])
    label[0, :16] = LABELS.unknown_id
    segmap = make_segmap(torch.from_numpy(label), None, LABELS)
    canvas = torch.from_numpy(np.stack([make_canvas(bank, one, LABELS.unknown_id) for one in label]))
    assert (canvas[0, 3, :16] == 1).all()
    holes = torch.zeros_like(canvas)
    holes[:, 3] = 1
    with torch.no_grad():
        assert torch.equal(generator(segmap), generator(segmap, canvas=holes))
        give_bank(generator, bank)
        assert bank_of_generator(generator) is bank
        assert torch.equal(generator(segmap), generator(segmap, canvas=canvas))
        assert not torch.equal(generator(segmap), generator(segmap, canvas=holes))
    assert "bank" not in {name.partition(".")[0] for name in generator.state_dict()}


def test_other_networks_have_no_bank() -> None:
    plain = nn.Conv2d(1, 1, 1)
    give_bank(plain, None)
    assert bank_of_generator(plain) is None
    with pytest.raises(ValueError, match="takes no style vector"):
        SemiParametricGenerator(SPEC)(torch.zeros(1, 6, 64, 64), torch.zeros(1, 4))
