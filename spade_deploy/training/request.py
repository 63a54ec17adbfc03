"""The request for a training: a preset, and the settings that differ from it. `resolve.py` makes a setup of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.images.image_file import Size
from spade_deploy.labels.holdout import MOST_SHARE
from spade_deploy.settings import asked_of, check_ranges, setting
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
    classes: Path | None = setting(
        None,
        help="custom: names and colours of the classes: JSON, lines 'R G B name', or a data.yaml.",
        group=DATA,
        metavar="FILE",
    )
    ignore_id: int | None = setting(
        None, help="custom: the value in label maps that means unknown, beside 255.", group=DATA, least=0, most=65535
    )
    has_dontcare: bool | None = setting(
        None, help="custom: the value 255 in label maps means unknown.", group=DATA, flag="dontcare", negatable=True
    )
    holdout: float | None = setting(
        None,
        help="custom: share of the samples that is held out, to measure on; default: 0.1; 0 holds out none.",
        group=DATA,
        least=0,
        most=MOST_SHARE,
    )
    holdout_seed: int | None = setting(
        None, help="custom: random seed of the hold-out; default: 0.", group=DATA, least=0, most=2**32 - 1
    )
    val_labels: Path | None = setting(
        None, help="custom: label maps to measure on, instead of a held-out share.", group=DATA
    )
    val_images: Path | None = setting(None, help="custom: their photos.", group=DATA)
    val_instances: Path | None = setting(None, help="custom: their instance maps.", group=DATA)
    size: Size | None = setting(None, help="HEIGHTxWIDTH in pixels, such as 256x512.", group=DATA, parse=parse_size)
    flip: bool | None = setting(None, help="Mirror half of the samples at random.", group=DATA, negatable=True)
    load_size: Size | None = setting(
        None, help="Samples are resized to this, then cropped at random.", group=DATA, parse=parse_size
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def preset_name(self) -> str:
        """The name of the preset. If none is given it is custom if folders are given, else earth, which needs none."""
        if self.preset is not None:
            return self.preset
        return "custom" if self.labels is not None or self.images is not None or self.root is not None else "earth"


@dataclass(frozen=True, kw_only=True)
class PerceptualRequest:
    """The network of the perceptual loss, of a training and of a student."""

    perceptual: PerceptualNetwork | None = setting(
        None,
        help="Perceptual loss with downloaded weights: vgg19 (paper) or vgg16.",
        group=LEARNING,
        metavar=TEXT,
        after="weight_perceptual",
    )


@dataclass(frozen=True)
class TrainRequest(PerceptualRequest):
    """The settings of a training: those of a preset, except for the ones that are given."""

    data: DataRequest = field(default_factory=DataRequest)
    """The data that it learns from."""
    generator: Mapping[str, Any] = asked_of(GeneratorSpec)
    """The fields of GeneratorSpec that are given."""
    discriminator: Mapping[str, Any] = asked_of(DiscriminatorSpec)
    """The fields of DiscriminatorSpec that are given."""
    train: Mapping[str, Any] = asked_of(TrainConfig)
    """The fields of TrainConfig that are given."""
    paper: bool = setting(
        False,
        help="custom: the paper's size, width and batch size, whatever photos and memory suggest.",
        group=DATA,
        after="load_size",
    )
    vae: bool = setting(
        False, help="A style vector, and an encoder that finds it in photos.", group=NETWORK, after="generator"
    )
    first_input: FirstInput | None = setting(
        None, help="Input of the first layer: the label map, or noise (an ablation).", group=NETWORK, after="vae"
    )
    ttur: bool = setting(
        True,
        help="Different learning rates for the two networks; off: one rate of 2e-4.",
        group=LEARNING,
        negatable=True,
        after="lr_discriminator",
    )
