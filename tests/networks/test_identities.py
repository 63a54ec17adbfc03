"""The paper's identities (section 3 of Park et al., CVPR 2019), with the shipped layers, in float64.

SPADE is `norm(x) * (1 + gamma) + beta`; gamma and beta are two k x k convolutions of the one-hot label map with a ReLU
between. Where every tap of both sees the class c, no tap depends on its place, and

    gamma = b_gamma + (sum of W_gamma's taps) relu(b_shared + sum of W_shared's taps of channel c)

is one number a channel: a row of a table by class. The convolutions pad with zeros, and a tap outside the image sees no
class at all (nor the hidden map's relu(b_shared), but 0), so that holds from `2 * (k // 2)` pixels inside the image on,
and everywhere with k = 1. From it follow conditional batch normalisation and AdaIN. The third identity is why the
others matter: what a convolution makes of a uniform label map, instance norm takes away, and SPADE does not.

The tolerance is 1e-12, where no other is given with its reason; the largest error that an identity showed was 5.4e-15.
The counter-tests ask for 0.01; the smallest difference was 0.055.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from spade_deploy.networks.pix2pixhd import GlobalGenerator, NormalizedConv
from spade_deploy.networks.spade import NORM_EPS, Spade, SpadeGenerator, initialize, make_segmap
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, NormType
from tests.support.bench_model import load_script
from tests.support.paths import ROOT

CLASSES, CHANNELS, HIDDEN, SIDE = 4, 6, 5, 16
TOLERANCE, CLEARLY = 1e-12, 0.01
BATCH_NORMS = [NormType.BATCH, NormType.SYNC_BATCH]


# Conditional batch normalisation: one class an image.


class ConditionalBatchNorm(nn.Module):
    """Batch norm, then a scale and a shift looked up by the image's class (Dumoulin et al., de Vries et al., 2017)."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(scale.shape[1], eps=NORM_EPS, affine=False, dtype=torch.float64)
        self.scale = nn.Embedding.from_pretrained(scale)
        self.shift = nn.Embedding.from_pretrained(shift)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        normalized: Tensor = self.norm(x)
        return normalized * self.scale(classes)[:, :, None, None] + self.shift(classes)[:, :, None, None]


@pytest.mark.parametrize("norm", BATCH_NORMS)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("labels", [LabelSpec(CLASSES), LabelSpec(CLASSES - 1, has_dontcare=True, has_edges=True)])
def test_one_class_an_image_is_conditional_batch_norm(labels: LabelSpec, kernel_size: int, norm: NormType) -> None:
    spade = a_layer(labels=labels, kernel_size=kernel_size, norm=norm)
    conditional = ConditionalBatchNorm(*class_rows(spade))
    classes = torch.tensor([3, 0, 2, 3, 1])
    segmap, x = uniform_maps(classes, labels), features(len(classes))
    border = 2 * (kernel_size // 2)
    for _ in range(2):  # the second pass meets the running statistics of the first
        ours, theirs = spade(x, segmap), conditional(x, classes)
        assert worst(inside(ours, border), inside(theirs, border)) < TOLERANCE
    assert worst(spade.param_free_norm.running_var, conditional.norm.running_var) < TOLERANCE
    spade.eval()
    conditional.eval()
    ours, theirs = spade(x, segmap), conditional(x, classes)
    assert worst(inside(ours, border), inside(theirs, border)) < TOLERANCE
    if border:  # and not a pixel further: the ring beside the compared ones differs already
        assert worst(inside(ours, border - 1), inside(theirs, border - 1)) > 1e-6


def test_the_gradients_are_those_of_conditional_batch_norm() -> None:
    # Kernel 1, where the border is like the inside: the gradient through the batch statistics then is too.
    spade = a_layer(kernel_size=1)
    conditional = ConditionalBatchNorm(*class_rows(spade))
    classes, weights = torch.tensor([1, 2, 0]), features(3, seed=5)
    ours, theirs = features(3).requires_grad_(), features(3).requires_grad_()
    (spade(ours, uniform_maps(classes)) * weights).sum().backward()
    (conditional(theirs, classes) * weights).sum().backward()
    assert worst(grad_of(ours), grad_of(theirs)) < TOLERANCE
    # A row that is another class's makes another gradient.
    wrong = features(3).requires_grad_()
    (conditional(wrong, classes.roll(1)) * weights).sum().backward()
    assert worst(grad_of(ours), grad_of(wrong)) > CLEARLY


def test_it_is_no_conditional_batch_norm_with_two_classes_in_an_image() -> None:
    spade = a_layer(kernel_size=1)
    conditional = ConditionalBatchNorm(*class_rows(spade))
    x, segmap = features(1), one_hot(two_halves(0, 1))
    ours = spade(x, segmap)
    for row in range(CLASSES):
        assert worst(ours, conditional(x, torch.tensor([row]))) > CLEARLY


def test_with_kernel_1_every_pixel_has_the_row_of_its_own_class() -> None:
    # More than the paper says: SPADE with kernel 1 is a table by class, whatever the map. With kernel 3 that holds as
    # soon as all 5 x 5 labels around a pixel are the same, and not at a border between two classes.
    label = two_halves(0, 1)
    for kernel_size in (1, 3):
        spade = a_layer(kernel_size=kernel_size)
        scale, shift = (rows[label].permute(0, 3, 1, 2) for rows in class_rows(spade))
        x, border = features(1), 2 * (kernel_size // 2)
        by_class = nn.functional.batch_norm(x, None, None, training=True, eps=NORM_EPS) * scale + shift
        error = (spade(x, one_hot(label)) - by_class).abs().amax(dim=1)[0]
        left, right = error[:, : SIDE // 2], error[:, SIDE // 2 :]
        for half in (left, right):
            assert inside(half, border).max() < TOLERANCE
        if kernel_size == 3:
            assert inside(error, border)[:, SIDE // 2 - border].max() > CLEARLY


# AdaIN: one scale and one shift for the whole image, statistics of the image alone.


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Equation (8) of Huang and Belongie, ICCV 2017: sigma(y) (x - mu(x)) / sigma(x) + mu(y), image by image."""

    def mean(image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3), keepdim=True)

    def deviation(image: Tensor) -> Tensor:
        return ((image - mean(image)).square().mean(dim=(2, 3), keepdim=True) + NORM_EPS).sqrt()

    return deviation(style) * (content - mean(content)) / deviation(content) + mean(style)


@pytest.mark.parametrize("norm", BATCH_NORMS)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_constant_modulation_and_a_batch_of_one_is_adain(kernel_size: int, norm: NormType) -> None:
    style = 2 * features(1, seed=7) + 0.5
    spade = a_layer(kernel_size=kernel_size, norm=norm)
    modulate_as(spade, style)
    x = 3 * features(1) - 1
    assert worst(spade(x, one_hot(two_halves(0, 1))), adain(x, style)) < TOLERANCE


def test_a_uniform_label_map_makes_the_modulation_constant() -> None:
    # The other way to it, with the layer's own weights: the style is then an image of the class's statistics.
    spade = a_layer(kernel_size=1)
    (scale, shift), x = class_rows(spade), features(1)
    assert scale.min() > 0.1  # a deviation; a negative scale would be no AdaIN
    flat = adain(features(1, seed=9), features(1, seed=9))  # any image with its mean and deviation taken off
    flat = (flat - flat.mean(dim=(2, 3), keepdim=True)) / flat.std(dim=(2, 3), keepdim=True, correction=0)
    for row in range(CLASSES):
        deviation = (scale[row].square() - NORM_EPS).sqrt()  # AdaIN adds eps to the style's variance too
        style = flat * deviation[None, :, None, None] + shift[row][None, :, None, None]
        assert worst(spade(x, uniform_maps(torch.tensor([row]))), adain(x, style)) < TOLERANCE


def test_instance_norm_is_adain_for_any_batch_and_batch_norm_is_not() -> None:
    style, x = 2 * features(1, seed=7), torch.cat([features(1), 4 * features(1, seed=1) + 2])
    segmap = one_hot(two_halves(0, 1)).expand(2, -1, -1, -1)
    for norm, is_adain in ((NormType.INSTANCE, True), (NormType.BATCH, False)):
        spade = a_layer(norm=norm)
        modulate_as(spade, style)
        error = worst(spade(x, segmap), adain(x, style))
        assert error < TOLERANCE if is_adain else error > CLEARLY


def test_it_is_no_adain_once_the_modulation_varies_or_the_statistics_are_stored_ones() -> None:
    style, x, segmap = 2 * features(1, seed=7), 3 * features(1) - 1, one_hot(two_halves(0, 1))
    varying = a_layer(kernel_size=1)
    weight = varying.mlp_beta.weight.detach().clone()
    modulate_as(varying, style)
    with torch.no_grad():
        varying.mlp_beta.weight.copy_(weight)
    assert worst(varying(x, segmap), adain(x, style)) > CLEARLY
    stored = a_layer()
    modulate_as(stored, style)
    assert worst(stored.eval()(x, segmap), adain(x, style)) > CLEARLY


# Washing out: a uniform label map after convolution and instance norm, and after SPADE.


def pix2pixhd_layer(norm: NormType = NormType.INSTANCE) -> NormalizedConv:
    """How generators before SPADE took the label map in: convolution, padded with its mirror image, normalisation."""
    spec = GeneratorSpec(LabelSpec(CLASSES), base_channels=CHANNELS).with_architecture(Architecture.PIX2PIXHD)
    layer = GlobalGenerator(replace(spec, norm=norm)).conv_in.double()
    with_seed(layer, 3)
    return layer


def test_after_convolution_and_instance_norm_no_uniform_map_is_left() -> None:
    maps = uniform_maps(torch.arange(CLASSES))
    layer = pix2pixhd_layer()
    before = layer.conv(maps)
    assert all(worst(before[0], before[other]) > CLEARLY for other in range(1, CLASSES))  # the classes are there
    # And gone: zero, whichever class it was. What is there is rounding of a mean, made 1 / sqrt(eps), 316 times larger.
    assert layer(maps).abs().max() < 1e-10  # 4.9e-13
    # Two classes in an image are not uniform, and what tells them apart stays.
    assert layer(one_hot(two_halves(0, 1))).abs().max() > 0.9
    # Nor does it happen with statistics over images of several classes.
    assert pix2pixhd_layer(NormType.BATCH).train()(maps).abs().max() > 0.9


def test_zero_padding_leaves_the_border_and_a_rest_that_falls_with_the_size() -> None:
    # Zeros beside the image are an edge, so the variance is not 0: the border stands out, and the inside is moved off
    # the mean by what the border holds of the whole, about 1 / sqrt(side) deviations.
    convolution = nn.Conv2d(CLASSES, CHANNELS, 3, padding=1, dtype=torch.float64)
    with_seed(convolution, 3)
    layer = nn.Sequential(convolution, nn.InstanceNorm2d(CHANNELS))
    rest = []
    for side in (32, 128, 512):
        left = layer(uniform_maps(torch.arange(CLASSES), side=side))
        within = inside(left, 1)
        flat = within - within[..., :1, :1]
        assert flat.abs().max() < TOLERANCE  # one number a channel: no structure, but a hint of the class
        rest.append(within.abs().mean().item())
        assert (left - within[..., :1, :1]).abs().max() > 1
    # Four times the side, half the rest, and a little less where eps begins to count in so small a variance.
    assert rest[0] / rest[1] == pytest.approx(2, rel=0.1)  # 2.07
    assert rest[1] / rest[2] == pytest.approx(2, rel=0.1)  # 2.12


def test_through_spade_every_class_stays() -> None:
    maps = uniform_maps(torch.arange(CLASSES))
    washed_out = pix2pixhd_layer()(maps)
    for norm in (*BATCH_NORMS, NormType.INSTANCE):
        spade = a_layer(norm=norm)
        _, shift = class_rows(spade)
        left = inside(spade(washed_out, maps), 2)
        # Nothing came in, and what comes out is the class's own row of beta. "Nothing" is rounding, which each of the
        # two norms makes 1 / sqrt(eps), 316 times larger: 2.0e-10 was the most.
        assert worst(left, shift[:, :, None, None].expand_as(left)) < 1e-8
        gaps = [worst(left[a], left[b]) for a in range(CLASSES) for b in range(a)]
        assert min(gaps) > CLEARLY


@pytest.mark.parametrize("norm", [NormType.BATCH, NormType.INSTANCE])
def test_the_generator_paints_every_uniform_map_in_its_own_way(norm: NormType) -> None:
    # 64 pixels are two latent ones each way: instance norm of a single one would be 0.
    spec = GeneratorSpec(LabelSpec(CLASSES), base_channels=2, hidden_channels=HIDDEN, norm=norm, height=64, width=64)
    generator = SpadeGenerator(spec).double()
    with_seed(generator, 4)
    maps = uniform_maps(torch.arange(CLASSES), side=64)
    with torch.no_grad():
        for _ in range(3):  # statistics and spectral norms settle
            generator.train()(maps)
        images, again = generator.eval()(maps), generator(maps)
    gaps = [worst(inside(images[a], 16), inside(images[b], 16)) for a in range(CLASSES) for b in range(a)]
    assert min(gaps) > CLEARLY  # 0.075, of pixels in -1..1
    assert worst(images, again) == 0


def test_the_figure_of_the_docs_shows_it(tmp_path: Path) -> None:
    script = load_script("washing_out")
    script.main(["--steps", "2", "--out", str(tmp_path), "--images", str(tmp_path)])
    with Image.open(tmp_path / "washing-out.png") as picture:
        assert picture.width == 900
    published = json.loads((ROOT / "benchmarks" / "results" / "washing_out.json").read_bytes())
    for found in (json.loads((tmp_path / "washing_out.json").read_bytes()), published):
        before, after = found["after"]["conv_instance_norm"], found["after"]["spade"]
        assert list(before) == list(after) == list(script.label_maps())
        for name in ("all water", "all forest", "all barren"):  # of an untrained layer as of a trained one
            assert before[name]["features"] == 0
            assert after[name]["features"] > CLEARLY
        assert before["water and forest"]["features"] > 0.9
    # Trained, the class is painted with SPADE, and cannot be without.
    rights = {key: [of["class_right"] for of in published["after"][key].values()] for key in script.ROWS}
    assert min(rights["spade"]) > 0.8
    assert max(rights["conv_instance_norm"]) < 0.1


# What the tests share.


def a_layer(
    labels: LabelSpec | None = None, *, kernel_size: int = 3, norm: NormType = NormType.BATCH, seed: int = 0
) -> Spade:
    """A SPADE layer in training mode, float64, no weight or bias of it zero."""
    labels = labels or LabelSpec(CLASSES)
    spade = Spade(GeneratorSpec(labels, hidden_channels=HIDDEN, kernel_size=kernel_size, norm=norm), CHANNELS)
    spade.double()
    with_seed(spade, seed)
    return spade.train()


def with_seed(module: nn.Module, seed: int, gain: float = 0.5) -> None:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    initialize(module, gain)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    torch.random.set_rng_state(state)


def class_rows(spade: Spade) -> tuple[Tensor, Tensor]:
    """Scale and shift of every class, classes x channels, by the formula above; no convolution is run."""
    hidden_layer = spade.mlp_shared[0]
    assert isinstance(hidden_layer, nn.Conv2d)
    assert hidden_layer.bias is not None
    assert spade.mlp_gamma.bias is not None
    assert spade.mlp_beta.bias is not None
    hidden = (hidden_layer.weight.sum(dim=(2, 3)).T + hidden_layer.bias).clamp(min=0)[:CLASSES]
    gamma = hidden @ spade.mlp_gamma.weight.sum(dim=(2, 3)).T + spade.mlp_gamma.bias
    beta = hidden @ spade.mlp_beta.weight.sum(dim=(2, 3)).T + spade.mlp_beta.bias
    return (1 + gamma).detach(), beta.detach()


def modulate_as(spade: Spade, style: Tensor) -> None:
    """Make gamma and beta the statistics of `style`, at every pixel and for every label map."""
    with torch.no_grad():
        spade.mlp_gamma.weight.zero_()
        spade.mlp_beta.weight.zero_()
        assert spade.mlp_gamma.bias is not None
        assert spade.mlp_beta.bias is not None
        variance = style.var(dim=(0, 2, 3), correction=0)
        spade.mlp_gamma.bias.copy_((variance + NORM_EPS).sqrt() - 1)
        spade.mlp_beta.bias.copy_(style.mean(dim=(0, 2, 3)))


def features(count: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, CHANNELS, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform_maps(classes: Tensor, labels: LabelSpec | None = None, *, side: int = SIDE) -> Tensor:
    """One image a class, that class everywhere, one object where there are edges."""
    label = classes[:, None, None].expand(-1, side, side)
    return make_segmap(label, torch.zeros_like(label), labels or LabelSpec(CLASSES)).double()


def two_halves(left: int, right: int) -> Tensor:
    label = torch.full((1, SIDE, SIDE), left)
    label[:, :, SIDE // 2 :] = right
    return label


def one_hot(label: Tensor) -> Tensor:
    return make_segmap(label, None, LabelSpec(CLASSES)).double()


def inside(tensor: Tensor, border: int) -> Tensor:
    """Without `border` pixels at each side of the last two dimensions."""
    return tensor[..., border : tensor.shape[-2] - border, border : tensor.shape[-1] - border]


def worst(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
