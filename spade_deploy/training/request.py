"""From what was typed to a checked setup: a preset, and what was asked to be different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spade_deploy.dataset_files import DataConfig, Size
from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.spec import LabelSpec
from spade_deploy.training.checkpoint import load_setup
from spade_deploy.training.config import Setup, custom_setup, preset, without_ttur
from spade_deploy.training.loop import MAY_CHANGE


@dataclass(frozen=True)
class DataRequest:
    """Which data: a preset by name, its folder, or folders of one's own. None is the preset's value."""

    preset: str | None = None
    root: Path | None = None
    labels: Path | None = None
    images: Path | None = None
    instances: Path | None = None
    num_labels: int | None = None
    has_dontcare: bool | None = None
    size: Size | None = None

    @property
    def preset_name(self) -> str:
        """The preset that is meant: custom where folders are given, else earth, which needs nothing."""
        if self.preset is not None:
            return self.preset
        return "custom" if self.labels is not None or self.images is not None or self.root is not None else "earth"


@dataclass(frozen=True)
class TrainRequest:
    """What was typed. generator, train: fields of GeneratorSpec and TrainConfig that were given; None is not given."""

    data: DataRequest = field(default_factory=DataRequest)
    generator: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    ttur: bool = True

    def setup(self) -> Setup:
        """The setup of a new run. Raises ConfigError that names the flag."""
        base = self._base()
        train = base.train if self.ttur else without_ttur(base.train)
        changes = _given(self.train)
        if "steps" in changes and "epochs" in changes:
            raise ConfigError("--steps contradicts --epochs; give one of them")
        if "steps" in changes:
            changes["epochs"] = None
        elif "epochs" in changes:
            changes["steps"] = None
        return Setup(replace(train, **changes), replace(base.generator, **_given(self.generator)), base.data)

    def resumed(self, checkpoint: Path) -> Setup:
        """The setup that `checkpoint` was trained with, changed where a resumed run may be.

        Raises CheckpointError for a flag that would change what a step computes.
        """
        saved = load_setup(checkpoint)
        given = _given({**vars(self.data), **self.generator, **self.train})
        refused = sorted(set(given) - MAY_CHANGE)
        if refused or not self.ttur:
            flag = "--no-ttur" if not refused else "--" + refused[0].replace("_", "-").removeprefix("has-")
            raise CheckpointError(
                f"{flag} cannot change when a run is resumed: {checkpoint} was trained without it",
                hint="leave it out, or start a new run",
            )
        train = _given(self.train)
        if "steps" in train:
            train["epochs"] = None
        elif "epochs" in train:
            train["steps"] = None
        folders = {"root": "root", "labels": "labels_dir", "images": "images_dir", "instances": "instances_dir"}
        moved = {name: getattr(self.data, flag) for flag, name in folders.items() if getattr(self.data, flag)}
        return Setup(replace(saved.train, **train), saved.generator, replace(saved.data, **moved))

    def _base(self) -> Setup:
        data = self.data
        if data.preset_name != "custom":
            given = {"--num-labels": data.num_labels, "--dontcare": data.has_dontcare}
            flag = next((flag for flag, value in given.items() if value is not None), None)
            if flag:
                raise ConfigError(f"{flag} contradicts --preset {data.preset_name}, which says what the labels are")
            base = preset(data.preset_name, data.root, data.size)
            folders = {"labels_dir": data.labels, "images_dir": data.images, "instances_dir": data.instances}
            return replace(base, data=replace(base.data, **_given(folders)))
        if data.num_labels is None:
            raise ConfigError(
                "--num-labels is needed for a data set of your own: how many classes its label maps have",
                hint="`spade check-labels DIR --num-labels N` tells whether a number fits",
            )
        has_edges = data.instances is not None or (data.root is not None and _has_instances(data.root))
        labels = LabelSpec(data.num_labels, has_dontcare=bool(data.has_dontcare), has_edges=has_edges)
        config = DataConfig.for_preset(
            "custom",
            crop_size=data.size,
            root=data.root,
            labels_dir=data.labels,
            images_dir=data.images,
            instances_dir=data.instances,
        )
        return custom_setup(labels, config)


def _has_instances(root: Path) -> bool:
    return (root / "train" / "instances").is_dir()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
