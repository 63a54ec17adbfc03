"""The baselines beside SPADE: what a spec asks for, what it may not, and what all three networks have in common."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from spade_deploy.errors import ConfigError
from spade_deploy.export.build import DEPLOYED
from spade_deploy.networks.build import NETWORKS, build_generator, count_parameters
from spade_deploy.networks.spade import initialize, make_segmap
from spade_deploy.spec import NORMS, Architecture, GeneratorSpec, GraphKind, LabelSpec, NormType, Upsampling

LABELS = LabelSpec(5, has_dontcare=True, has_edges=True)
BASELINES = (Architecture.PIX2PIXHD, Architecture.CRN, Architecture.SIMS)
OWN_TABLES = ("class_specified_affine.weight", "class_specified_affine.bias")
"""CLADE's tables begin as they are built, from 0 to 1 and with zeros, whatever draws the convolutions."""


def tiny(architecture: Architecture, **fields: Any) -> GeneratorSpec:
    plain = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=64, width=64)
    return replace(plain.with_architecture(architecture), **fields)


def segmaps(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    label = torch.randint(0, LABELS.num_ids, (count, height, width), generator=numbers)
    instance = torch.randint(0, 3, (count, height, width), generator=numbers)
    return make_segmap(label, instance, LABELS)


VARIANTS = {
    "spade": tiny(Architecture.SPADE),
    "pix2pixhd": tiny(Architecture.PIX2PIXHD),
    "pix2pixhd++": tiny(Architecture.PIX2PIXHD, norm=NormType.SYNC_BATCH, spectral_norm=True),
    "pix2pixhd, batch": tiny(Architecture.PIX2PIXHD, norm=NormType.BATCH),
    "crn": tiny(Architecture.CRN),
    "crn, more": tiny(Architecture.CRN, upsampling=Upsampling.MORE),
    "crn, most": tiny(Architecture.CRN, upsampling=Upsampling.MOST, height=128, width=128),
    "sims": tiny(Architecture.SIMS),
    "sims, most": tiny(Architecture.SIMS, upsampling=Upsampling.MOST, height=128, width=128),
    "clade": tiny(Architecture.CLADE),
    "oasis": replace(tiny(Architecture.OASIS), z_dim=None),
    "clade, instance norm": tiny(Architecture.CLADE, norm=NormType.INSTANCE),
}
each_variant = pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize("architecture", Architecture)
def test_every_architecture_is_complete(architecture: Architecture) -> None:
    spec = tiny(architecture)
    assert spec.norm is NORMS[architecture][0]
    assert spec.has("base_channels")
    network, deployed = NETWORKS[architecture], DEPLOYED[architecture]
    assert set(deployed.models) == set(spec.graph_kinds)
    # A network and what is exported for it stand in files of the same name.
    dense = deployed.models[GraphKind.DENSE]
    assert network.__module__.rpartition(".")[2] == dense.__module__.rpartition(".")[2]
    trained, traced = network(spec).eval(), dense(build_generator(spec).eval())
    for name in deployed.units(spec):
        traced.get_submodule(name)
    named = {name for name, _ in trained.named_modules()}
    assert set(deployed.stages(spec)) <= named


def test_no_table_knows_another_architecture() -> None:
    assert set(NETWORKS) == set(DEPLOYED) == set(NORMS) == set(Architecture)


@each_variant
def test_any_multiple_of_the_stride_keeps_its_size(spec: GeneratorSpec) -> None:
    torch.manual_seed(0)
    generator = build_generator(spec).eval()
    height, width = spec.least_side, spec.least_side + spec.stride
    with torch.no_grad():
        image = generator(segmaps(2, height, width))
    assert image.shape == (2, 3, height, width)
    assert image.abs().max() <= 1


COCO = GeneratorSpec(LabelSpec(182, True, True))
ADE20K = GeneratorSpec(LabelSpec(150, True))
CITYSCAPES = GeneratorSpec(LabelSpec(35, False, True), upsampling=Upsampling.MORE, height=256, width=512)


CLADE = ADE20K.with_architecture(Architecture.CLADE)


@pytest.mark.parametrize(("spec", "millions"), [(COCO, 97.48), (ADE20K, 96.49), (CITYSCAPES, 93.05), (CLADE, 71.43)])
def test_released_models_have_the_parameters_that_are_known(spec: GeneratorSpec, millions: float) -> None:
    with torch.device("meta"):
        assert round(count_parameters(build_generator(spec)) / 1e6, 2) == millions


@each_variant
def test_every_parameter_gets_a_gradient(spec: GeneratorSpec) -> None:
    torch.manual_seed(0)
    generator = build_generator(spec)
    initialize(generator, 1.0)
    image = generator(segmaps(2, spec.height, spec.width))
    (image * torch.linspace(-1, 1, image.numel()).view_as(image)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before norms alone has none. There is but one: what CLADE appends on a shortcut is a constant beside
        # edges, and the next block's norms take it away.
        assert parameter.grad.abs().max() > 0 or name.endswith("norm_s.inst_conv.bias"), name


@each_variant
def test_the_same_seed_makes_the_same_images(spec: GeneratorSpec) -> None:
    images = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        generator = build_generator(spec)
        initialize(generator, 1.0)
        with torch.no_grad():
            images.append(generator.eval()(segmaps(1, spec.height, spec.width)))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@each_variant
def test_the_image_is_the_tanh_of_conv_img(spec: GeneratorSpec) -> None:
    generator = build_generator(spec).eval()
    seen: list[torch.Tensor] = []
    generator.conv_img.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        image = generator(segmaps(1, spec.height, spec.width))
    assert torch.equal(torch.tanh(seen[0]), image)


@each_variant
def test_initialisation_reaches_every_weight(spec: GeneratorSpec) -> None:
    torch.manual_seed(0)
    generator = build_generator(spec)
    before = {name: tensor.clone() for name, tensor in generator.named_parameters() if tensor.dim() > 1}
    initialize(generator)
    after = dict(generator.named_parameters())
    unchanged = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert [name for name in unchanged if not name.endswith(OWN_TABLES)] == []


@each_variant
def test_a_spec_survives_json(spec: GeneratorSpec) -> None:
    assert GeneratorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_without_an_architecture_is_spade() -> None:
    spec = tiny(Architecture.SPADE)
    assert "architecture" not in spec.to_json()  # so that versions before the baselines read it
    assert GeneratorSpec.from_json(spec.to_json()).architecture is Architecture.SPADE
    known = "spade, pix2pixhd, crn, sims, clade, oasis"
    with pytest.raises(ConfigError, match=f"architecture 'unet' is not one of {known}"):
        GeneratorSpec.from_json({**spec.to_json(), "architecture": "unet"})


@pytest.mark.parametrize("architecture", BASELINES)
def test_another_architecture_for_the_same_data(architecture: Architecture) -> None:
    spade = GeneratorSpec(LABELS, base_channels=6, hidden_channels=12, kernel_size=5, z_dim=8, height=64, width=96)
    other = spade.with_architecture(architecture)
    assert other.norm is NORMS[architecture][0]
    assert not other.spectral_norm
    assert (other.labels, other.base_channels, other.height, other.width) == (LABELS, 6, 64, 96)
    assert (other.z_dim, other.blocks, other.graph_kinds) == (None, (), (GraphKind.DENSE,))
    assert other.is_dynamic
    assert other.with_architecture(architecture) is other
    back = other.with_architecture(Architecture.SPADE)
    assert (back.norm, back.spectral_norm, back.kernel_size) == (NormType.SYNC_BATCH, True, 3)


@pytest.mark.parametrize(
    ("architecture", "fields", "flag"),
    [
        (Architecture.PIX2PIXHD, {"kernel_size": 5}, "`architecture` pix2pixhd contradicts `kernel_size` 5"),
        (Architecture.PIX2PIXHD, {"hidden_channels": 64}, "`hidden_channels` 64"),
        (Architecture.PIX2PIXHD, {"upsampling": Upsampling.MORE}, "`upsampling` more"),
        (Architecture.PIX2PIXHD, {"z_dim": 8}, "`vae`"),
        (Architecture.PIX2PIXHD, {"norm": NormType.LAYER}, "`norm` layer; it has instance, sync_batch, batch"),
        (Architecture.CRN, {"kernel_size": 1}, "`architecture` crn contradicts `kernel_size` 1"),
        (Architecture.CRN, {"hidden_channels": 64}, "`hidden_channels` 64"),
        (Architecture.CRN, {"z_dim": 8}, "`vae`"),
        (Architecture.CRN, {"norm": NormType.BATCH}, "`norm` batch; it has layer"),
        (Architecture.CRN, {"spectral_norm": True}, "`architecture` crn contradicts `spectral_norm`"),
        (Architecture.SIMS, {"spectral_norm": True}, "`architecture` sims contradicts `spectral_norm`"),
        (Architecture.SIMS, {"kernel_size": 1}, "`architecture` sims contradicts `kernel_size` 1"),
        (Architecture.SPADE, {"norm": NormType.LAYER}, "`architecture` spade contradicts `norm` layer"),
        (Architecture.CLADE, {"kernel_size": 1}, "`architecture` clade contradicts `kernel_size` 1"),
        (Architecture.CLADE, {"hidden_channels": 64}, "`hidden_channels` 64"),
        (Architecture.OASIS, {"upsampling": Upsampling.MORE}, "`architecture` oasis contradicts `upsampling` more"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(
    architecture: Architecture, fields: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(architecture, **fields)
    assert flag in caught.value.message


def test_sizes() -> None:
    assert [tiny(architecture).stride for architecture in Architecture] == [32, 16, 32, 32, 32, 32]
    assert tiny(Architecture.PIX2PIXHD, height=48, width=32).latent_height == 3
    with pytest.raises(ConfigError, match=r"width 40 is not a multiple of 16 from 32 on \(pix2pixhd halves"):
        tiny(Architecture.PIX2PIXHD, width=40)
    with pytest.raises(ConfigError, match="height 16 is not a multiple of 16 from 32 on"):  # a latent has no reflection
        tiny(Architecture.PIX2PIXHD, height=16)
    with pytest.raises(ConfigError, match=r"width 48 is not a multiple of 32 \(upsampling normal doubles 5 times\)"):
        tiny(Architecture.CRN, width=48)


@pytest.mark.parametrize("architecture", BASELINES)
def test_a_style_vector_is_not_ignored(architecture: Architecture) -> None:
    with pytest.raises(ValueError, match="takes no style vector"):
        build_generator(tiny(architecture))(segmaps(1, 32, 32), torch.zeros(1, 4))


def test_a_uniform_label_map_washes_out_at_once() -> None:
    # The argument of SPADE's paper: instance norm takes a constant away, whichever class it stands for.
    torch.manual_seed(0)
    first_layer = build_generator(tiny(Architecture.PIX2PIXHD)).double().get_submodule("conv_in")
    for label in (0, 3):
        uniform = make_segmap(torch.full((1, 64, 64), label), torch.zeros(1, 64, 64), LABELS).double()
        assert first_layer(uniform).abs().max() < 1e-12  # measured 7e-15; two classes give 3.9
    assert first_layer(segmaps(1, 64, 64).double()).abs().max() > 1
