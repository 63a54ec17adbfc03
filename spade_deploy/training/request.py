"""From what was typed to a checked setup: a preset, and what was asked to be different."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.runs.folders import resolve_checkpoint
from spade_deploy.runs.shipped import SHIPPED
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import (
    PAPER_PRESETS,
    STYLE_LENGTH,
    Amp,
    GanMode,
    Modulation,
    Setup,
    chosen,
    custom_setup,
    preset,
    without_ttur,
)
from spade_deploy.training.perceptual import fetch_vgg
from spade_deploy.training.resume import MAY_CHANGE
from spade_deploy.training.saved_setup import load_setup


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
    load_size: Size | None = None
    flip: bool | None = None

    @property
    def preset_name(self) -> str:
        """The preset that is meant: custom where folders are given, else earth, which needs nothing."""
        if self.preset is not None:
            return self.preset
        return "custom" if self.labels is not None or self.images is not None or self.root is not None else "earth"


@dataclass(frozen=True)
class TrainRequest:
    """What was typed.

    generator, train, discriminator: fields of GeneratorSpec, TrainConfig and DiscriminatorSpec that were given; None is
    not given. vae, first_input: how the generator gets a style vector. perceptual: 'vgg19' or 'vgg16' to download.
    """

    data: DataRequest = field(default_factory=DataRequest)
    generator: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    ttur: bool = True
    vae: bool = False
    first_input: str | None = None
    perceptual: str | None = None

    def setup(self, runs_dir: Path = Path("runs"), *, downloads: bool = True) -> Setup:
        """The setup of a new run; runs_dir: where --init looks for a run. Raises ConfigError that names the flag.

        downloads: whether weights of the perceptual loss may be fetched; CheckpointError where they cannot be.
        """
        base = self._base()
        train = base.train if self.ttur else without_ttur(base.train)
        changes = self._train_changes()
        if "steps" in changes and "epochs" in changes:
            raise ConfigError("--steps contradicts --epochs; give one of them")
        wants_vgg = changes.get("weight_perceptual", train.weight_perceptual) > 0 and "perceptual_file" not in changes
        network_name = self.perceptual or ("vgg19" if self.data.preset_name in PAPER_PRESETS and wants_vgg else None)
        if network_name is not None and downloads:
            changes["perceptual_file"] = fetch_vgg(network_name)
        changes["discriminator"] = replace(train.discriminator, **_given(self.discriminator))
        network = _given(self.generator)
        generator = base.generator.with_architecture(network.pop("architecture", base.generator.architecture))
        if changes.get("init") and changes["init"] not in SHIPPED:
            changes["init"] = str(resolve_checkpoint(Path(changes["init"]), runs_dir).resolve())
        if self._has_style:
            network["z_dim"] = STYLE_LENGTH
            changes["encoder"] = self.vae
        return Setup(replace(train, **_length_of_one_kind(changes)), replace(generator, **network), base.data)

    def resumed(self, checkpoint: Path) -> Setup:
        """The setup that `checkpoint` was trained with, changed where a resumed run may be.

        A flag that repeats what the run has is taken: a restarted job has the same command again.
        Raises CheckpointError for a flag that would change what a step computes.
        """
        saved = load_setup(checkpoint)
        for flag, wanted, found in self._fixed(saved):
            if wanted != found:
                raise CheckpointError(
                    f"{flag} {_told(wanted)} cannot change when a run is resumed: {checkpoint} was trained with"
                    f" {_told(found)}",
                    hint="leave it out, or start a new run",
                )
        train = _length_of_one_kind(self._train_changes())
        if self.perceptual is not None and saved.train.perceptual_file is None:
            train["perceptual_file"] = fetch_vgg(self.perceptual)
        folders = {"root": "root", "labels": "labels_dir", "images": "images_dir", "instances": "instances_dir"}
        moved = {name: getattr(self.data, flag) for flag, name in folders.items() if getattr(self.data, flag)}
        return Setup(replace(saved.train, **train), saved.generator, replace(saved.data, **moved))

    def _fixed(self, saved: Setup) -> Iterator[tuple[str, Any, Any]]:
        """(flag, the value that was given, the value of the run) of what a resumed run may not change."""
        places = [
            (self._train_changes(), saved.train, ""),
            (_given(self.generator), saved.generator, ""),
            (_given(self.discriminator), saved.train.discriminator, "discriminator_"),
            (_given({"preset": self.data.preset, "load_size": self.data.load_size}), saved.data, ""),
            (_given({"flip": self.data.flip}), saved.data, ""),
            (_given({"num_labels": self.data.num_labels}), saved.generator.labels, ""),
            (_given({"has_dontcare": self.data.has_dontcare}), saved.generator.labels, ""),
        ]
        for given, owner, prefix in places:
            for name in sorted(set(given) - MAY_CHANGE):
                yield _flag_of(prefix + name), given[name], getattr(owner, name)
        if self.data.size is not None:
            yield "--size", self.data.size, saved.data.crop_size
        if not self.ttur:
            yield "--no-ttur", without_ttur(saved.train).betas, saved.train.betas
        style = "segmap" if saved.generator.z_dim is None else "vae" if saved.has_encoder else "noise"
        if self._has_style or self.first_input is not None:
            yield ("--vae", "vae", style) if self.vae else ("--first-input", self.first_input, style)

    @property
    def _has_style(self) -> bool:
        """Whether the generator gets a style vector. Raises ConfigError for two ways of making it."""
        if self.vae and self.first_input is not None:
            raise ConfigError(
                f"--vae contradicts --first-input {self.first_input}: with an encoder the first input is its style",
                hint="leave one of the two out",
            )
        return self.vae or self.first_input == "noise"

    def _train_changes(self) -> dict[str, Any]:
        """The given fields of TrainConfig, as it holds them."""
        changes = _given(self.train)
        for name, kind in (("gan_mode", GanMode), ("amp", Amp), ("modulation", Modulation)):
            if name in changes:
                changes[name] = chosen(kind, changes[name], _flag_of(name))
        if self.perceptual is not None:
            if "perceptual_file" in changes:
                raise ConfigError(
                    f"--perceptual {self.perceptual} contradicts --perceptual-file {changes['perceptual_file']}",
                    hint="give one of them",
                )
            if self.train.get("weight_perceptual") == 0:
                raise ConfigError(f"--perceptual {self.perceptual} contradicts --weight-perceptual 0")
        return changes

    def _base(self) -> Setup:
        data = self.data
        if data.preset_name != "custom":
            given = {"--num-labels": data.num_labels, "--dontcare": data.has_dontcare}
            flag = next((flag for flag, value in given.items() if value is not None), None)
            if flag:
                raise ConfigError(f"{flag} contradicts --preset {data.preset_name}, which says what the labels are")
            base = preset(data.preset_name, data.root, data.size)
            changed: dict[str, Any] = {
                "labels_dir": data.labels,
                "images_dir": data.images,
                "instances_dir": data.instances,
            }
            changed |= {"load_size": data.load_size, "flip": data.flip}
            return replace(base, data=replace(base.data, **_given(changed)))
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
            **_given({"load_size": data.load_size, "flip": data.flip}),
        )
        return custom_setup(labels, config)


def parse_betas(text: str) -> tuple[float, float]:
    """'0,0.9' -> (0.0, 0.9). Raises ConfigError."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--betas: {text!r} is not two numbers with a comma, such as 0,0.9") from error
    return first, second


def _length_of_one_kind(changes: dict[str, Any]) -> dict[str, Any]:
    """Steps replace a preset's epochs, and the other way round."""
    other = {"steps": "epochs", "epochs": "steps"}
    return {**{other[name]: None for name in ("steps", "epochs") if name in changes}, **changes}


def _flag_of(name: str) -> str:
    names = {"architecture": "generator", "has_dontcare": "dontcare", "ema_decay": "ema", "root": "data"}
    return "--" + names.get(name, name).replace("_", "-")


def _told(value: Any) -> str:
    """A value as it is typed: 256x512, 0,0.9, on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ("x" if all(isinstance(part, int) for part in value) else ",").join(map(str, value))
    return str(value)


def _has_instances(root: Path) -> bool:
    return (root / "train" / "instances").is_dir()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
