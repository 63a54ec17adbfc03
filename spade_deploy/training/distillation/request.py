"""The request for a student: its teacher, its widths, and the settings that differ from the teacher's training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.images.image_file import Size
from spade_deploy.settings import asked_of, check_ranges, setting
from spade_deploy.spec import DiscriminatorSpec
from spade_deploy.training.config import LEARNING, TEXT, PerceptualNetwork, TrainConfig
from spade_deploy.training.distillation.config import STUDENT, Distillation
from spade_deploy.training.request import DataRequest, TrainRequest

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_macs(text: str) -> float:
    """'20G' -> 20e9 multiply-adds. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"`mac_budget`: {quoted(text)} is not a number of multiply-adds, such as 20G or 500M")
    return float(match[1]) * _UNITS[match[2].upper()]


@dataclass(frozen=True)
class DistillRequest:
    """The teacher and the student. What is not given is that of the teacher's training, or of its data set's preset."""

    teacher: Path = setting(help="The teacher: a run, a checkpoint, or earth (shipped).", argument=True)
    base_channels: int | None = setting(
        None, help="Width of the student, at most the teacher's; or give `mac_budget`.", group=STUDENT
    )
    hidden_channels: int | None = setting(
        None, help="Width inside the student's SPADE; default: narrowed as much as the rest.", group=STUDENT
    )
    mac_budget: float | None = setting(
        None,
        help="Choose the widths: most multiply-adds an image of the lookup graph may cost, such as 20G.",
        group=STUDENT,
        metavar=TEXT,
        parse=parse_macs,
    )
    """The cost is the mean over label maps of the data set."""
    student: Mapping[str, Any] = asked_of(Distillation)
    """The fields of Distillation that are given."""
    labels_only: bool = setting(
        False, help="Learn from label maps alone, although there are photos: no adversarial loss.", group=STUDENT
    )
    data: DataRequest = field(default_factory=DataRequest)
    """The data that it learns from, where that is not the teacher's."""
    train: Mapping[str, Any] = asked_of(TrainConfig)
    """The fields of TrainConfig that are given."""
    discriminator: Mapping[str, Any] = asked_of(DiscriminatorSpec)
    """The fields of DiscriminatorSpec that are given."""
    perceptual: PerceptualNetwork | None = setting(
        None,
        help="Perceptual loss with downloaded weights: vgg19 (paper) or vgg16.",
        group=LEARNING,
        metavar=TEXT,
        after="weight_perceptual",
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def decided(self, size: Size, base_channels: int) -> TrainRequest:
        """The same as a request for a training, in which size and width are given."""
        return replace(self, data=replace(self.data, size=size), base_channels=base_channels).as_training

    @property
    def as_training(self) -> TrainRequest:
        """The same request without its teacher, for what students share with every training."""
        widths = {"base_channels": self.base_channels, "hidden_channels": self.hidden_channels}
        return TrainRequest(
            data=self.data,
            generator={name: width for name, width in widths.items() if width is not None},
            discriminator=self.discriminator,
            train=self.train,
            perceptual=self.perceptual,
        )
