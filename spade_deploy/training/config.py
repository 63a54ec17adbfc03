"""The settings of a training run, checked when made and saved with every checkpoint, and the presets.

A setting is never corrected: it is refused, or done. What differs from the paper by choice is told by `notes`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import from_json, to_json
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.sets import label_set
from spade_deploy.spec import Architecture, DiscriminatorSpec, GeneratorSpec, LabelSpec, NormType, Upsampling

PAPER_PRESETS = ("coco", "ade20k", "cityscapes", "facades")
PRESETS = ("earth", *PAPER_PRESETS)
STYLE_LENGTH = 256
"""Numbers of a style vector, as in the paper."""


class GanMode(StrEnum):
    """What the scores of the discriminator are trained towards; `losses.py` has the equations."""

    HINGE = "hinge"
    LS = "ls"
    ORIGINAL = "original"
    WGAN = "wgan"


class Amp(StrEnum):
    """Automatic mixed precision of the networks' passes; weights, statistics and losses stay float32."""

    OFF = "off"
    BF16 = "bf16"
    FP16 = "fp16"


class Modulation(StrEnum):
    """How a training step computes gamma and beta: by convolutions, or once for each distinct pattern of labels."""

    DENSE = "dense"
    LOOKUP = "lookup"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes, and how often it writes.

    steps, epochs: the length, one of the two.
    batch_size: samples a step, over all processes and all `accumulate` parts.
    accumulate: parts that a step's batch is computed in, one after the other; batch norm sees a part at a time.
    lr_generator, lr_discriminator, betas: Adam's; unequal rates are the two time-scale rule (TTUR).
    decay_start: share of the steps after which both rates fall linearly to zero; 1.0 is never.
    gan_mode: the adversarial loss. discriminator_steps: the generator learns in every so many-th step.
    weight_*: of feature matching, the perceptual loss, the pixels' L1 and the encoder's KL divergence, beside 1 for
    the adversarial loss.
    init: the generator's first weights: a checkpoint's folder, or the name of a shipped model; '' draws them.
    encoder: for a generator with a style vector: an encoder finds it in the photo (VAE), or it is noise.
    amp, channels_last, compile, modulation: how a step is computed; none changes what it computes but by rounding.
    ema_decay: the deployed generator is the exponential moving average of the trained one, its batch-norm statistics
    estimated anew on `ema_batches` batches; None deploys the trained one.
    deterministic: PyTorch's deterministic algorithms alone, at some cost.
    perceptual_file: VGG16 or VGG19 weights; without the file there is no perceptual loss, whatever its weight.
    seed: of the weights, the order of the samples and the styles.
    workers: loading processes, 0 loads in this one.
    save_every, sample_every, log_every: in steps. keep_checkpoints: the newest of the run that are kept.
    eval_every: steps between measurements on `eval_samples` held-out samples, 0 for none; extractor, segmenter: ONNX
    files that more is measured with; best_by: the metric whose best checkpoint is kept beside the newest.
    tensorboard: also write event files.
    device: 'auto' is CUDA where there is one, else the CPU; or 'cpu', 'cuda', 'cuda:1'.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    lr_generator: float = 1e-4
    lr_discriminator: float = 4e-4
    betas: tuple[float, float] = (0.0, 0.9)
    decay_start: float = 0.5
    weight_feature_matching: float = 10.0
    weight_perceptual: float = 10.0
    weight_l1: float = 0.0
    weight_kl: float = 0.05
    gan_mode: GanMode = GanMode.HINGE
    discriminator_steps: int = 1
    encoder: bool = True
    perceptual_file: Path | None = None
    init: str = ""
    amp: Amp = Amp.OFF
    channels_last: bool = True
    compile: bool = False
    modulation: Modulation = Modulation.DENSE
    accumulate: int = 1
    ema_decay: float | None = None
    ema_batches: int = 16
    deterministic: bool = False
    seed: int = 0
    workers: int = 4
    save_every: int = 1000
    sample_every: int = 1000
    log_every: int = 10
    keep_checkpoints: int = 2
    eval_every: int = 0
    eval_samples: int = 64
    extractor: Path | None = None
    segmenter: Path | None = None
    best_by: str = ""
    tensorboard: bool = False
    device: str = "auto"
    discriminator: DiscriminatorSpec = field(default_factory=DiscriminatorSpec)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            found = "neither is set" if self.steps is None else f"both are set, {self.steps} and {self.epochs}"
            raise ConfigError(f"--steps, --epochs: {found}; a run needs one of the two")
        for flag, number in (("--steps", self.steps), ("--epochs", self.epochs)):
            if number is not None:
                _check_range(flag, number, 1, 10**9)
        _check_range("--batch-size", self.batch_size, 1, 4096)
        _check_range("--accumulate", self.accumulate, 1, self.batch_size)
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--accumulate: {self.accumulate} does not divide --batch-size {self.batch_size}")
        _check_range("--discriminator-steps", self.discriminator_steps, 1, 1000)
        for flag, rate in (("--lr-generator", self.lr_generator), ("--lr-discriminator", self.lr_discriminator)):
            if not (math.isfinite(rate) and 0 < rate <= 1):
                raise ConfigError(f"{flag}: {rate} is not above 0 and at most 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--betas: {self.betas} is not two numbers from 0 to below 1")
        if not 0 <= self.decay_start <= 1:
            raise ConfigError(f"--decay-start: {self.decay_start} is not in 0..1")
        for name in ("feature_matching", "perceptual", "l1", "kl"):
            weight = getattr(self, f"weight_{name}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"--weight-{name.replace('_', '-')}: {weight} is not a finite number from 0 on")
        if self.perceptual_file is not None and self.weight_perceptual == 0:
            raise ConfigError(f"--perceptual-file {self.perceptual_file} contradicts --weight-perceptual 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema: {self.ema_decay} is not from 0 to below 1; 0.999 averages a thousand steps")
        _check_range("--ema-batches", self.ema_batches, 1, 10_000)
        self._check_evaluation()
        _check_range("--seed", self.seed, 0, 2**32 - 1)
        _check_range("--workers", self.workers, 0, 256)
        for name in ("save_every", "sample_every", "log_every", "keep_checkpoints"):
            _check_range("--" + name.replace("_", "-"), getattr(self, name), 1, 10**9)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"--device: {quoted(self.device)} is not auto, cpu, cuda or cuda:NUMBER")

    def _check_evaluation(self) -> None:
        _check_range("--eval-every", self.eval_every, 0, 10**9)
        _check_range("--eval-samples", self.eval_samples, 2, 10**6)
        if self.eval_every == 0:
            given = {"--extractor": self.extractor, "--segmenter": self.segmenter, "--best-by": self.best_by}
            flag = next((flag for flag, value in given.items() if value), None)
            if flag:
                raise ConfigError(f"{flag} {given[flag]} needs --eval-every N: without it nothing is measured")

    @property
    def uses_perceptual(self) -> bool:
        return self.perceptual_file is not None

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the run in steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # checked when made
        return self.epochs * steps_per_epoch

    def rate_factor(self, step: int, total: int) -> float:
        """What both learning rates are multiplied with in step 1..total: 1, then linearly towards 0."""
        constant = int(total * self.decay_start)
        return 1.0 if step <= constant else (total - step + 1) / (total - constant + 1)

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> TrainConfig:
        """Raises ConfigError where a field is unknown or of another type."""
        return from_json(cls, value, "train config")


@dataclass(frozen=True)
class Setup:
    """All that a run is made of: the settings, the network and the data, which must fit each other."""

    train: TrainConfig
    generator: GeneratorSpec
    data: DataConfig

    def __post_init__(self) -> None:
        size = (self.generator.height, self.generator.width)
        if self.data.crop_size != size:
            raise ConfigError(f"--size: the data is cropped to {self.data.crop_size}, the generator makes {size}")
        self._check_statistics()
        if self.train.modulation is Modulation.LOOKUP:
            architecture = self.generator.architecture
            if architecture is not Architecture.SPADE:
                raise ConfigError(
                    f"--modulation lookup contradicts --generator {architecture}, which has no modulation",
                    hint="leave --modulation out",
                )
            if self.train.compile:
                raise ConfigError(
                    "--modulation lookup contradicts --compile: every batch has another number of patterns",
                    hint="leave one of the two out",
                )

    def _check_statistics(self) -> None:
        """Refuses a normalisation that would have a single value to normalise, which is always zero then."""
        generator, config = self.generator, self.train
        shrunk = 1 << (config.discriminator.scales - 1)
        if max(generator.height, generator.width) <= shrunk:
            raise ConfigError(
                f"--discriminator-scales: {config.discriminator.scales} halve {generator.height} x {generator.width}"
                " to a single pixel, which instance norm makes zero",
                hint="take fewer, or a larger --size",
            )
        pixels = generator.latent_height * generator.latent_width
        samples = config.batch_size // config.accumulate
        if generator.norm is NormType.INSTANCE and pixels == 1:
            raise ConfigError(
                f"--size: {generator.height} x {generator.width} has a latent map of one pixel, which instance norm"
                " makes zero",
                hint=f"take twice that, or --norm {NormType.SYNC_BATCH}",
            )
        if generator.norm in (NormType.BATCH, NormType.SYNC_BATCH) and pixels * samples == 1:
            raise ConfigError(
                f"--batch-size: one sample of {generator.height} x {generator.width} at a time has a latent map of one"
                " pixel, which batch norm makes zero",
                hint="take more samples, fewer --accumulate parts, or a larger --size",
            )

    @property
    def has_encoder(self) -> bool:
        """Whether a style encoder is trained (the VAE)."""
        return self.generator.z_dim is not None and self.train.encoder

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> Setup:
        """Raises ConfigError where a part is missing or wrong."""
        return from_json(cls, value, "setup")


def preset(name: str, root: Path | None = None, size: Size | None = None) -> Setup:
    """The settings of a preset; change them with `dataclasses.replace`. Raises ConfigError for an unknown name.

    coco, ade20k, cityscapes, facades: the paper's network and schedule on the data set in the folder `root`.
    earth: the embedded data set at 128 x 128 with a network that learns in minutes on a CPU.
    size: (height, width) in pixels instead of the preset's; data and generator both follow it.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"--preset: {name!r} is not one of {', '.join(PRESETS)}",
            hint="for your own data there is --preset custom with --labels DIR --images DIR --num-labels N",
        )
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
    """What a reader of the settings could take for granted but is not done; one sentence each."""
    if config.weight_perceptual > 0 and not config.uses_perceptual:
        return ("no perceptual loss: it needs weights, --perceptual vgg19 (downloaded) or --perceptual-file FILE",)
    return ()


def _check_range(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{flag}: {quoted(value)} is not in {low}..{high}")
