"""Data sets on disk: which layouts are known, and where the files of each lie.

Only names are looked at here; no file is opened. Which files belong together is decided in `pairs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.fields import from_json, to_json
from spade_deploy.images.image_file import Size
from spade_deploy.labels.holdout import HoldOut
from spade_deploy.labels.kinds import (
    CITYSCAPES_INSTANCES,
    CITYSCAPES_LABELS,
    CITYSCAPES_PHOTOS,
    Kind,
    Layout,
    by_place,
    by_stem,
    cityscapes_kind,
    has_cityscapes_names,
    is_same_file,
)
from spade_deploy.labels.nested import has_images, images_inside

PRESET_SPLITS: dict[str, tuple[str, ...]] = {
    "earth": ("train", "val", "test"),
    "coco": ("train", "val"),
    "ade20k": ("train", "val"),
    "cityscapes": ("train", "val", "test"),
    "facades": ("train", "test"),
    "custom": ("train", "val", "test"),
}
PRESET_SIZES: dict[str, tuple[Size, Size]] = {
    "earth": ((128, 128), (128, 128)),
    "coco": ((286, 286), (256, 256)),
    "ade20k": ((286, 286), (256, 256)),
    "cityscapes": ((256, 512), (256, 512)),
    "facades": ((286, 286), (256, 256)),
    "custom": ((286, 286), (256, 256)),
}
"""The load size and the crop size that each preset trains with by default."""

FOLDERS = (
    *("labels_dir", "images_dir", "instances_dir"),
    *("val_labels_dir", "val_images_dir", "val_instances_dir"),
)
"""The fields of DataConfig that are folders of one kind of files."""


@dataclass(frozen=True)
class DataConfig:
    """Which data set, where it lies, and how its images become training samples."""

    preset: str = "earth"
    """A key of PRESET_SPLITS. Earth without a root is the embedded data set."""
    root: Path | None = None
    """A folder in the preset's official layout; custom and earth: ROOT/{train,val,test}/{labels,images,instances}."""
    labels_dir: Path | None = None
    """The folder of label maps for the preset custom, instead of a root."""
    images_dir: Path | None = None
    """The folder of the photos that belong to `labels_dir`."""
    instances_dir: Path | None = None
    """The folder of the instance maps that belong to `labels_dir`."""
    val_labels_dir: Path | None = None
    """The folder of the label maps to measure on, beside `labels_dir`."""
    val_images_dir: Path | None = None
    """The folder of the photos that belong to `val_labels_dir`."""
    val_instances_dir: Path | None = None
    """The folder of the instance maps that belong to `val_labels_dir`."""
    holdout: HoldOut | None = None
    """Which of the training samples are held out, as the split val; None if the data set has samples to measure on, or
    nothing is held out."""
    load_size: Size = (128, 128)
    """(height, width) that training samples are resized to."""
    crop_size: Size = (128, 128)
    """(height, width) that they are then cropped to, at random; evaluation resizes to it directly."""
    flip: bool = True
    """Whether half of the training samples are mirrored."""
    labels_only: bool = False
    """Whether there are no photos, or none are wanted: a student can learn from its teacher's images alone."""

    def __post_init__(self) -> None:
        if self.preset not in PRESET_SPLITS:
            raise unknown_preset(self.preset)
        given = {name: getattr(self, name) for name in FOLDERS}
        folders = [name for name, folder in given.items() if folder is not None]
        if self.preset != "custom" and folders:
            raise ConfigError(f"`{folders[0]}`: the preset {self.preset} takes `root`", hint="use `preset` custom")
        if self.preset == "custom" and (self.root is None) == (self.labels_dir is None):
            raise ConfigError("`preset` custom: needs either `root` or `labels_dir` (and `images_dir`)")
        if self.root is not None and folders:
            raise ConfigError(f"`{folders[0]}`: contradicts `root` {self.root}; give one of them")
        self._check_val_folders()
        if self.preset not in ("custom", "earth") and self.root is None:
            raise ConfigError(f"`preset` {self.preset}: needs the data set's folder, `root`")
        for name, size in (("load_size", self.load_size), ("crop_size", self.crop_size)):
            if len(size) != 2 or not all(1 <= side <= 8192 for side in size):
                raise ConfigError(f"`{name}`: {size} is not (height, width) in 1..8192 pixels")
        if self.crop_size[0] > self.load_size[0] or self.crop_size[1] > self.load_size[1]:
            raise ConfigError(
                f"`crop_size`: the crop {self.crop_size} is larger than the load size {self.load_size}",
                hint="give a smaller `crop_size`, or a larger `load_size`",
            )

    def _check_val_folders(self) -> None:
        """Refuse folders to measure on that contradict the rest, or would be the training samples again."""
        if self.val_labels_dir is None:
            for name in ("val_images_dir", "val_instances_dir"):
                if (folder := getattr(self, name)) is not None:
                    raise ConfigError(
                        f"`{name}` {folder} needs `val_labels_dir`: the label maps that belong to it", hint="give both"
                    )
            return
        if self.labels_dir is None:
            raise ConfigError(f"`val_labels_dir` {self.val_labels_dir} needs `labels_dir`: the label maps to train on")
        for name, partner in (("images_dir", self.val_images_dir), ("instances_dir", self.val_instances_dir)):
            if (getattr(self, name) is None) != (partner is None):
                missing = f"val_{name}" if partner is None else name
                raise ConfigError(
                    f"`val_labels_dir` {self.val_labels_dir}: `{missing}` is missing, which belongs to it"
                )
        if self.holdout is not None:
            raise ConfigError(
                f"`holdout` contradicts `val_labels_dir` {self.val_labels_dir}: there are samples to measure on",
                hint="give one of them",
            )
        if is_same_file(self.val_labels_dir, self.labels_dir):
            raise ConfigError(
                f"`val_labels_dir`: {self.val_labels_dir} is the folder that is trained on",
                hint="leave it out: `holdout` takes a share of the samples to measure on",
            )

    @classmethod
    def for_preset(cls, preset: str, *, crop_size: Size | None = None, **given: Any) -> DataConfig:
        """A config with the preset's sizes; another crop_size scales the load size along (286 : 256 stays)."""
        if preset not in PRESET_SIZES:
            raise unknown_preset(preset)
        load, crop = PRESET_SIZES[preset]
        if crop_size is not None:
            load = (-(-crop_size[0] * load[0] // crop[0]), -(-crop_size[1] * load[1] // crop[1]))
            crop = crop_size
        return cls(**{"preset": preset, "load_size": load, "crop_size": crop, **given})

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this data set has. Folders of one's own have val only if something is kept from training."""
        if self.labels_dir is None:
            return PRESET_SPLITS[self.preset]
        return ("train", "val") if self.has_kept_samples else ("train",)

    @property
    def has_kept_samples(self) -> bool:
        """Whether, of folders of one's own, there are samples to measure on that are not trained on."""
        return self.holdout is not None or self.val_labels_dir is not None

    @property
    def described(self) -> str:
        """For people: 'earth (embedded)', 'custom (/data/mine)'."""
        return f"{self.preset} ({self.root or self.labels_dir or 'embedded'})"

    @property
    def evaluation_split(self) -> str:
        """The split for sample grids and metrics: val (facades: test); train if nothing is kept from training."""
        return self.splits[1] if len(self.splits) > 1 else "train"

    def to_json(self) -> dict[str, Any]:
        """The config as JSON; `labels_only` is left out where it is false, as older versions do not know it."""
        value = to_json(self)
        if not self.labels_only:
            del value["labels_only"]
        return value

    @classmethod
    def from_json(cls, value: Any) -> DataConfig:
        """Read a config from JSON. Raises ConfigError if a field is unknown or of another type."""
        return from_json(cls, value, "data config")


def unknown_preset(preset: str) -> ConfigError:
    """The error for a preset that does not exist."""
    return ConfigError(f"`preset`: {preset!r} is not one of {', '.join(PRESET_SPLITS)}")


def label_layouts(config: DataConfig) -> list[Layout]:
    """The layout of each split, whether its folders exist or not."""
    return [layout_of(config, split) for split in config.splits]


def layout_of(config: DataConfig, split: str) -> Layout:
    """Where the files of a split lie. Raises ConfigError for the embedded data set, which has none."""
    found = _whole_layout(config, split)
    return replace(found, photos=None) if config.labels_only else found


def _whole_layout(config: DataConfig, split: str) -> Layout:
    root = config.root
    if config.preset in ("coco", "facades") and root:
        instances = by_stem(root / f"{split}_inst") if config.preset == "coco" else None
        return Layout(by_stem(root / f"{split}_label", is_labels=True), by_stem(root / f"{split}_img"), instances)
    if config.preset == "ade20k" and root:
        return _ade20k(root, split)
    if config.preset == "cityscapes" and root:
        return _cityscapes(root, split)
    if root:
        instances_dir = root / split / "instances"
        return _own_folders(
            root / split / "labels", root / split / "images", instances_dir if instances_dir.is_dir() else None
        )
    if config.labels_dir:
        if split == "val" and config.val_labels_dir:
            return flat_layout(config.val_labels_dir, config.val_images_dir, config.val_instances_dir)
        return flat_layout(config.labels_dir, config.images_dir, config.instances_dir)
    raise ConfigError("`preset` earth: the embedded data set has no files", hint="`spade data earth OUT` writes them")


def flat_layout(
    labels: Path, images_dir: Path | None, instances_dir: Path | None, *, is_cityscapes: bool = False
) -> Layout:
    """The layout of plain folders, whose files are paired by stem, or by Cityscapes' official names if they have these.

    is_cityscapes: such names are also looked for in subfolders. Raises DatasetError if one folder is given for two
    kinds of files that could not be told apart.
    """
    if has_cityscapes_names(labels, recursive=is_cityscapes):
        return Layout(
            cityscapes_kind(labels, CITYSCAPES_LABELS, is_labels=True),
            cityscapes_kind(images_dir, CITYSCAPES_PHOTOS) if images_dir else None,
            cityscapes_kind(instances_dir, CITYSCAPES_INSTANCES) if instances_dir else None,
        )
    for name, what, folder in (
        ("images_dir", "photos", images_dir),
        ("instances_dir", "instance maps", instances_dir),
    ):
        if folder is not None and is_same_file(folder, labels):
            raise DatasetError(
                f"`{name}`: {folder} is the folder of the label maps, too, so each would be paired with itself",
                hint=f"put the {what} into a folder of their own, paired by the same file stem",
            )
    if images_dir is not None and instances_dir is not None and is_same_file(images_dir, instances_dir):
        raise DatasetError(
            f"`instances_dir`: {instances_dir} is the folder of the photos, too", hint="name two folders"
        )
    return _own_folders(labels, images_dir, instances_dir)


def _own_folders(labels: Path, images: Path | None, instances: Path | None) -> Layout:
    """Folders of label maps and of what belongs to them: of files, or of folders of equal names with the files."""
    kind = by_place if images is not None and not has_images(labels) and images_inside(labels) else by_stem
    return Layout(
        kind(labels, is_labels=True), kind(images) if images else None, kind(instances) if instances else None
    )


def _ade20k(root: Path, split: str) -> Layout:
    """Photos and label maps may lie anywhere below the root: together, or as in ADEChallengeData2016."""
    token = f"_{split}_"

    def key(suffix: str) -> Callable[[Path], str | None]:
        def of(path: Path) -> str | None:
            # The full ADE20K has colour-coded NAME_seg.png and NAME_parts_1.png beside the photo: no label maps.
            is_other = path.stem.endswith("_seg") or "_parts_" in path.stem
            return path.stem if path.suffix.lower() == suffix and token in path.name and not is_other else None

        return of

    return Layout(
        Kind(root, key(".png"), f"**/*{token}*.png", recursive=True),
        Kind(root, key(".jpg"), f"**/*{token}*.jpg", recursive=True),
        None,
    )


def _cityscapes(root: Path, split: str) -> Layout:
    return Layout(
        cityscapes_kind(root / "gtFine" / split, CITYSCAPES_LABELS, is_labels=True),
        cityscapes_kind(root / "leftImg8bit" / split, CITYSCAPES_PHOTOS),
        cityscapes_kind(root / "gtFine" / split, CITYSCAPES_INSTANCES),
    )
