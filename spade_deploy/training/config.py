"""The settings of a training run, checked when they are made and saved with every checkpoint.

A setting is never corrected: it is either used or refused. `presets.py` has the settings that come with a data set.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import from_json, to_json
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.settings import check_range, check_ranges, setting
from spade_deploy.spec import MAX_BATCH, Architecture, DiscriminatorSpec, GeneratorSpec
from spade_deploy.training.contradictions import check_statistics, check_student
from spade_deploy.training.distillation.config import Distillation

STYLE_LENGTH = 256
"""The length of a style vector, as in the paper."""

DATA, LEARNING = "Data", "Losses and rates"
SPEED, MEASURING = "Speed and memory", "Measuring while it trains"
"""The groups of the settings in `--help`."""

TEXT = "<str>"
"""The word for a value in `--help` if the help text itself names the choices."""


class GanMode(StrEnum):
    """The adversarial loss; `losses.py` has the equations."""

    HINGE = "hinge"
    LS = "ls"
    ORIGINAL = "original"
    WGAN = "wgan"


class Amp(StrEnum):
    """Automatic mixed precision of the networks' passes; weights, statistics and losses stay float32."""

    OFF = "off"
    BF16 = "bf16"
    FP16 = "fp16"


class PerceptualNetwork(StrEnum):
    """The networks whose published weights the perceptual loss can be computed with; the paper has VGG19."""

    VGG19 = "vgg19"
    VGG16 = "vgg16"


class Modulation(StrEnum):
    """How a training step computes gamma and beta: by convolutions, or once for each distinct pattern of labels."""

    DENSE = "dense"
    LOOKUP = "lookup"


def parse_betas(text: str) -> tuple[float, float]:
    """'0,0.9' -> (0.0, 0.9). Raises ConfigError."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"`betas`: {quoted(text)} is not two numbers with a comma, such as 0,0.9") from error
    return first, second


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes, and how often it writes."""

    steps: int | None = setting(None, help="Length of the training in steps.", least=1, most=10**9)
    epochs: int | None = setting(None, help="Length of the training in epochs.", least=1, most=10**9)
    batch_size: int = setting(32, help="Batch size (samples per step).", group=LEARNING, least=1, most=MAX_BATCH)
    """The number includes the samples of all processes and of all `accumulate` parts."""
    workers: int = setting(
        4, help="Number of loader processes; 0 loads in the main process.", group=DATA, least=0, most=256
    )
    gan_mode: GanMode = setting(
        GanMode.HINGE, help="Adversarial loss: hinge, ls, original or wgan.", group=LEARNING, metavar=TEXT
    )
    discriminator_steps: int = setting(
        1, help="Discriminator steps per generator step.", group=LEARNING, least=1, most=1000
    )
    """With N the generator learns in every N-th step."""
    lr_generator: float = setting(1e-4, help="Learning rate of the generator.", group=LEARNING)
    lr_discriminator: float = setting(4e-4, help="Learning rate of the discriminator.", group=LEARNING)
    """Rates that differ are the two time-scale rule (TTUR)."""
    betas: tuple[float, float] = setting(
        (0.0, 0.9), help="Adam's two betas, such as 0,0.9.", group=LEARNING, parse=parse_betas
    )
    decay_start: float = setting(
        0.5,
        help="Share of the training after which learning rates decay; 1 means never.",
        group=LEARNING,
        least=0,
        most=1,
    )
    """They fall linearly to zero, by steps."""
    weight_l1: float = setting(0.0, help="Weight of the pixels' L1 loss.", group=LEARNING)
    """All weights are relative to the adversarial loss, whose weight is 1."""
    weight_kl: float = setting(0.05, help="Weight of the KL divergence of a VAE's encoder.", group=LEARNING)
    weight_feature_matching: float = setting(10.0, help="Weight of feature matching.", group=LEARNING)
    weight_perceptual: float = setting(10.0, help="Weight of the perceptual loss.", group=LEARNING)
    perceptual_file: Path | None = setting(
        None,
        help="VGG16 or VGG19 weights: torchvision's, or Caffe's as .npz; switches that loss on.",
        group=LEARNING,
    )
    """Without the file there is no perceptual loss, whatever its weight."""
    seed: int = setting(0, help="Random seed (weights, sample order).", group=LEARNING, least=0, most=2**32 - 1)
    """It also decides the random styles."""
    ema_decay: float | None = setting(
        None,
        help="Deploy the moving average of the generator: decay, such as 0.999.",
        group=LEARNING,
        flag="ema",
    )
    """The batch-norm statistics of the average are estimated on batches. None deploys the trained generator itself."""
    bank_segments: int = setting(
        2048, help="sims: most photo segments in its memory bank; default: 2048.", group=DATA, least=1, most=10**6
    )
    save_every: int = setting(1000, help="Steps between checkpoints.", least=1, most=10**9)
    keep_checkpoints: int = setting(2, help="Number of newest checkpoints to keep.", least=1, most=10**9)
    sample_every: int = setting(1000, help="Steps between sample grids.", least=1, most=10**9)
    log_every: int = setting(10, help="Steps between rows of losses.csv.", least=1, most=10**9)
    device: str = setting("auto", help="auto, cpu, cuda or cuda:1.", group=SPEED)
    """'auto' takes CUDA if a GPU is there, else the CPU."""
    amp: Amp = setting(
        Amp.OFF, help="Mixed precision: off, bf16, or fp16 with a loss scaler.", group=SPEED, metavar=TEXT
    )
    """Weights, statistics and losses stay float32. This and the next three change a step by rounding alone."""
    channels_last: bool = setting(True, help="Channels-last memory layout; default: on.", group=SPEED, negatable=True)
    compile: bool = setting(False, help="Use torch.compile, which needs a C++ compiler.", group=SPEED)
    modulation: Modulation = setting(
        Modulation.DENSE,
        help="dense, or lookup: compute gamma and beta once for each pattern of labels; exact.",
        group=SPEED,
        metavar=TEXT,
    )
    accumulate: int = setting(1, help="Split each batch into N parts, which needs less memory.", group=SPEED)
    """The parts run one after the other, and batch norm sees one part at a time. N must divide `batch_size`."""
    deterministic: bool = setting(False, help="Use only deterministic algorithms (slower).", group=SPEED)
    eval_every: int = setting(
        0, help="Steps between evaluations on held-out samples.", group=MEASURING, least=0, most=10**9
    )
    """0 measures nothing."""
    eval_samples: int = setting(
        64, help="Number of samples for these evaluations; default: 64.", group=MEASURING, least=2, most=10**6
    )
    extractor: Path | None = setting(None, help="ONNX feature extractor: Frechet and kernel distance.", group=MEASURING)
    segmenter: Path | None = setting(None, help="ONNX segmenter: mean IoU and accuracy.", group=MEASURING)
    best_by: str = setting("", help="Keep the checkpoint that is best by this metric.", group=MEASURING)
    """It is kept beside the newest ones."""
    tensorboard: bool = setting(False, help="Also write TensorBoard event files.", group=MEASURING)
    init: str = setting(
        "", help="Start from a generator's weights: a run, a checkpoint, or earth (shipped).", metavar="RUN"
    )
    """An empty text begins with random weights."""
    encoder: bool = True
    """Whether a generator with a style vector gets an encoder, which finds the style of the photo (VAE); without it
    styles are noise."""
    ema_batches: int = 16
    """Batches that the moving average's batch-norm statistics are estimated on anew; 1 to 10,000."""
    discriminator: DiscriminatorSpec = field(default_factory=DiscriminatorSpec)
    """How the discriminator is built."""
    distill: Distillation | None = None
    """How a student learns from its teacher; None trains without a teacher."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            found = "neither is set" if self.steps is None else f"both are set, {self.steps} and {self.epochs}"
            raise ConfigError(f"`steps`, `epochs`: {found}; a run needs one of the two")
        check_ranges(self)
        check_range("accumulate", self.accumulate, 1, self.batch_size)
        if self.batch_size % self.accumulate:
            raise ConfigError(f"`accumulate`: {self.accumulate} does not divide `batch_size` {self.batch_size}")
        for name in ("lr_generator", "lr_discriminator"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and 0 < rate <= 1):
                raise ConfigError(f"`{name}`: {rate} is not above 0 and at most 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"`betas`: {self.betas} is not two numbers from 0 to below 1")
        for name in ("weight_feature_matching", "weight_perceptual", "weight_l1", "weight_kl"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"`{name}`: {weight} is not a finite number from 0 on")
        if self.perceptual_file is not None and self.weight_perceptual == 0:
            raise ConfigError(f"`perceptual_file` {self.perceptual_file} contradicts `weight_perceptual` 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(
                f"`ema_decay`: {self.ema_decay} is not from 0 to below 1; 0.999 averages a thousand steps"
            )
        check_range("ema_batches", self.ema_batches, 1, 10_000)
        self._check_evaluation()
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"`device`: {quoted(self.device)} is not auto, cpu, cuda or cuda:NUMBER")

    def _check_evaluation(self) -> None:
        if self.eval_every > 0:
            return
        for name in ("extractor", "segmenter", "best_by"):
            if value := getattr(self, name):
                raise ConfigError(f"`{name}` {value} needs `eval_every` N: without it nothing is measured")

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
        """The factor of both learning rates in step 1..total: 1 at first, then falling linearly towards 0."""
        constant = int(total * self.decay_start)
        return 1.0 if step <= constant else (total - step + 1) / (total - constant + 1)

    @property
    def begins_with(self) -> str:
        """The weights that the generator begins with: those of `init`, or of a student's teacher; empty if random."""
        return self.init if self.distill is None else self.distill.teacher.place

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON; those of a student are left out where there is none, as older versions know none."""
        value = to_json(self)
        if self.distill is None:
            del value["distill"]
        return value

    @classmethod
    def from_json(cls, value: Any) -> TrainConfig:
        """Raises ConfigError where a field is unknown or of another type."""
        return from_json(cls, value, "train config")


@dataclass(frozen=True)
class Setup:
    """The settings of a whole run, which must fit together."""

    train: TrainConfig
    """How it is trained."""
    generator: GeneratorSpec
    """How the network is built."""
    data: DataConfig
    """Which samples it sees, and how they are cropped."""

    def __post_init__(self) -> None:
        size = (self.generator.height, self.generator.width)
        if self.data.crop_size != size:
            raise ConfigError(f"`size`: the data is cropped to {self.data.crop_size}, the generator makes {size}")
        check_student(self.train, self.data)
        if self.generator.architecture is Architecture.OASIS and self.train.distill is None:
            raise ConfigError(
                "`architecture` oasis is not trained here: its discriminator and its losses are others",
                hint="train it with its own code, and import its file with `spade import`",
            )
        check_statistics(self.train, self.generator)
        if self.train.bank_segments != TrainConfig.bank_segments and not self.generator.has_bank:
            raise ConfigError(f"`bank_segments`: `generator` {self.generator.architecture} has no memory bank")
        if self.train.modulation is Modulation.LOOKUP:
            architecture = self.generator.architecture
            if architecture is not Architecture.SPADE:
                raise ConfigError(
                    f"`modulation` lookup contradicts `generator` {architecture}, whose modulation is no convolution",
                    hint="leave `modulation` out",
                )
            if self.train.compile:
                raise ConfigError(
                    "`modulation` lookup contradicts `compile`: every batch has another number of patterns",
                    hint="leave one of the two out",
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
