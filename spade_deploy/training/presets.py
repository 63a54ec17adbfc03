"""Settings for a data set: the paper's for its four data sets, others for the embedded one and for your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.sets import label_set
from spade_deploy.settings import check_one_of
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec, Upsampling
from spade_deploy.training.config import Setup, TrainConfig

PAPER_PRESETS = ("coco", "ade20k", "cityscapes", "facades")
PRESETS = ("earth", *PAPER_PRESETS)


def preset(name: str, root: Path | None = None, size: Size | None = None) -> Setup:
    """The settings of a preset; change them with `dataclasses.replace`. Raises ConfigError for an unknown name.

    coco, ade20k, cityscapes, facades: the paper's network and schedule on the data set in the folder `root`.
    earth: the embedded data set at 128 x 128 with a network that learns in minutes on a CPU.
    size: (height, width) in pixels instead of the preset's; data and generator both follow it.
    """
    own_data = "for your own data there is `preset` custom with `labels` DIR `images` DIR `num_labels` N"
    check_one_of("preset", name, PRESETS, hint=own_data)
    data = DataConfig.for_preset(name, crop_size=size, root=root)
    generator = GeneratorSpec(label_set(name), height=data.crop_size[0], width=data.crop_size[1])
    if name == "earth":
        return Setup(earth_training(), replace(generator, base_channels=16, hidden_channels=32), data)
    if name == "cityscapes":
        generator = replace(generator, upsampling=Upsampling.MORE)
    # The paper's rates fall over the second half of 200 epochs, and stay over the 100 of COCO-Stuff.
    schedule = TrainConfig(epochs=100, decay_start=1.0) if name == "coco" else TrainConfig(epochs=200)
    return Setup(schedule, generator, data)


def custom_setup(labels: LabelSpec, data: DataConfig) -> Setup:
    """The paper's network and 200 epochs for a data set of your own."""
    generator = GeneratorSpec(labels, height=data.crop_size[0], width=data.crop_size[1])
    return Setup(TrainConfig(epochs=200), generator, data)


def earth_training() -> TrainConfig:
    """Settings that show land and sea after a minute on two cores.

    Higher rates than the paper's 1e-4 and 4e-4, which need hours, and a narrower discriminator, which halves a step.
    """
    return TrainConfig(
        steps=300,
        batch_size=4,
        lr_generator=1e-3,
        lr_discriminator=1e-3,
        weight_l1=5.0,
        workers=0,
        save_every=100,
        sample_every=100,
        log_every=1,
        discriminator=DiscriminatorSpec(base_channels=32),
    )


def without_ttur(config: TrainConfig) -> TrainConfig:
    """One rate of 2e-4 for both networks and Adam's (0.5, 0.999), as before the two time-scale rule."""
    return replace(config, lr_generator=2e-4, lr_discriminator=2e-4, betas=(0.5, 0.999))


def notes(config: TrainConfig) -> tuple[str, ...]:
    """Sentences on what a reader of the settings may expect and these settings do not do."""
    if config.weight_perceptual > 0 and not config.uses_perceptual:
        return ("no perceptual loss: it needs weights, `perceptual` vgg19 (downloaded) or `perceptual_file` FILE",)
    return ()
