"""The discriminator against the published architecture, and that real and fake meet the same weights."""

from itertools import pairwise

import pytest
import torch

from spade_deploy.networks.discriminator import MultiscaleDiscriminator
from spade_deploy.spec import DiscriminatorSpec

SPEC = DiscriminatorSpec(scales=2, layers=4, base_channels=4)


def make(spec: DiscriminatorSpec = SPEC, channels: int = 3) -> MultiscaleDiscriminator:
    torch.manual_seed(0)
    return MultiscaleDiscriminator(spec, channels)


def test_feature_sizes_and_channels() -> None:
    segmap, image = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    features = make()(segmap, image)
    # 4x4, padding 2: three strides of two, then two of one; each adds a pixel.
    assert [tuple(f.shape[1:]) for f in features[0]] == [
        (4, 33, 33),
        (8, 17, 17),
        (16, 9, 9),
        (32, 10, 10),
        (1, 11, 11),
    ]
    assert [tuple(f.shape[1:]) for f in features[1]] == [(4, 17, 17), (8, 9, 9), (16, 5, 5), (32, 6, 6), (1, 7, 7)]


def test_the_papers_size_has_the_parameters_of_its_layers() -> None:
    module = make(DiscriminatorSpec(), 184)
    widths = [187, 64, 128, 256, 512, 1]
    weights = sum(16 * a * b for a, b in pairwise(widths))
    biases = 64 + 1  # the first and the last; instance norm removes the others'
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * (weights + biases)


def test_spectral_norm_is_on_the_inner_layers_alone() -> None:
    keys = [key for key in make().state_dict() if key.endswith("weight_orig")]
    assert keys == [f"scales.{scale}.layers.{layer}.0.weight_orig" for scale in (0, 1) for layer in (1, 2, 3)]


def test_the_second_scale_sees_the_mean_of_pixels_without_the_padding() -> None:
    module = make()
    seen: list[torch.Tensor] = []
    module.scales[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(torch.ones(1, 3, 32, 32), torch.ones(1, 3, 32, 32))
    # Counted padding would leave 4/9 in the corners.
    assert seen[0].shape == (1, 6, 16, 16)
    assert torch.equal(seen[0], torch.ones_like(seen[0]))


def test_compare_is_one_pass_that_splits_fake_from_real() -> None:
    segmap, fake, real = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    segmap, fake, real = segmap.double(), fake.double(), real.double()
    fakes, reals = make().double().eval().compare(segmap, fake, real)
    again = make().double().eval()
    for found, image in ((fakes, fake), (reals, real)):
        for scale, other in zip(found, again(segmap, image), strict=True):
            for a, b in zip(scale, other, strict=True):
                # Measured: at most 4e-15 apart, another batch size adds in another order.
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(fakes[0][-1], reals[0][-1], atol=1e-3)


def test_one_comparison_moves_the_spectral_norm_once() -> None:
    segmap, image = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    compared, once = make().train(), make().train()
    compared.compare(segmap, image, image)
    once(segmap, image)
    key = "scales.0.layers.1.0.weight_u"
    assert torch.equal(compared.state_dict()[key], once.state_dict()[key])
    once(segmap, image)
    assert not torch.equal(compared.state_dict()[key], once.state_dict()[key])


@pytest.mark.parametrize("spec", [DiscriminatorSpec(1, 2, 2), DiscriminatorSpec(3, 3, 2), DiscriminatorSpec(2, 5, 2)])
def test_other_shapes_build_and_run(spec: DiscriminatorSpec) -> None:
    features = make(spec)(torch.rand(1, 3, 32, 64), torch.rand(1, 3, 32, 64))
    assert len(features) == spec.scales
    assert all(len(scale) == spec.layers + 1 and scale[-1].shape[1] == 1 for scale in features)


def test_the_label_channels_come_before_the_image() -> None:
    """The order in which released discriminators were trained: their first weights say which channel is which."""
    segmap, fake, real = torch.rand(2, 4, 32, 32), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    module = make(channels=4)
    seen: list[torch.Tensor] = []
    module.scales[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(segmap, fake)
    module.compare(segmap, fake, real)
    alone, both = seen
    assert torch.equal(alone[:, :4], segmap)
    assert torch.equal(alone[:, 4:], fake)
    assert torch.equal(both[:, :4], torch.cat([segmap, segmap]))
    assert torch.equal(both[:, 4:], torch.cat([fake, real]))
