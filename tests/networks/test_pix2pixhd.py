"""The global generator against the publication: its layers as the paper writes them, and its size."""

import torch
from torch import nn

from spade_deploy.networks.pix2pixhd import GlobalGenerator
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, NormType


def build(**fields: object) -> GlobalGenerator:
    spec = GeneratorSpec(LabelSpec(35, has_edges=True), **fields)  # type: ignore[arg-type]
    with torch.device("meta"):
        return GlobalGenerator(spec.with_architecture(Architecture.PIX2PIXHD))


def test_the_size_is_the_published_one() -> None:
    # 182,546,755 for Cityscapes, with biases before the norms, which take them away again: one a channel.
    biases = 64 + (128 + 256 + 512 + 1024) + 18 * 1024 + (512 + 256 + 128 + 64)
    assert sum(parameter.numel() for parameter in build().parameters()) == 182_546_755 - biases


def test_the_layers_are_those_of_the_paper() -> None:
    # c7s1-64, d128, d256, d512, d1024, R1024 nine times, u512, u256, u128, u64, c7s1-3.
    found = []
    for module in build().modules():
        if isinstance(module, nn.ConvTranspose2d):
            found.append(f"u{module.out_channels}")
        elif isinstance(module, nn.Conv2d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            mirrored = "r" if module.padding_mode == "reflect" else ""
            found.append(f"d{module.out_channels}" if stride == 2 else f"c{kernel}s1-{module.out_channels}{mirrored}")
    blocks = ["c3s1-1024r"] * 18
    ends = ["c7s1-64r", "c7s1-3r"]
    assert sorted(found) == sorted([*ends, "d128", "d256", "d512", "d1024", *blocks, "u512", "u256", "u128", "u64"])


def test_a_hand_made_pass_gives_the_same_image() -> None:
    """Written once more with functional calls alone, in float64."""
    torch.manual_seed(0)
    spec = GeneratorSpec(LabelSpec(3), base_channels=2).with_architecture(Architecture.PIX2PIXHD)
    generator = GlobalGenerator(spec).double().eval()
    weights = {name: tensor.detach() for name, tensor in generator.named_parameters()}
    functional = nn.functional

    def mirrored(x: torch.Tensor, name: str, margin: int) -> torch.Tensor:
        return functional.conv2d(functional.pad(x, (margin,) * 4, mode="reflect"), weights[name])

    def normalized(x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt()

    segmap = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    x = normalized(mirrored(segmap, "conv_in.conv.weight", 3)).relu()
    for index in range(4):
        x = normalized(functional.conv2d(x, weights[f"down_{index}.conv.weight"], stride=2, padding=1)).relu()
    for index in range(9):
        y = normalized(mirrored(x, f"block_{index}.conv_0.conv.weight", 1)).relu()
        x = x + normalized(mirrored(y, f"block_{index}.conv_1.conv.weight", 1))
    for index in range(4):
        weight = weights[f"up_{index}.conv.weight"]
        x = normalized(functional.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)).relu()
    image = torch.tanh(mirrored(x, "conv_img.weight", 3) + weights["conv_img.bias"][:, None, None])
    with torch.no_grad():
        assert (generator(segmap) - image).abs().max() < 5e-12  # measured 1e-13, through 19 norms


def test_batch_norm_has_a_scale_and_an_offset() -> None:
    spec = GeneratorSpec(LabelSpec(3), architecture=Architecture.PIX2PIXHD, base_channels=2, norm=NormType.BATCH)
    layer = GlobalGenerator(spec).double().down_0
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    before = layer(x)  # type: ignore[operator]
    layer.scale.data.fill_(3.0)  # type: ignore[union-attr]
    layer.offset.data.fill_(0.5)  # type: ignore[union-attr]
    # Each pass moves sigma, which a norm takes away again, up to its eps: measured 2e-6.
    assert torch.allclose(layer(x), 3 * before + 0.5, atol=1e-4)  # type: ignore[operator]
