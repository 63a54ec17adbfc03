from __future__ import annotations

import pytest
import torch

from spade_deploy.export.build import unit_names
from spade_deploy.export.dense_model import edge_map
from spade_deploy.export.spade import DeployModel, levels
from spade_deploy.networks import spade as networks
from spade_deploy.networks.spade import make_segmap, to_pixels
from tests.support.exactness import VARIANTS, errors, in_float64, reference, rounding_limit
from tests.support.generators import build_generator, graph_inputs, random_inputs


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_trained_module(variant: str, batch: int) -> None:
    generator = build_generator(**VARIANTS[variant])
    spec = generator.spec
    torch.manual_seed(5)
    label, instance, z = random_inputs(spec, batch)
    inputs = graph_inputs(spec, label, instance, z)
    wide = in_float64(generator)
    exact = reference(wide, label, instance, z)
    with torch.no_grad():
        _, image64 = DeployModel(wide, dtype=torch.float64)(*inputs)
        pixels, image = DeployModel(generator)(*inputs)
    # Measured worst over the variants: 4e-15 (instance norm 2e-14).
    assert (image64 - exact).abs().max() < 1e-12
    # float32: at most twice the error that eager float32 has itself; measured worst 1.5 times.
    found = errors(image, reference(generator, label, instance, z), exact)
    assert found.max_ratio <= 2
    assert found.mean_ratio <= 2
    assert torch.equal(pixels, to_pixels(image))
    assert pixels.dtype == torch.uint8
    assert image.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (96, 160)])
def test_other_sizes_than_the_trained_one(size: tuple[int, int]) -> None:
    generator = build_generator()
    label, instance, z = random_inputs(generator.spec, 2, *size)
    wide = in_float64(generator)
    exact = reference(wide, label, instance, z)
    with torch.no_grad():
        _, image64 = DeployModel(wide, dtype=torch.float64)(label, instance)
        _, image = DeployModel(generator)(label, instance)
    assert (image64 - exact).abs().max() < 1e-12
    segmap = make_segmap(label, instance, generator.spec.labels).float()
    assert (image - exact).abs().max() < rounding_limit(generator, segmap, exact)


def test_the_trained_module_is_left_alone() -> None:
    generator = build_generator()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    model = DeployModel(generator)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())


def test_one_hidden_convolution_a_resolution_and_one_modulation_a_layer() -> None:
    model = DeployModel(build_generator())
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(name.startswith("level_") for name in convolutions) == 6
    assert sum(name.endswith("modulation") for name in convolutions) == 3 * 2 + 4 * 3
    assert list(levels(model.spec)) == [32, 16, 8, 4, 2, 1]
    assert not any("norm" in type(module).__name__.lower() for module in model.modules())


def test_edges_equal_those_of_training() -> None:
    instance = torch.randint(0, 70000, (3, 9, 14), dtype=torch.int32) // 20000
    assert torch.equal(edge_map(instance), networks.edge_map(instance))
    single_row = torch.tensor([[[1, 1, 2]]], dtype=torch.int32)
    assert edge_map(single_row).flatten().tolist() == [0, 1, 1]


def test_fp16_keeps_what_it_is_told() -> None:
    generator = build_generator()
    keep = ("up_1", "level_1")
    model = DeployModel(generator, fp16=True, keep_fp32=keep)
    for name in unit_names(model.spec):
        types = {parameter.dtype for parameter in model.get_submodule(name).parameters()}
        assert types == {torch.float32 if name in keep else torch.float16}, name
    label, instance, z = random_inputs(generator.spec, 1)
    with torch.no_grad():
        _, image = model(label, instance)
    assert image.dtype == torch.float32
    difference = (image - reference(generator, label, instance, z)).abs().max()
    # Measured 1.5e-3; a block in half precision that lost its bias is off by 0.1 and more.
    assert 0 < difference < 0.01
