"""The settings by which a student learns from its teacher, saved with every checkpoint of its run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.fields import Sha256, Sha256OrNone, to_json
from spade_deploy.settings import setting
from spade_deploy.spec import GeneratorSpec

STUDENT = "Student"
"""The group of these settings in `--help`."""


@dataclass(frozen=True)
class TeacherFacts:
    """What a student's run says of its teacher."""

    place: str
    """The teacher's checkpoint folder, or the name of a shipped model."""

    sha256: Sha256
    """The SHA-256 of the teacher's file of weights."""

    generator: GeneratorSpec
    """How the teacher is built."""


@dataclass(frozen=True)
class Distillation:
    """How a student learns from its teacher."""

    teacher: TeacherFacts
    """The teacher."""

    weight_features: float = setting(
        10.0, help="Weight of the distance of features; default: 10, and 0 with `cache`.", group=STUDENT
    )
    """The teacher's features after each residual block are compared with the student's through a learned 1 x 1 map."""

    pruned: bool = setting(
        True, help="Begin with the teacher's most important channels; default: on.", group=STUDENT, negatable=True
    )
    """Without it the student begins with random weights."""

    cache: bool = setting(
        False, help="Keep the teacher's images in the run's folder: each is made once.", group=STUDENT
    )
    """It needs samples that are not cropped at random, and no feature loss, since the teacher is not run again."""

    search: Sha256OrNone = ""
    """The SHA-256 of the weights that a search for widths found, with which the run began; empty without a search."""

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON; without a search as versions before it wrote them."""
        value = to_json(self)
        if not self.search:
            del value["search"]
        return value

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight_features) and self.weight_features >= 0):
            raise ConfigError(f"`weight_features`: {self.weight_features} is not a finite number from 0 on")
        if self.cache and self.weight_features > 0:
            raise ConfigError(
                f"`cache` contradicts `weight_features` {self.weight_features}: only images are kept, no features",
                hint="give `weight_features` 0, or leave `cache` out",
            )
        if self.cache and self.teacher.generator.z_dim is not None:
            raise ConfigError(
                "`cache`: the teacher's image depends on a style vector, which is a new one in each step",
                hint="leave `cache` out",
            )
