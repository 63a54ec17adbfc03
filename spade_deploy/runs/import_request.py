"""The request for an import: the facts that a generator's file does not hold. Nothing here needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.labels.class_file import class_labels, own_labels
from spade_deploy.settings import check_one_of, setting
from spade_deploy.spec import LabelSpec, NormType, Upsampling, parse_size

RELEASED = {
    # name: upsampling, height, width
    "coco": (Upsampling.NORMAL, 256, 256),
    "ade20k": (Upsampling.NORMAL, 256, 256),
    "cityscapes": (Upsampling.MORE, 256, 512),
}
"""The presets that NVIDIA released weights for."""


@dataclass(frozen=True)
class ImportRequest:
    """The facts that the file does not hold. A preset decides those left out, and must not be contradicted."""

    preset: str | None = setting(None, help="coco, ade20k or cityscapes; default: found from the file.")
    num_labels: int | None = setting(None, help="Number of classes, for a model of another data set.")
    classes: Path | None = setting(
        None, help="Names and colours of the classes: JSON, lines 'R G B name', or a data.yaml.", metavar="FILE"
    )
    ignore_id: int | None = setting(None, help="The value in label maps that means unknown, beside 255.")
    has_dontcare: bool = setting(False, help="The model has a channel for unknown pixels.", flag="dontcare")
    has_edges: bool = setting(False, help="The model has an edge channel.", flag="edges")
    size: tuple[int, int] | None = setting(None, help="HEIGHTxWIDTH that the model was trained for.", parse=parse_size)
    upsampling: Upsampling | None = setting(
        None, help="Number of doublings, which the file does not tell: normal or more."
    )
    norm: NormType | None = setting(None, help="Norm of a file without running statistics: instance norm or none.")
    part: str | None = setting(None, help="Network to take from a file that holds several, such as generator_ema.")
    encoder: Path | None = setting(None, help="latest_net_E.pth: encodes photos, of a VAE or of instance features.")
    labels: LabelSpec | None = None
    """The labels that the channels stand for, with names and colours. In Python it replaces `num_labels`."""

    def __post_init__(self) -> None:
        if self.preset is not None:
            check_one_of("preset", self.preset, RELEASED)
        has_own = self.num_labels is not None or self.classes is not None
        if not has_own and (self.has_dontcare or self.has_edges or self.ignore_id is not None):
            names = "`ignore_id` needs" if self.ignore_id is not None else "`has_dontcare` and `has_edges` need"
            raise ConfigError(f"{names} `num_labels`, the number of classes", hint="give `num_labels`, too")
        named = "num_labels" if self.num_labels is not None else "classes"
        if has_own and self.labels is not None:
            raise ConfigError(f"`{named}` contradicts `labels`, which says what the labels are")
        if (has_own or self.labels is not None) and self.preset is not None:
            raise ConfigError(f"`{named}` contradicts `preset` {self.preset}, which says what the labels are")

    @property
    def label_spec(self) -> LabelSpec | None:
        """The labels that the channels stand for; None if the preset or the file decides them.

        Reads the class file. Raises ConfigError.
        """
        unknown: dict[str, Any] = {"has_dontcare": self.has_dontcare, "ignore_id": self.ignore_id}
        if self.classes is not None:
            return class_labels(self.classes, self.num_labels, has_edges=self.has_edges, **unknown)
        if self.num_labels is None:
            return self.labels
        return own_labels(self.num_labels, has_edges=self.has_edges, **unknown)
