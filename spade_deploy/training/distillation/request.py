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
from spade_deploy.spec.sizes import is_number
from spade_deploy.training.config import TEXT, TrainConfig
from spade_deploy.training.distillation.config import STUDENT, Distillation
from spade_deploy.training.request import DataRequest, PerceptualRequest, TrainRequest

WIDTHS = ("base_channels", "hidden_channels", "level_channels", "level_hidden")
"""The fields of a generator's spec that say how wide a student is."""

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_widths(text: str) -> tuple[int, ...]:
    """'128,64,32,16,8' -> the width of each level. Raises ConfigError."""
    parts = text.split(",")
    if not all(is_number(part.strip()) and int(part) for part in parts):
        raise ConfigError(f"`level_channels`: {quoted(text)} is not a list of widths, such as 128,64,32,16,8")
    return tuple(map(int, parts))


def parse_macs(text: str) -> float:
    """'20G' -> 20e9 multiply-adds. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"`mac_budget`: {quoted(text)} is not a number of multiply-adds, such as 20G or 500M")
    return float(match[1]) * _UNITS[match[2].upper()]


@dataclass(frozen=True)
class DistillRequest(PerceptualRequest):
    """The teacher and the student. What is not given is that of the teacher's training, or of its data set's preset."""

    teacher: Path = setting(help="The teacher: a run, a checkpoint, or earth (shipped).", argument=True)
    base_channels: int | None = setting(
        None, help="Width of the student, at most the teacher's; or give `mac_budget`.", group=STUDENT
    )
    hidden_channels: int | None = setting(
        None, help="Width inside the student's SPADE; default: narrowed as much as the rest.", group=STUDENT
    )
    level_channels: tuple[int, ...] | None = setting(
        None,
        help="SPADE: width of each level, coarsest first, such as 128,60,24,12,8; instead of `base_channels`.",
        group=STUDENT,
        metavar=TEXT,
        parse=parse_widths,
    )
    level_hidden: tuple[int, ...] | None = setting(
        None,
        help="SPADE: width inside the modulation of each level, coarsest first; instead of `hidden_channels`.",
        group=STUDENT,
        metavar=TEXT,
        parse=parse_widths,
    )
    mac_budget: float | None = setting(
        None,
        help="Choose the widths: most multiply-adds an image of the lookup graph may cost, such as 20G.",
        group=STUDENT,
        metavar=TEXT,
        parse=parse_macs,
    )
    """The cost is the mean over label maps of the data set."""
    search_widths: bool = setting(
        False, help="SPADE: let a search choose the width of each level within `mac_budget`.", group=STUDENT
    )
    """The default is one student whose levels are all narrowed alike."""
    search_steps: int = setting(
        300, help="Steps for which the search trains sub-networks.", group=STUDENT, least=0, most=10**7
    )
    searched: Any = None
    """What the search found, a `search_record.WidthSearch`, whose module needs torch; it is no option."""
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

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.mac_budget is not None and (self.level_channels or self.level_hidden):
            name = "level_channels" if self.level_channels else "level_hidden"
            raise ConfigError(f"`mac_budget` contradicts `{name}`, which says how wide it is", hint="give one of them")
        if self.search_widths:
            self._check_search()

    def _check_search(self) -> None:
        if self.mac_budget is None:
            raise ConfigError("`search_widths` needs `mac_budget`, such as 20G: the search stays within it")
        for name in ("base_channels", "hidden_channels"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"`search_widths` contradicts `{name}`: the search chooses all widths", hint="leave one of them out"
                )
        if self.student.get("pruned") is False:
            raise ConfigError(
                "`search_widths` contradicts `no_pruned`: the search begins with the teacher's channels",
                hint="leave one of them out",
            )

    def decided(self, size: Size, base_channels: int) -> TrainRequest:
        """The same as a request for a training, in which size and width are given."""
        return replace(self, data=replace(self.data, size=size), base_channels=base_channels).as_training

    @property
    def widths(self) -> dict[str, Any]:
        """The fields of the student's spec that say how wide it is, as they are given."""
        return {name: getattr(self, name) for name in WIDTHS}

    @property
    def as_training(self) -> TrainRequest:
        """The same request without its teacher, for what students share with every training."""
        return TrainRequest(
            data=self.data,
            generator={name: width for name, width in self.widths.items() if width is not None},
            discriminator=self.discriminator,
            train=self.train,
            perceptual=self.perceptual,
        )
