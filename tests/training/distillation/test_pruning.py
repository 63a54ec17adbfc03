"""A student begins with its teacher's most important channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from spade_deploy.networks.build import Generator
from spade_deploy.networks.build import build_generator as plain_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, NormType
from spade_deploy.training.distillation.pruning import choose_channels, pruned_student
from tests.support.generators import build_generator, random_inputs

SPECS: dict[str, dict[str, Any]] = {
    "spade": {},
    "style": {"z_dim": 5, "labels": LabelSpec(3)},
    "own widths": {"level_channels": (120, 50, 30, 9, 5), "level_hidden": (12, 7, 5, 3, 1)},
    "instance": {"norm": NormType.INSTANCE, "spectral_norm": False, "kernel_size": 1},
}


def trained(architecture: Architecture) -> Generator:
    """A generator of another architecture with statistics, eval mode."""
    labels = LabelSpec(4, has_edges=architecture is Architecture.CLADE)
    spec = GeneratorSpec(labels, base_channels=4, height=64, width=64).with_architecture(architecture)
    torch.manual_seed(0)
    generator = plain_generator(spec)
    with torch.no_grad():
        for seed in range(2):
            made(generator, seed)
    return generator.eval()


def made(generator: Generator, seed: int = 5) -> torch.Tensor:
    """The generator's images of noise label maps."""
    torch.manual_seed(seed)
    spec = generator.spec
    label, instance, z = random_inputs(spec, 2)
    segmap = make_segmap(label, instance if spec.labels.has_edges else None, spec.labels)
    with torch.no_grad():
        image: torch.Tensor = generator(segmap, z)
    return image


@pytest.mark.parametrize("name", list(SPECS))
def test_a_student_of_all_widths_makes_exactly_the_teachers_images(name: str) -> None:
    teacher = build_generator(**SPECS[name])
    student = pruned_student(teacher, teacher.spec)
    assert student is not teacher
    assert torch.equal(made(student), made(teacher))


@pytest.mark.parametrize("architecture", [Architecture.CLADE, Architecture.OASIS])
def test_other_modulations_too(architecture: Architecture) -> None:
    teacher = trained(architecture)
    assert torch.equal(made(pruned_student(teacher, teacher.spec)), made(teacher))
    narrow = pruned_student(teacher, replace(teacher.spec, base_channels=2))
    assert made(narrow).isfinite().all()


def test_channels_that_nothing_reads_are_left_out_without_a_change() -> None:
    # Half of the channels of every group are made useless; without spectral norm, what reads the others stays.
    teacher = build_generator(spectral_norm=False, norm=NormType.BATCH)
    spec = replace(teacher.spec, base_channels=4, hidden_channels=6)
    kept = choose_channels(teacher, spec)
    with torch.no_grad():
        for name, block in teacher.named_children():
            if name in ("fc", "conv_img"):
                continue
            silence(block.conv_0, kept[_input_of(name)])
            silence(block.conv_1, kept[f"{name}.middle"])
            if block.has_shortcut:
                silence(block.conv_s, kept[_input_of(name)])
            for norm in ("norm_0", "norm_1", "norm_s"):
                if hasattr(block, norm):
                    for head in (getattr(block, norm).mlp_gamma, getattr(block, norm).mlp_beta):
                        silence(head, kept[f"{name}.{norm}.hidden"])
        silence(teacher.conv_img, kept["up_3.out"])
    again = choose_channels(teacher, spec)
    assert all(torch.equal(again[group], channels) for group, channels in kept.items())
    student = pruned_student(teacher, spec)
    assert (student.spec.base_channels, student.spec.hidden_channels) == (4, 6)
    assert torch.allclose(made(student), made(teacher), atol=2e-5)  # measured: 1.4e-6, sums of fewer zeros
    others = torch.tensor([channel for channel in range(32) if channel not in kept["up_1.out"].tolist()])
    wrong = {**kept, "up_1.out": others}
    assert not torch.allclose(made(pruned_student(teacher, spec, wrong)), made(teacher), atol=1e-3)


def test_each_level_has_its_own_widths() -> None:
    teacher = build_generator(spectral_norm=False, norm=NormType.INSTANCE)
    spec = replace(teacher.spec, level_channels=(100, 64, 20, 10, 8), level_hidden=(12, 12, 3, 12, 12))
    kept = choose_channels(teacher, spec)
    assert [len(kept[f"{name}.out"]) for name in ("up_0", "up_1", "up_2", "up_3")] == [64, 20, 10, 8]
    assert (len(kept["latent"]), len(kept["up_1.norm_s.hidden"]), len(kept["up_2.norm_0.hidden"])) == (100, 3, 12)
    student = pruned_student(teacher, spec)
    weight = student.up_1.norm_1.mlp_gamma.weight
    rows, hidden = kept["up_1.middle"], kept["up_1.norm_1.hidden"]
    assert weight.shape == (20, 3, 3, 3)
    assert torch.equal(weight, teacher.up_1.norm_1.mlp_gamma.weight[rows][:, hidden])


def test_importance_is_the_sum_of_the_absolute_weights_that_read_a_channel() -> None:
    teacher = build_generator(spectral_norm=False)
    with torch.no_grad():
        teacher.conv_img.weight.fill_(0.1)
        teacher.conv_img.weight[:, 3] = -0.2  # the sign does not count
        teacher.conv_img.weight[0, 6, 0, 0] = 5.0
    kept = choose_channels(teacher, replace(teacher.spec, base_channels=2))
    assert kept["up_3.out"].tolist() == [3, 6]


def test_a_hidden_channel_counts_by_what_it_gives_inside_a_region() -> None:
    """All are read alike; two are on, and the others are cut off by ReLU, whatever their weights."""
    teacher = build_generator(hidden_channels=6)
    norm = teacher.up_1.norm_0
    with torch.no_grad():
        for head in (norm.mlp_gamma, norm.mlp_beta):
            head.weight.fill_(0.1)
        norm.mlp_shared[0].weight.fill_(0.01)
        norm.mlp_shared[0].bias.copy_(torch.tensor([-1.0, 0.5, -1.0, -1.0, 0.5, -1.0]))
    kept = choose_channels(teacher, replace(teacher.spec, hidden_channels=2))
    assert kept["up_1.norm_0.hidden"].tolist() == [1, 4]


def test_spectral_norm_is_that_of_the_narrower_weight() -> None:
    teacher = build_generator()
    student = pruned_student(teacher, replace(teacher.spec, base_channels=4))
    for block in (student.up_0, student.head_0):
        weight = block.conv_0.weight_orig.flatten(1)
        sigma = torch.dot(block.conv_0.weight_u, weight @ block.conv_0.weight_v)
        assert torch.allclose(sigma, torch.linalg.matrix_norm(weight, 2), rtol=0.02)


def test_a_student_is_not_wider() -> None:
    teacher = build_generator(base_channels=4)
    with pytest.raises(ValueError, match=r"latent has 64 channels, and the student asks for 128"):
        pruned_student(teacher, replace(teacher.spec, base_channels=8))


def silence(convolution: torch.nn.Module, kept: torch.Tensor) -> None:
    """Let a convolution read nothing but the channels that are kept."""
    weight = convolution.weight
    assert isinstance(weight, torch.Tensor)
    others = [channel for channel in range(weight.shape[1]) if channel not in kept.tolist()]
    weight[:, others] = 0.0


def _input_of(block: str) -> str:
    order = ["head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3"]
    place = order.index(block)
    return "latent" if place <= 3 else f"{order[place - 1]}.out"
