"""The settings for a data set of one's own: what its labels are, and which samples are kept to measure on."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.class_file import class_labels, own_labels
from spade_deploy.labels.holdout import DEFAULT_SHARE, FEWEST, HoldOut, hold_out
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import pair_files
from spade_deploy.labels.photo_shape import shape_of
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.presets import custom_setup
from spade_deploy.training.request import DataRequest, TrainRequest

FOLDERS = {
    "root": "root",
    "labels": "labels_dir",
    "images": "images_dir",
    "instances": "instances_dir",
    "val_labels": "val_labels_dir",
    "val_images": "val_images_dir",
    "val_instances": "val_instances_dir",
}
"""The fields of a DataRequest that are folders, with their names in DataConfig."""

ABOUT_LABELS = ("num_labels", "has_dontcare", "classes", "ignore_id")
ONLY_OWN = (*ABOUT_LABELS, "holdout", "holdout_seed")
"""The fields of a DataRequest that contradict a preset of a known data set."""


def own_setup(request: TrainRequest) -> Setup:
    """The settings for folders of one's own; the folders are listed, and some photos' headers read. Raises ConfigError.

    The size follows from the photos' shape (`labels/photo_shape.py`), unless one is asked for.
    """
    asked = request.data
    labels = _labels(asked)
    folders = {name: getattr(asked, field) for field, name in FOLDERS.items()}
    given: dict[str, Any] = {name: getattr(asked, name) for name in ("load_size", "flip")}
    given = {name: value for name, value in given.items() if value is not None}
    data = DataConfig.for_preset("custom", crop_size=asked.size, **folders, **given)
    size = None if request.paper or asked.size or asked.load_size else _size(request, data, labels)
    if size is not None:
        data = DataConfig.for_preset("custom", crop_size=size, **folders, **given)
    return custom_setup(labels, replace(data, holdout=held_out(data, asked.holdout, asked.holdout_seed)))


def about_size(request: TrainRequest, setup: Setup) -> tuple[str, ...]:
    """A sentence on the size, if the photos decided it."""
    if setup.data.preset != "custom" or request.paper or request.data.size or request.data.load_size:
        return ()
    shape = shape_of(_photos(setup.data))
    if shape is None:
        return ()
    height, width = setup.data.crop_size
    rule = setup.generator.side_rule
    return (f"{shape.described}, so images of {height} x {width} are made, each side a {rule}; `size` sets another",)


def _size(request: TrainRequest, data: DataConfig, labels: LabelSpec) -> Size | None:
    """The size that the photos' shape suggests; None if there are none, or they say nothing new."""
    shape = shape_of(_photos(data))
    if shape is None:
        return None
    asked = request.generator
    spec = GeneratorSpec(labels).with_architecture(asked.get("architecture") or Architecture.SPADE)
    if asked.get("upsampling") is not None and spec.has("upsampling"):
        spec = replace(spec, upsampling=asked["upsampling"])
    return shape.size_for(spec.stride, spec.least_side)


def _photos(data: DataConfig) -> list[Path]:
    return [sample.photo for sample in pair_files(data, "train").samples if sample.photo is not None]


def held_out(data: DataConfig, share: float | None, seed: int | None) -> HoldOut | None:
    """Which samples are held out of a data set that has none to measure on; None if it has, or if none is held out.

    share: what was asked for; without it a tenth, but nothing of fewer than FEWEST samples. Raises ConfigError.
    """
    has_own = data.val_labels_dir is not None or (data.root is not None and bool(pair_files(data, "val").samples))
    if has_own:
        for name, value in (("holdout", share), ("holdout_seed", seed)):
            if value:
                where = data.val_labels_dir or f"{data.root}/val"
                raise ConfigError(f"`{name}` {value}: {where} holds the samples to measure on", hint="leave it out")
        return None
    stems = [sample.stem for sample in pair_files(data, "train").samples]
    if share == 0 or not stems or (share is None and len(stems) < FEWEST):
        return None
    return hold_out(stems, DEFAULT_SHARE if share is None else share, seed or 0)


def _labels(asked: DataRequest) -> LabelSpec:
    has_edges = asked.instances is not None or (asked.root is not None and _has_instances(asked.root))
    unknown: dict[str, Any] = {"has_dontcare": bool(asked.has_dontcare), "ignore_id": asked.ignore_id}
    if asked.ignore_id is not None and asked.has_dontcare is False:
        raise ConfigError(f"`ignore_id` {asked.ignore_id} contradicts `no_dontcare`", hint="leave one of them out")
    if asked.classes is not None:
        return class_labels(asked.classes, asked.num_labels, has_edges=has_edges, **unknown)
    if asked.num_labels is None:
        folder = asked.labels or asked.root
        raise ConfigError(
            "`num_labels` is needed for a data set of your own: how many classes there are; or `classes` FILE",
            hint=f"`spade check-labels {shlex.quote(str(folder)) if folder else 'DIR'}` lists the ids that are in them",
        )
    return own_labels(asked.num_labels, has_edges=has_edges, **unknown)


def _has_instances(root: Path) -> bool:
    return (root / "train" / "instances").is_dir()
