from __future__ import annotations

import torch
from conftest import build_generator, graph_inputs, random_inputs

from spade_deploy.export.deploy_model import DeployModel
from spade_deploy.export.models import unit_names
from spade_deploy.export.precision import FP16_MAX, HEADROOM, unit_ranges, units_to_keep
from spade_deploy.training.networks import make_segmap


def test_ordinary_model_keeps_nothing() -> None:
    generator = build_generator()
    ranges = unit_ranges(DeployModel(generator), graph_inputs(generator.spec, *random_inputs(generator.spec, 1)))
    assert list(ranges) == unit_names(generator.spec)
    assert all(0 < value < 100 for value in ranges.values())
    assert units_to_keep(ranges) == ()


def test_a_block_that_overflows_is_kept_and_the_image_saved() -> None:
    generator = build_generator(spectral_norm=False)
    with torch.no_grad():
        # Values pass half precision's maximum inside the block alone: its last convolution scales them back.
        generator.up_1.norm_1.mlp_gamma.bias += 4e6
        generator.up_1.conv_1.weight /= 4e6
    inputs = graph_inputs(generator.spec, *random_inputs(generator.spec, 1))
    ranges = unit_ranges(DeployModel(generator), inputs)
    kept = units_to_keep(ranges)
    assert "up_1" in kept
    assert ranges["up_1"] > FP16_MAX / HEADROOM
    with torch.no_grad():
        expected = generator(make_segmap(inputs[0], inputs[1], generator.spec.labels))
        _, careless = DeployModel(generator, fp16=True)(*inputs)
        _, careful = DeployModel(generator, fp16=True, keep_fp32=kept)(*inputs)
    assert not torch.isfinite(careless).all()
    assert (careful - expected).abs().mean() < 0.05


def test_not_a_number_counts_as_too_large() -> None:
    assert units_to_keep({"fc": 1.0, "up_0": float("nan"), "up_1": float("inf")}) == ("up_0", "up_1")
