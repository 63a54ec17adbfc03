from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import build_generator, graph_inputs, random_inputs

from spade_deploy.export.deploy_model import DeployModel, edge_map, levels, unit_names
from spade_deploy.spec import LabelSpec, NormType, Upsampling
from spade_deploy.training import networks
from spade_deploy.training.networks import SpadeGenerator, make_segmap, to_pixels

VARIANTS: dict[str, dict[str, Any]] = {
    "normal, dontcare and edges": {},
    "no edges, no dontcare, batch norm": {"labels": LabelSpec(5), "norm": NormType.BATCH},
    "more, wide": {"upsampling": Upsampling.MORE, "height": 64, "width": 128},
    "most, kernel 1": {"upsampling": Upsampling.MOST, "height": 128, "width": 128, "kernel_size": 1},
    "kernel 5, no spectral norm": {"kernel_size": 5, "spectral_norm": False},
    "instance norm": {"norm": NormType.INSTANCE},
    "style vector": {"z_dim": 16},
}


def reference(generator: SpadeGenerator, label: Any, instance: Any, z: Any) -> torch.Tensor:
    dtype = generator.conv_img.weight.dtype
    with torch.no_grad():
        segmap = make_segmap(label, instance, generator.spec.labels).to(dtype)
        image: torch.Tensor = generator(segmap, None if z is None else z.to(dtype))
    return image


def in_float64(generator: SpadeGenerator) -> SpadeGenerator:
    wide = SpadeGenerator(generator.spec).double()
    wide.load_state_dict(generator.state_dict())
    return wide.eval()


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
    eager = (reference(generator, label, instance, z).double() - exact).abs()
    error = (image.double() - exact).abs()
    assert error.max() <= 2 * eager.max() + 1e-7
    assert error.mean() <= 2 * eager.mean()
    assert torch.equal(pixels, to_pixels(image))
    assert pixels.dtype == torch.uint8
    assert image.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (96, 160)])
def test_other_sizes_than_the_trained_one(size: tuple[int, int]) -> None:
    generator = build_generator()
    label, instance, z = random_inputs(generator.spec, 2, *size)
    with torch.no_grad():
        _, image = DeployModel(generator)(label, instance)
    # The trained module's own rounding here is 6e-7; measured 8e-7.
    assert (image - reference(generator, label, instance, z)).abs().max() < 3e-6


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
