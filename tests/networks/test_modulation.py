"""gamma and beta by patterns in training: the dense module's function, and its gradients."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spade_deploy.errors import InputRefusedError
from spade_deploy.networks.modulation import Gather, TrainingLookup, training_lookup
from spade_deploy.networks.spade import SpadeGenerator, make_segmap
from spade_deploy.spec import LabelSpec, NormType
from tests.support.generators import build_generator, random_inputs

TINY: dict[str, Any] = {"base_channels": 2, "hidden_channels": 4, "height": 64, "width": 64}


def made(**fields: Any) -> SpadeGenerator:
    generator: SpadeGenerator = build_generator(**{**TINY, "training_steps": 1, **fields})
    return generator.double().train()


def regions(labels: LabelSpec, count: int = 2, height: int = 64, width: int = 64) -> tuple[Tensor, Tensor]:
    """Label and instance maps with areas of one pattern, lines, corners, and some noise; every id occurs."""
    numbers = np.random.default_rng(0)
    small = numbers.integers(0, labels.num_ids, (count, height // 8, width // 8), np.int64)
    small.reshape(-1)[: labels.num_ids] = np.arange(labels.num_ids)
    label = small.repeat(8, 1).repeat(8, 2)
    label[:, 20:30, 20:30] = numbers.integers(0, labels.num_ids, (count, 10, 10))
    return torch.from_numpy(label), torch.from_numpy(label // 2)


def passed(
    generator: SpadeGenerator, label: Tensor, instance: Tensor, tables: TrainingLookup | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The images and the gradients of every parameter and of the style, of a copy of the generator."""
    module, spec = copy.deepcopy(generator), generator.spec
    numbers = torch.Generator().manual_seed(1)
    segmap = make_segmap(label, instance, spec.labels).double()
    z = None
    if spec.z_dim is not None:
        z = torch.randn(len(label), spec.z_dim, generator=numbers, dtype=torch.float64).requires_grad_()
    images = module(segmap, z, tables)
    weights = torch.randn(images.shape, generator=numbers, dtype=torch.float64)
    (images * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert len(gradients) == len(list(module.parameters()))
    return images.detach(), gradients | ({} if z is None or z.grad is None else {"z": z.grad})


def difference(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> float:
    """The largest difference of an image, or of a gradient as a share of its own greatest value.

    A greatest value below a hundredth of that of all gradients counts as such a hundredth: the gradient of a bias
    before a norm is zero but for rounding.
    """
    greatest = {name: gradient.abs().max().item() for name, gradient in expected[1].items()}
    least = 0.01 * max(greatest.values())
    assert set(found[1]) == set(expected[1])
    return max(
        (found[0] - expected[0]).abs().max().item(),
        *((found[1][name] - g).abs().max().item() / max(greatest[name], least) for name, g in expected[1].items()),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kernel_size": 1},
        {"kernel_size": 5},
        {"labels": LabelSpec(5)},
        {"labels": LabelSpec(5, has_dontcare=True), "norm": NormType.INSTANCE},
        {"labels": LabelSpec(1, has_edges=True), "norm": NormType.BATCH, "spectral_norm": False},
        {"z_dim": 3, "height": 32, "width": 64, "norm": NormType.BATCH},
        {"upsampling": "more", "width": 128},
    ],
    ids=lambda fields: "-".join(fields) or "as the paper",
)
def test_images_and_gradients_are_those_of_the_convolutions(fields: dict[str, Any]) -> None:
    if "upsampling" in fields:
        fields = {**fields, "upsampling": type(made().spec.upsampling)(fields["upsampling"])}
    generator = made(**fields)
    label, instance = regions(generator.spec.labels, 2, generator.spec.height, generator.spec.width)
    tables = training_lookup(generator.spec, label, instance, max_share=1.0)
    assert set(tables.levels) == {block.stride for block in generator.spec.blocks}
    found, expected = (passed(generator, label, instance, used) for used in (tables, None))
    assert expected[0].std() > 0.01  # images that are no constant
    assert difference(found, expected) < 2e-11  # measured: 5e-13 at worst, with one label and batch norm


@pytest.mark.parametrize("spoil", ["another batch", "inside", "no edges", "one pixel"])
def test_wrong_tables_are_seen(spoil: str) -> None:
    generator = made()
    spec = generator.spec
    label, instance = regions(spec.labels)
    tables = training_lookup(spec, label, instance, max_share=1.0)
    if spoil == "another batch":
        wrong = training_lookup(spec, label.flip(0), instance.flip(0), max_share=1.0)
    elif spoil == "no edges":
        wrong = training_lookup(spec, label, torch.zeros_like(instance), max_share=1.0)
    else:
        level = tables.levels[1]
        rows = len(level.starts)
        if spoil == "inside":  # outside of the image the hidden map would not be zero
            index = level.taps.index.clone()
            index[index == rows] = 0
            level = replace(level, taps=Gather.of(index.numpy(), rows + 1))
        else:
            index = level.pixels.index.clone()
            index[1000] = (index[1000] + 1) % len(level.pixels.offsets)
            level = replace(level, pixels=Gather.of(index.numpy(), len(level.pixels.offsets)))
        wrong = TrainingLookup({**tables.levels, 1: level})
    expected = passed(generator, label, instance, None)
    assert difference(passed(generator, label, instance, wrong), expected) > 1e-4


def test_a_wrong_inverse_spoils_gradients_alone() -> None:
    generator = made()
    label, instance = regions(generator.spec.labels)
    tables = training_lookup(generator.spec, label, instance, max_share=1.0)
    level = tables.levels[1]
    wrong = replace(level, pixels=replace(level.pixels, order=level.pixels.order.roll(1)))
    found = passed(generator, label, instance, TrainingLookup({**tables.levels, 1: wrong}))
    expected = passed(generator, label, instance, None)
    assert torch.allclose(found[0], expected[0], rtol=0, atol=2e-12)
    assert difference(found, expected) > 1e-3


def test_levels_with_many_patterns_are_convolved_and_nothing_changes() -> None:
    generator = made()
    spec = generator.spec
    label, instance = regions(spec.labels)
    everywhere = training_lookup(spec, label, instance, max_share=1.0)
    some = training_lookup(spec, label, instance, max_share=0.5)
    shares = {s: len(level.pixels.offsets) / len(level.pixels.index) for s, level in everywhere.levels.items()}
    assert set(some.levels) == {stride for stride, share in shares.items() if share <= 0.5}
    assert 0 < len(some.levels) < len(shares)
    found, expected = (passed(generator, label, instance, used) for used in (some, None))
    assert difference(found, expected) < 2e-11
    noise, instances, _ = random_inputs(spec, 1)
    assert not training_lookup(spec, noise, instances, max_share=0.5).levels


def test_in_half_precision_the_error_is_that_of_the_convolutions() -> None:
    # The trained module in eval mode, so that both see the same statistics.
    generator = made().eval()
    spec = generator.spec
    label, instance = regions(spec.labels)
    tables = training_lookup(spec, label, instance, max_share=1.0)
    segmap = make_segmap(label, instance, spec.labels)
    with torch.no_grad():
        exact = generator(segmap.double())
        half = copy.deepcopy(generator).float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.autocast("cpu", torch.bfloat16):
            dense, lookup = (half(segmap, None, used).double() for used in (None, tables))
    errors = [(images - exact).abs().mean().item() for images in (dense, lookup)]
    assert 0 < errors[1] < 1.5 * errors[0]  # measured: 0.0031 and 0.0033


def test_a_gather_and_its_sums_are_inverse() -> None:
    index = np.array([[2, 0, 2], [2, 4, 0]])
    gather = Gather.of(index, 6)  # rows 1, 3 and 5 are taken by nobody
    table = torch.arange(12.0).view(6, 2)
    assert torch.equal(gather.rows(table), table[index.reshape(-1)])
    values = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(6, 2).index_add_(0, torch.from_numpy(index.reshape(-1)), values)
    assert torch.allclose(gather.sums(values), expected, atol=1e-6)


def test_ids_that_the_model_does_not_know_are_refused() -> None:
    spec = made(labels=LabelSpec(3)).spec
    with pytest.raises(InputRefusedError, match="id 3 is out of range"):
        training_lookup(spec, torch.full((1, 64, 64), 3))
