"""The request for the label linter: which folder, which labels, and what is done with the findings."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from spade_deploy.errors import ConfigError
from spade_deploy.labels.class_file import class_labels, own_labels
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.palette_file import read_palette_file
from spade_deploy.labels.sets import label_set
from spade_deploy.settings import check_ranges, setting
from spade_deploy.spec import LabelSpec


@dataclass(frozen=True)
class CheckLabelsRequest:
    """A folder of label maps that is checked, and where a corrected copy goes."""

    folder: Path = setting(help="Label maps, or a data set's folder.", argument=True)
    preset: str | None = setting(None, help="earth, coco, ade20k, cityscapes, facades; or `num_labels`.")
    num_labels: int | None = setting(
        None, help="Number of classes; ids are 0..N-1. Default: the ids that occur are listed."
    )
    classes: Path | None = setting(
        None, help="Names and colours of the classes: JSON, lines 'R G B name', or a data.yaml.", metavar="FILE"
    )
    has_dontcare: bool = setting(False, help="The value 255 means unknown.", flag="dontcare")
    ignore_id: int | None = setting(None, help="This value means unknown, too.", least=0, most=65535)
    images: Path | None = setting(None, help="The photos: pairs and sizes are checked too.")
    instances: Path | None = setting(None, help="The instance maps: pairs and sizes are checked too.")
    palette: Path | None = setting(None, help="Colours of RGB label maps: JSON, or lines 'R G B name'.")
    ignore: tuple[str, ...] = setting((), help="Code of a kind of finding to ignore; may be repeated.")
    fix: Path | None = setting(None, help="Write a corrected copy of the folder here.")
    verbose: bool = setting(False, help="Print every finding, not only the groups.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.preset is not None:
            given = {"num_labels": self.num_labels, "classes": self.classes, "ignore_id": self.ignore_id}
            name = next((name for name, value in given.items() if value is not None), None)
            if name is not None:
                raise ConfigError(
                    f"`{name}` contradicts `preset` {self.preset}, which says what the labels are",
                    hint="leave one of them out",
                )
        if self.palette is not None and self.classes is not None:
            raise ConfigError("`palette` contradicts `classes`, which has the colours", hint="give one of them")

    @property
    def labels(self) -> LabelSpec | None:
        """The labels that the maps are checked against; None if nothing says how many there are.

        Reads the class file or the palette. Raises ConfigError.
        """
        colors, names = read_palette_file(self.palette) if self.palette is not None else ((), ())
        if self.classes is not None:
            return class_labels(self.classes, self.num_labels, has_dontcare=self.has_dontcare, ignore_id=self.ignore_id)
        if self.preset is not None:
            labels = label_set(self.preset)
        elif self.num_labels is not None:
            labels = own_labels(self.num_labels, has_dontcare=self.has_dontcare, ignore_id=self.ignore_id)
        elif colors:
            unknown = int(self.has_dontcare or self.ignore_id is not None)
            labels = own_labels(len(colors) - unknown, has_dontcare=self.has_dontcare, ignore_id=self.ignore_id)
        else:
            return None
        if not colors:
            return labels
        if len(colors) != labels.num_ids:
            raise ConfigError(
                f"`palette`: {self.palette} has {len(colors)} colours, but there are {labels.num_ids} ids"
            )
        return replace(labels, palette=colors, names=names or labels.names)


def check_command(data: DataConfig, labels: LabelSpec, split: str = "train") -> str:
    """The command that checks the files of a data set, photos included. split: whose folders, if it has its own."""
    folder = data.root or data.labels_dir
    beside = {"images": data.images_dir, "instances": data.instances_dir}
    if split == "val" and data.val_labels_dir is not None:
        folder = data.val_labels_dir
        beside = {"images": data.val_images_dir, "instances": data.val_instances_dir}
    place = shlex.quote(str(folder))
    if data.preset not in ("custom", "earth"):
        return f"spade check-labels {place} --preset {data.preset}"
    unknown = ""
    if labels.has_dontcare:
        unknown = "dontcare" if labels.ignore_id is None else f"ignore-id {labels.ignore_id}"
    others = f" --{unknown}" if unknown else ""
    others += "".join(f" --{name} {shlex.quote(str(path))}" for name, path in beside.items() if path is not None)
    return f"spade check-labels {place} --num-labels {labels.num_labels}{others}"
