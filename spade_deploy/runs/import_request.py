"""What is asked of an import: what the file of a generator does not tell."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.spec import LabelSpec, NormType, Upsampling

RELEASED = {
    # name: upsampling, height, width
    "coco": (Upsampling.NORMAL, 256, 256),
    "ade20k": (Upsampling.NORMAL, 256, 256),
    "cityscapes": (Upsampling.MORE, 256, 512),
}
"""The presets that NVIDIA released weights for."""


@dataclass(frozen=True)
class ImportRequest:
    """What the file cannot tell; the rest follows from a preset, and what contradicts the preset is refused."""

    preset: str | None = None
    """One of `RELEASED`; where it is left out, the number of channels may tell it."""

    labels: LabelSpec | None = None
    """What the channels stand for, where there is no preset."""

    upsampling: Upsampling | None = None
    """How often the generator doubles; the file does not tell normal from more."""

    size: tuple[int, int] | None = None
    """Height and width in pixels that the model was trained for."""

    norm: NormType | None = None
    """The normalisation, where the file has no running statistics."""

    part: str | None = None
    """Which network, where the file holds several: 'generator_ema'."""

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in RELEASED:
            raise ConfigError(f"`preset`: {quoted(self.preset)} is not one of {', '.join(RELEASED)}")
        if self.preset is not None and self.labels is not None:
            raise ConfigError(f"`num_labels` contradicts `preset` {self.preset}, which says what the labels are")
