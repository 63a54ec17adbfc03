"""Settings that do not fit together: of a training and of its network, or of a student and its data."""

from __future__ import annotations

from typing import Protocol

from spade_deploy.errors import ConfigError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.settings import as_typed
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, NormType
from spade_deploy.training.distillation.config import Distillation


class Training(Protocol):
    """What these checks look at of a training's settings."""

    @property
    def batch_size(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def compile(self) -> bool: ...

    @property
    def eval_every(self) -> int: ...

    @property
    def init(self) -> str: ...

    @property
    def discriminator(self) -> DiscriminatorSpec: ...

    @property
    def distill(self) -> Distillation | None: ...


def check_student(train: Training, data: DataConfig) -> None:
    """Raise ConfigError for what a student cannot do, and for what only a student can."""
    distill = train.distill
    if distill is None:
        if data.labels_only:
            raise ConfigError(f"{data.described}: training needs photos", hint="name their folder with `images_dir`")
        return
    if train.init:
        raise ConfigError(
            f"`init` {train.init} contradicts a teacher, with whose channels a student begins",
            hint="leave `init` out",
        )
    if data.labels_only and train.eval_every:
        raise ConfigError(
            f"`eval_every` {train.eval_every}: there are no photos to measure the images against",
            hint="leave it out: the losses say how far the images are from the teacher's",
        )
    if distill.weight_features > 0 and train.compile:
        raise ConfigError(
            f"`compile` contradicts `weight_features` {distill.weight_features}, which looks inside the network",
            hint="leave `compile` out, or give `weight_features` 0",
        )
    if distill.cache and data.load_size != data.crop_size:
        raise ConfigError(
            f"`cache`: samples of {as_typed(data.load_size)} are cropped to {as_typed(data.crop_size)} at"
            " random, so hardly any label map is seen twice",
            hint=f"give `load_size` {as_typed(data.crop_size)}, or leave `cache` out",
        )


def check_statistics(config: Training, generator: GeneratorSpec) -> None:
    """Raise ConfigError for a normalisation over a single value, whose result is always zero."""
    shrunk = 1 << (config.discriminator.scales - 1)
    if max(generator.height, generator.width) <= shrunk:
        raise ConfigError(
            f"`discriminator_scales`: {config.discriminator.scales} halve {generator.height} x {generator.width}"
            " to a single pixel, which instance norm makes zero",
            hint="take fewer, or a larger `size`",
        )
    pixels = generator.latent_height * generator.latent_width
    samples = config.batch_size // config.accumulate
    if generator.norm is NormType.INSTANCE and pixels == 1:
        raise ConfigError(
            f"`size`: {generator.height} x {generator.width} has a latent map of one pixel, which instance norm"
            " makes zero",
            hint=f"take twice that, or `norm` {NormType.SYNC_BATCH}",
        )
    if generator.norm in (NormType.BATCH, NormType.SYNC_BATCH) and pixels * samples == 1:
        raise ConfigError(
            f"`batch_size`: one sample of {generator.height} x {generator.width} at a time has a latent map of one"
            " pixel, which batch norm makes zero",
            hint="take more samples, fewer `accumulate` parts, or a larger `size`",
        )
