"""Settings: refusals name the flag, JSON round trips, presets are what the paper says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.evaluation import EvalRequest
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec, NormType, Upsampling, parse_size
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.presets import PRESETS, custom_setup, notes, preset, without_ttur


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("`steps`, `epochs`: neither", {"steps": None}),
        ("`steps`, `epochs`: both", {"epochs": 3}),
        ("`steps`", {"steps": 0}),
        ("`batch_size`", {"batch_size": 0}),
        ("`lr_generator`", {"lr_generator": 0.0}),
        ("`lr_discriminator`", {"lr_discriminator": float("nan")}),
        ("`betas`", {"betas": (0.0, 1.0)}),
        ("`decay_start`", {"decay_start": 1.5}),
        ("`weight_l1`", {"weight_l1": -1.0}),
        ("`weight_feature_matching`", {"weight_feature_matching": float("inf")}),
        ("`perceptual_file`", {"perceptual_file": Path("x.pth"), "weight_perceptual": 0.0}),
        ("`seed`", {"seed": -1}),
        ("`workers`", {"workers": -1}),
        ("`save_every`", {"save_every": 0}),
        ("`keep_checkpoints`", {"keep_checkpoints": 0}),
        ("`device`", {"device": "tpu"}),
    ],
)
def test_impossible_settings_are_refused_by_flag(flag: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=flag):
        replace(TrainConfig(steps=10), **changes)


@pytest.mark.parametrize("changes", [{"scales": 0}, {"layers": 1}, {"base_channels": 0}])
def test_impossible_discriminators_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="`discriminator_"):
        DiscriminatorSpec(**changes)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(steps=5),
        TrainConfig(epochs=2, perceptual_file=Path("a/vgg.pth"), betas=(0.5, 0.999), device="cuda:1"),
        TrainConfig(steps=1, discriminator=DiscriminatorSpec(1, 3, 8)),
    ],
)
def test_json_round_trip(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "train config: .* is of type list"),
        ({"steps": "5"}, "steps: '5' is of type str"),
        ({"steps": True}, "steps: True is of type bool"),
        ({"steps": 5, "betas": ["a", 1]}, "betas"),
        ({"steps": 5, "stepz": 1}, "unknown field 'stepz'"),
        ({"steps": 5, "discriminator": {"scales": None}}, "discriminator spec: scales"),
        ({"steps": 5, "perceptual_file": 3}, "perceptual_file"),
    ],
)
def test_damaged_json_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(value)


def test_rates_stay_for_the_first_half_then_fall_to_almost_nothing() -> None:
    config = TrainConfig(steps=10)
    factors = [config.rate_factor(step, 10) for step in range(1, 11)]
    assert factors[:5] == [1.0] * 5
    assert factors[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    never = replace(config, decay_start=1.0)
    assert [never.rate_factor(step, 10) for step in range(1, 11)] == [1.0] * 10


def test_epochs_become_steps() -> None:
    assert TrainConfig(epochs=3).total_steps(7) == 21
    assert TrainConfig(steps=5).total_steps(7) == 5


@pytest.mark.parametrize(
    ("name", "epochs", "channels", "size", "upsampling"),
    [
        ("coco", 100, 184, (256, 256), Upsampling.NORMAL),
        ("ade20k", 200, 151, (256, 256), Upsampling.NORMAL),
        ("cityscapes", 200, 36, (256, 512), Upsampling.MORE),
        ("facades", 200, 13, (256, 256), Upsampling.NORMAL),
    ],
)
def test_paper_presets(
    name: str, epochs: int, channels: int, size: tuple[int, int], upsampling: Upsampling, tmp_path: Path
) -> None:
    setup = preset(name, tmp_path)
    train, generator = setup.train, setup.generator
    assert (train.epochs, train.batch_size, train.lr_generator, train.lr_discriminator) == (epochs, 32, 1e-4, 4e-4)
    assert (train.betas, train.weight_feature_matching, train.weight_perceptual) == ((0.0, 0.9), 10, 10)
    assert train.discriminator == DiscriminatorSpec(scales=2, layers=4, base_channels=64)
    assert generator.labels.num_channels == channels
    assert (generator.height, generator.width, generator.upsampling) == (*size, upsampling)
    assert (generator.base_channels, generator.hidden_channels) == (64, 128)
    assert setup.data.root == tmp_path


def test_earth_needs_nothing_and_every_preset_survives_json(tmp_path: Path) -> None:
    earth = preset("earth")
    assert earth.generator.labels.num_channels == 17
    assert earth.train.workers == 0
    for name in PRESETS:
        setup = preset(name, None if name == "earth" else tmp_path)
        assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


def test_size_goes_to_the_data_and_the_generator() -> None:
    setup = preset("earth", size=(64, 64))
    assert (setup.generator.height, setup.generator.width) == setup.data.crop_size == (64, 64)
    with pytest.raises(ConfigError, match="`size`"):
        replace(setup, generator=preset("earth").generator)


def test_unknown_and_incomplete_presets() -> None:
    with pytest.raises(ConfigError, match="'moon' is not one of earth"):
        preset("moon")
    with pytest.raises(ConfigError, match="`root`"):
        preset("coco")
    with pytest.raises(ConfigError, match="'data' is missing"):
        Setup.from_json({"train": {}, "generator": {}})


def test_a_style_vector_has_an_encoder_unless_it_is_noise() -> None:
    earth = preset("earth")
    assert not earth.has_encoder
    vae = replace(earth, generator=replace(earth.generator, z_dim=256))
    assert vae.has_encoder
    assert not replace(vae, train=replace(vae.train, encoder=False)).has_encoder


def test_custom_data_gets_the_papers_network(tmp_path: Path) -> None:
    data = DataConfig.for_preset("custom", root=tmp_path, crop_size=(128, 256))
    setup = custom_setup(LabelSpec(5), data)
    assert (setup.generator.height, setup.generator.width) == (128, 256)
    assert setup.generator.base_channels == 64


def test_without_ttur_is_the_older_recipe() -> None:
    config = without_ttur(TrainConfig(steps=1, weight_l1=3.0))
    assert (config.lr_generator, config.lr_discriminator, config.betas) == (2e-4, 2e-4, (0.5, 0.999))
    assert config.weight_l1 == 3.0


def test_a_perceptual_loss_that_is_not_computed_is_told() -> None:
    assert "`perceptual_file`" in notes(TrainConfig(steps=1))[0]
    assert notes(TrainConfig(steps=1, weight_perceptual=0.0)) == ()
    assert notes(TrainConfig(steps=1, perceptual_file=Path("x"))) == ()


@pytest.mark.parametrize(
    ("norm", "batch", "accumulate", "size", "flag"),
    [
        (NormType.SYNC_BATCH, 1, 1, 32, "`batch_size`"),
        (NormType.BATCH, 4, 4, 32, "`batch_size`"),
        (NormType.INSTANCE, 4, 1, 32, "`size`"),
        (NormType.SYNC_BATCH, 2, 1, 32, None),
        (NormType.SYNC_BATCH, 1, 1, 64, None),
        (NormType.INSTANCE, 1, 1, 64, None),
    ],
)
def test_a_norm_of_a_single_value_is_refused(
    norm: NormType, batch: int, accumulate: int, size: int, flag: str | None
) -> None:
    earth = preset("earth", size=(size, size))
    parts = (replace(earth.train, batch_size=batch, accumulate=accumulate), replace(earth.generator, norm=norm))
    if flag is None:
        Setup(*parts, earth.data)
        return
    with pytest.raises(ConfigError, match=flag):
        Setup(*parts, earth.data)


def test_scales_that_leave_one_pixel_are_refused() -> None:
    earth = preset("earth", size=(32, 32))
    for scales in (5, 6):
        train = replace(earth.train, discriminator=DiscriminatorSpec(scales=scales))
        if scales == 5:
            Setup(train, earth.generator, earth.data)
            continue
        with pytest.raises(ConfigError, match=r"`discriminator_scales`: 6 halve 32 x 32"):
            Setup(train, earth.generator, earth.data)


@pytest.mark.parametrize(
    ("flag", "make"),
    [
        ("`base_channels`: 1026", lambda: GeneratorSpec(LabelSpec(3), base_channels=1026)),
        ("`hidden_channels`: 8193", lambda: GeneratorSpec(LabelSpec(3), hidden_channels=8193)),
        ("`size`: height 32768", lambda: GeneratorSpec(LabelSpec(3), height=32768)),
        ("`z_dim`: 65537", lambda: GeneratorSpec(LabelSpec(3), z_dim=65537)),
        ("`num_labels`: 4097", lambda: LabelSpec(4097)),
        ("`batch_size`: 4097", lambda: TrainConfig(steps=1, batch_size=4097)),
        ("`steps`: 1000000001", lambda: TrainConfig(steps=10**9 + 1)),
        ("`epochs`: 1000000001", lambda: TrainConfig(epochs=10**9 + 1)),
        ("`workers`: 257", lambda: TrainConfig(steps=1, workers=257)),
        ("`keep_checkpoints`: 1000000001", lambda: TrainConfig(steps=1, keep_checkpoints=10**9 + 1)),
        ("`eval_samples`: 1000001", lambda: TrainConfig(steps=1, eval_samples=10**6 + 1)),
        ("`seed`: 4294967296", lambda: TrainConfig(steps=1, seed=2**32)),
        ("`discriminator_channels`: 1025", lambda: DiscriminatorSpec(base_channels=1025)),
        ("`size`: '9", lambda: parse_size("9" * 5000)),
        ("`size`: '64x", lambda: parse_size("64x" + "1" * 10)),
        ("`batch_size`: 4097", lambda: EvalRequest(batch_size=4097)),
        ("`samples`: 10000001", lambda: EvalRequest(samples=10**7 + 1)),
        ("`pictures`: 1001", lambda: EvalRequest(pictures=1001)),
        ("`seed`: 4294967296", lambda: EvalRequest(seed=2**32)),
    ],
)
def test_sizes_have_an_upper_bound(flag: str, make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.message.startswith(flag)
    assert len(caught.value.message) < 200
