"""The cascaded refinement network against the publication: its widths, and a pass written once more."""

import pytest
import torch
from torch import nn

from spade_deploy.networks.crn import CascadedRefinementNetwork, module_widths
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, Upsampling


def spec_of(base: int = 64, upsampling: Upsampling = Upsampling.NORMAL, height: int = 256) -> GeneratorSpec:
    spec = GeneratorSpec(LabelSpec(20), base_channels=base, upsampling=upsampling, height=height, width=2 * height)
    return spec.with_architecture(Architecture.CRN)


@pytest.mark.parametrize(
    ("upsampling", "widths"),
    [
        (Upsampling.NORMAL, [1024, 1024, 1024, 1024, 512, 512]),
        (Upsampling.MORE, [1024, 1024, 1024, 1024, 1024, 512, 512]),  # the published network for 256 x 512
        (Upsampling.MOST, [1024, 1024, 1024, 1024, 1024, 512, 512, 128]),
    ],
)
def test_the_widths_are_those_of_the_paper(upsampling: Upsampling, widths: list[int]) -> None:
    assert list(module_widths(spec_of(upsampling=upsampling)).values()) == widths
    assert list(module_widths(spec_of(16, upsampling)).values()) == [width // 4 for width in widths]


def test_a_hand_made_pass_gives_the_same_image() -> None:
    """Written once more with functional calls alone, in float64."""
    torch.manual_seed(0)
    generator = CascadedRefinementNetwork(spec_of(base=2, height=32)).double().eval()
    for parameter in generator.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # scales and offsets that are not 1 and 0
    weights = {name: tensor.detach() for name, tensor in generator.named_parameters()}
    functional = nn.functional

    def refined(x: torch.Tensor, name: str) -> torch.Tensor:
        for part in (0, 1):
            x = functional.conv2d(x, weights[f"{name}.conv_{part}.weight"], padding=1)
            mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
            scale, offset = (weights[f"{name}.norm_{part}.{which}"][:, None, None] for which in ("weight", "bias"))
            x = functional.leaky_relu((x - mean) / (variance + 1e-5).sqrt() * scale + offset, 0.2)
        return x

    segmap = torch.rand(2, 20, 32, 64, dtype=torch.float64)
    x = refined(segmap.reshape(2, 20, 1, 32, 2, 32).mean((3, 5)), "refine_0")
    for index in range(1, 6):
        size = 2**index
        shares = segmap.reshape(2, 20, size, 32 // size, 2 * size, 32 // size).mean((3, 5))
        larger = functional.interpolate(x, size=(size, 2 * size), mode="bilinear")
        x = refined(torch.cat([larger, shares], dim=1), f"refine_{index}")
    weight, bias = weights["conv_img.weight"], weights["conv_img.bias"]
    image = torch.tanh(functional.conv2d(x, weight, bias))
    with torch.no_grad():
        assert (generator(segmap) - image).abs().max() < 1e-12  # measured 4e-15


def test_a_module_sees_the_segmap_at_its_own_resolution() -> None:
    """A change of one pixel reaches the coarsest features as a share, not by chance of a nearest pick."""
    torch.manual_seed(0)
    generator = CascadedRefinementNetwork(spec_of(base=2, height=32)).eval()
    seen: list[torch.Tensor] = []
    generator.refine_0.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    segmap = torch.zeros(1, 20, 32, 64)
    segmap[:, 0] = 1
    segmap[:, :2, 5, 7] = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        generator(segmap)
    assert seen[0][0, 1, 0, 0] == 1 / 1024
