"""The request for a training: a preset, and the settings that differ from it. `resolve.py` makes a setup of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.images.image_file import Size
from spade_deploy.settings import asked_of, setting
from spade_deploy.spec import NETWORK, DiscriminatorSpec, FirstInput, GeneratorSpec, parse_size
from spade_deploy.training.config import (
    DATA,
    LEARNING,
    TEXT,
    PerceptualNetwork,
    TrainConfig,
)


@dataclass(frozen=True)
class DataRequest:
    """The data to train on: a preset by its name and folder, or folders of your own. None takes the preset's value."""

    preset: str | None = setting(
        None, help="earth (embedded, for a CPU), coco, ade20k, cityscapes, facades or custom.", group=DATA
    )
    root: Path | None = setting(
        None, help="Folder of the data set, in the preset's official layout.", group=DATA, flag="data"
    )
    labels: Path | None = setting(None, help="custom: folder of label maps.", group=DATA)
    images: Path | None = setting(None, help="custom: folder of photos, paired by stem.", group=DATA)
    instances: Path | None = setting(None, help="custom: folder of instance maps; adds an edge channel.", group=DATA)
    num_labels: int | None = setting(None, help="custom: number of classes; ids are 0..N-1.", group=DATA)
    has_dontcare: bool | None = setting(
        None, help="custom: the value 255 in label maps means unknown.", group=DATA, flag="dontcare", negatable=True
    )
    size: Size | None = setting(None, help="HEIGHTxWIDTH in pixels, such as 256x512.", group=DATA, parse=parse_size)
    flip: bool | None = setting(None, help="Mirror half of the samples at random.", group=DATA, negatable=True)
    load_size: Size | None = setting(
        None, help="Samples are resized to this, then cropped at random.", group=DATA, parse=parse_size
    )

    @property
    def preset_name(self) -> str:
        """The name of the preset. If none is given it is custom if folders are given, else earth, which needs none."""
        if self.preset is not None:
            return self.preset
        return "custom" if self.labels is not None or self.images is not None or self.root is not None else "earth"


@dataclass(frozen=True)
class TrainRequest:
    """The settings of a training: those of a preset, except for the ones that are given."""

    data: DataRequest = field(default_factory=DataRequest)
    """The data that it learns from."""
    generator: Mapping[str, Any] = asked_of(GeneratorSpec)
    """The fields of GeneratorSpec that are given."""
    discriminator: Mapping[str, Any] = asked_of(DiscriminatorSpec)
    """The fields of DiscriminatorSpec that are given."""
    train: Mapping[str, Any] = asked_of(TrainConfig)
    """The fields of TrainConfig that are given."""
    vae: bool = setting(
        False, help="A style vector, and an encoder that finds it in photos.", group=NETWORK, after="generator"
    )
    first_input: FirstInput | None = setting(
        None, help="Input of the first layer: the label map, or noise (an ablation).", group=NETWORK, after="vae"
    )
    ttur: bool = setting(
        True,
        help="Two time scales, or one rate of 2e-4.",
        group=LEARNING,
        negatable=True,
        after="lr_discriminator",
    )
    perceptual: PerceptualNetwork | None = setting(
        None,
        help="Perceptual loss with downloaded weights: vgg19 (paper) or vgg16.",
        group=LEARNING,
        metavar=TEXT,
        after="weight_perceptual",
    )
