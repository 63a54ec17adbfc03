"""The generator against the published facts: names, sizes, order, edges, truncation."""

import numpy as np
import pytest
import torch

from spade_deploy.labels.sets import label_set
from spade_deploy.networks.spade import (
    SpadeGenerator,
    edge_map,
    initialize,
    make_segmap,
    to_pixels,
)
from spade_deploy.spec import NORMS, Architecture, GeneratorSpec, LabelSpec, NormType, Upsampling

TINY = GeneratorSpec(LabelSpec(3), base_channels=2, hidden_channels=4, height=32, width=32)


def tiny(**changes: object) -> GeneratorSpec:
    return GeneratorSpec(**{**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    ("name", "channels", "upsampling", "millions"),
    [
        ("coco", 184, Upsampling.NORMAL, 97.48),
        ("ade20k", 151, Upsampling.NORMAL, 96.49),
        ("cityscapes", 36, Upsampling.MORE, 93.05),
    ],
)
def test_released_models_have_the_published_number_of_parameters(
    name: str, channels: int, upsampling: Upsampling, millions: float
) -> None:
    labels = label_set(name)
    assert labels.num_channels == channels
    with torch.device("meta"):
        module = SpadeGenerator(GeneratorSpec(labels, upsampling=upsampling, height=256, width=512))
    count = sum(parameter.numel() for parameter in module.parameters())
    assert round(count / 1e6, 2) == millions


def test_key_names_are_those_of_the_released_checkpoints() -> None:
    keys = set(SpadeGenerator(tiny(norm=NormType.SYNC_BATCH)).state_dict())
    expected = {f"{layer}.{part}" for layer in ("fc", "conv_img") for part in ("weight", "bias")}
    for block, in_channels, out_channels in ((b.name, b.in_channels, b.out_channels) for b in TINY.blocks):
        convolutions, norms = ["conv_0", "conv_1"], ["norm_0", "norm_1"]
        expected |= {f"{block}.{name}.bias" for name in convolutions}
        if in_channels != out_channels:  # the learned shortcut, without a bias
            convolutions, norms = [*convolutions, "conv_s"], [*norms, "norm_s"]
        expected |= {f"{block}.{name}.weight_{part}" for name in convolutions for part in ("orig", "u", "v")}
        for norm in norms:
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            expected |= {f"{block}.{norm}.param_free_norm.{part}" for part in statistics}
            layers = ("mlp_shared.0", "mlp_gamma", "mlp_beta")
            expected |= {f"{block}.{norm}.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert keys == expected


@pytest.mark.parametrize(("upsampling", "doublings"), [("normal", 5), ("more", 6), ("most", 7)])
def test_the_number_of_doublings_and_the_output_size(upsampling: str, doublings: int) -> None:
    stride = 2**doublings
    spec = tiny(upsampling=Upsampling(upsampling), height=stride, width=2 * stride)
    module = SpadeGenerator(spec).eval()
    latent = []
    module.fc.register_forward_hook(lambda _, __, output: latent.append(tuple(output.shape)))
    with torch.no_grad():
        image = module(torch.zeros(2, 3, stride, 2 * stride))
    assert latent == [(2, 32, 1, 2)]
    assert image.shape == (2, 3, stride, 2 * stride)
    assert sum(block.doubles for block in spec.blocks) == doublings


def test_the_blocks_run_in_the_published_order_at_the_published_sizes() -> None:
    spec = tiny(upsampling=Upsampling.MORE, height=64, width=64)
    module = SpadeGenerator(spec).eval()
    seen = []
    for name in (block.name for block in spec.blocks):
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.append((name, *output.shape[1:3]))
        )
    with torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    assert seen == [
        *(("head_0", 32, 1), ("G_middle_0", 32, 2), ("G_middle_1", 32, 4), ("up_0", 16, 8)),
        *(("up_1", 8, 16), ("up_2", 4, 32), ("up_3", 2, 64)),
    ]


def test_the_vae_variant_starts_from_the_style() -> None:
    spec = tiny(z_dim=5, height=32, width=64)
    module = SpadeGenerator(spec).eval()
    assert module.state_dict()["fc.weight"].shape == (32 * 1 * 2, 5)
    segmap = torch.zeros(2, 3, 32, 64)
    with torch.no_grad():
        first, second = module(segmap, torch.zeros(2, 5)), module(segmap, torch.ones(2, 5))
    assert first.shape == (2, 3, 32, 64)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="style"):
        module(segmap)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("norm", NORMS[Architecture.SPADE])
def test_every_kernel_and_norm_keeps_the_size(kernel_size: int, norm: NormType) -> None:
    # Two latent pixels each way: instance norm needs more than one.
    module = SpadeGenerator(tiny(kernel_size=kernel_size, norm=norm, height=64, width=64)).train()
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_without_spectral_norm_weights_are_plain() -> None:
    keys = SpadeGenerator(tiny(spectral_norm=False)).state_dict()
    assert "head_0.conv_0.weight" in keys
    assert not any(key.endswith("_orig") for key in keys)


def test_edges_mark_both_sides_of_a_border_and_no_diagonal() -> None:
    instance = torch.tensor([[[7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 300]]])
    expected = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert edge_map(instance)[0, 0].tolist() == expected
    assert edge_map(torch.zeros(1, 3, 3, dtype=torch.int32)).sum() == 0


def test_the_segmap_is_one_hot_with_the_edge_channel_last() -> None:
    labels = LabelSpec(3, has_dontcare=True, has_edges=True)
    label = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    segmap = make_segmap(label, torch.tensor([[[1, 1], [1, 2]]]), labels)
    assert segmap.shape == (1, 5, 2, 2)
    assert segmap[:, :4].argmax(1).tolist() == label.tolist()
    assert segmap[:, :4].sum(1).eq(1).all()
    assert segmap[0, 4].tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="instance"):
        make_segmap(label, None, labels)


def test_pixels_are_truncated_and_clipped() -> None:
    image = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    pixels = to_pixels(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 1, 6, 3)
    # 127.5 and 254.87: rounding would make them 128 and 255.
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_initialization_is_xavier_with_the_papers_gain() -> None:
    module = SpadeGenerator(tiny(base_channels=8, hidden_channels=16))
    torch.manual_seed(0)
    initialize(module)
    weight = dict(module.named_parameters())["up_0.conv_0.weight_orig"]
    expected = 0.02 * np.sqrt(2 / ((weight.shape[0] + weight.shape[1]) * 9))
    # The sample deviation of 73,728 numbers is within 0.4 %; another gain would be far off.
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert all(p.eq(0).all() for name, p in module.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("norm", [NormType.BATCH, NormType.SYNC_BATCH])
def test_running_statistics_move_by_a_tenth_of_each_batch(norm: NormType) -> None:
    """Momentum 0.1, as the released models were trained: what is deployed is what the last tens of batches say."""
    torch.manual_seed(0)
    generator = SpadeGenerator(tiny(norm=norm)).train()
    layer = generator.get_submodule("up_3.norm_0.param_free_norm")
    assert isinstance(layer, torch.nn.BatchNorm2d)
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 32, 32))
    for _ in range(2):
        generator(make_segmap(label, None, LabelSpec(3)))
        mean = 0.9 * mean + 0.1 * seen[-1].mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * seen[-1].var((0, 2, 3))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    # Two steps of float32 arithmetic; another momentum is off by a hundredth and more.
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-6)
