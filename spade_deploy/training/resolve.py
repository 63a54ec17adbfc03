"""Turn a request into a checked setup, of a new run or of one that is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.labels.class_file import class_labels
from spade_deploy.runs.folders import resolve_checkpoint
from spade_deploy.runs.layout import SHIPPED
from spade_deploy.settings import as_typed, setting_of
from spade_deploy.spec import DiscriminatorSpec, FirstInput, GeneratorSpec
from spade_deploy.training.config import STYLE_LENGTH, PerceptualNetwork, Setup, TrainConfig
from spade_deploy.training.own_data import ABOUT_LABELS, FOLDERS, ONLY_OWN, own_setup
from spade_deploy.training.perceptual import fetch_vgg
from spade_deploy.training.presets import PAPER_PRESETS, preset, without_ttur
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.resume import MAY_CHANGE
from spade_deploy.training.saved_setup import load_setup


def new_setup(asked: TrainRequest, runs_dir: Path = Path("runs"), *, downloads: bool = True) -> Setup:
    """The setup of a new run. Raises ConfigError, which names the field.

    runs_dir: where `init` looks for a run. downloads: whether weights of the perceptual loss may be downloaded;
    CheckpointError is raised if that fails.
    """
    base = _base(asked)
    train = base.train if asked.ttur else without_ttur(base.train)
    changes = _train_changes(asked)
    if "steps" in changes and "epochs" in changes:
        raise ConfigError("`steps` contradicts `epochs`; give one of them")
    network_name = _perceptual_network(asked, train)
    if network_name is not None and downloads:
        changes["perceptual_file"] = fetch_vgg(network_name)
    changes["discriminator"] = replace(train.discriminator, **_given(asked.discriminator))
    network = _given(asked.generator)
    generator = base.generator.with_architecture(network.pop("architecture", base.generator.architecture))
    if changes.get("init") and changes["init"] not in SHIPPED:
        changes["init"] = str(resolve_checkpoint(Path(changes["init"]), runs_dir).resolve())
    if _has_style(asked):
        network["z_dim"] = STYLE_LENGTH
        changes["encoder"] = asked.vae
    return Setup(replace(train, **_length_of_one_kind(changes)), replace(generator, **network), base.data)


def resumed_setup(asked: TrainRequest, checkpoint: Path) -> Setup:
    """The setup that `checkpoint` was trained with, with the changes that a resumed run may have.

    A setting that is given with the run's own value is accepted, since a restarted job repeats the same command.
    Raises CheckpointError for a setting that would change what a step computes.
    """
    saved = load_setup(checkpoint)
    for name, wanted, found in _fixed(asked, saved):
        if wanted != found:
            raise CheckpointError(
                f"`{name}` {as_typed(wanted)} cannot change when a run is resumed: {checkpoint} was trained with"
                f" {as_typed(found)}",
                hint="leave it out, or start a new run",
            )
    train = _length_of_one_kind(_train_changes(asked))
    if asked.perceptual is not None and saved.train.perceptual_file is None:
        train["perceptual_file"] = fetch_vgg(asked.perceptual)
    moved = {name: getattr(asked.data, field) for field, name in FOLDERS.items() if getattr(asked.data, field)}
    return Setup(replace(saved.train, **train), saved.generator, replace(saved.data, **moved))


def complete(asked: TrainRequest, setup: Setup) -> TrainRequest:
    """The request that gives every setting of `setup`, which was made of `asked`; nothing is left to a preset."""
    data, labels, is_custom = setup.data, setup.generator.labels, setup.data.preset == "custom"
    has_style = setup.generator.z_dim is not None
    return TrainRequest(
        data=DataRequest(
            preset=data.preset,
            **{field: getattr(data, name) for field, name in FOLDERS.items()},
            num_labels=labels.num_labels if is_custom else None,
            has_dontcare=labels.has_dontcare if is_custom else None,
            ignore_id=labels.ignore_id,
            classes=asked.data.classes,
            **_holdout_of(setup, is_custom),
            size=data.crop_size,
            load_size=data.load_size,
            flip=data.flip,
        ),
        generator=_values(setup.generator, GeneratorSpec),
        train=_values(setup.train, TrainConfig),
        discriminator=_values(setup.train.discriminator, DiscriminatorSpec),
        ttur=asked.ttur,
        vae=setup.has_encoder,
        first_input=FirstInput.NOISE if has_style and not setup.has_encoder else None,
        perceptual=None if setup.train.perceptual_file is not None else _perceptual_network(asked, setup.train),
    )


def _holdout_of(setup: Setup, is_custom: bool) -> dict[str, Any]:
    """What a request has to give so that as much is held out as in a setup."""
    found = setup.data.holdout
    if found is not None:
        return {"holdout": found.share, "holdout_seed": found.seed}
    is_folder = is_custom and setup.data.val_labels_dir is None and setup.data.labels_dir is not None
    return {"holdout": 0.0} if is_folder else {}


def _perceptual_network(asked: TrainRequest, train: TrainConfig) -> PerceptualNetwork | None:
    """The network whose weights are downloaded: the one that is asked for, or the paper's for the paper's presets."""
    if asked.perceptual is not None:
        return asked.perceptual
    weight = asked.train.get("weight_perceptual")
    wants_one = (train.weight_perceptual if weight is None else weight) > 0
    has_file = asked.train.get("perceptual_file") is not None
    is_of_the_paper = asked.data.preset_name in PAPER_PRESETS
    return PerceptualNetwork.VGG19 if is_of_the_paper and wants_one and not has_file else None


def _fixed(asked: TrainRequest, saved: Setup) -> Iterator[tuple[str, Any, Any]]:
    """For each given setting that a resumed run may not change: its field, the given value, the value of the run."""
    data, labels = asked.data, saved.generator.labels
    places: list[tuple[dict[str, Any], Any, str]] = [
        (_train_changes(asked), saved.train, ""),
        (_given(asked.generator), saved.generator, ""),
        (_given(asked.discriminator), saved.train.discriminator, "discriminator."),
        (_given({"preset": data.preset, "load_size": data.load_size, "flip": data.flip}), saved.data, ""),
        (_given({name: getattr(data, name) for name in ABOUT_LABELS if name != "classes"}), labels, ""),
    ]
    if data.classes is not None:
        now = class_labels(
            data.classes, labels.num_labels, has_dontcare=labels.has_dontcare, ignore_id=labels.ignore_id
        )
        yield "classes", ", ".join(now.names) or str(now.palette), ", ".join(labels.names) or str(labels.palette)
    held_out = saved.data.holdout
    if data.holdout is not None:
        yield "holdout", data.holdout, 0.0 if held_out is None else held_out.share
    if data.holdout_seed is not None:
        yield "holdout_seed", data.holdout_seed, None if held_out is None else held_out.seed
    for name in ("val_labels", "val_images", "val_instances"):  # a folder may have moved, but not come or gone
        if getattr(data, name) is not None and getattr(saved.data, FOLDERS[name]) is None:
            yield name, getattr(data, name), None
    for given, owner, prefix in places:
        for name in sorted(set(given) - MAY_CHANGE):
            yield prefix + name, given[name], getattr(owner, name)
    if data.size is not None:
        yield "size", data.size, saved.data.crop_size
    if not asked.ttur and "betas" not in places[0][0]:
        yield "no_ttur", without_ttur(saved.train).betas, saved.train.betas
    style = "segmap" if saved.generator.z_dim is None else "vae" if saved.has_encoder else "noise"
    if _has_style(asked) or asked.first_input is not None:
        yield ("vae", "vae", style) if asked.vae else ("first_input", asked.first_input, style)


def _has_style(asked: TrainRequest) -> bool:
    """Whether the generator gets a style vector. Raises ConfigError for two ways of making it."""
    if asked.vae and asked.first_input is not None:
        raise ConfigError(
            f"`vae` contradicts `first_input` {asked.first_input}: with an encoder the first input is its style",
            hint="leave one of the two out",
        )
    return asked.vae or asked.first_input == FirstInput.NOISE


def _train_changes(asked: TrainRequest) -> dict[str, Any]:
    """The given fields of TrainConfig."""
    changes = _given(asked.train)
    if asked.perceptual is not None:
        if "perceptual_file" in changes:
            raise ConfigError(
                f"`perceptual` {asked.perceptual} contradicts `perceptual_file` {changes['perceptual_file']}",
                hint="give one of them",
            )
        if changes.get("weight_perceptual") == 0:
            raise ConfigError(f"`perceptual` {asked.perceptual} contradicts `weight_perceptual` 0")
    return changes


def _base(asked: TrainRequest) -> Setup:
    data = asked.data
    if data.preset_name == "custom":
        return own_setup(asked)
    if asked.paper:
        raise ConfigError(
            f"`paper` is for data of your own: `preset` {data.preset_name} has settings of its own",
            hint="leave `paper` out",
        )
    for name in ONLY_OWN:
        if getattr(data, name) is not None:
            says = "what the labels are" if name in ABOUT_LABELS else "which samples are measured"
            raise ConfigError(f"`{name}` contradicts `preset` {data.preset_name}, which says {says}")
    base = preset(data.preset_name, data.root, data.size)
    changed: dict[str, Any] = {name: getattr(data, field) for field, name in FOLDERS.items() if field != "root"}
    changed |= {"load_size": data.load_size, "flip": data.flip}
    return replace(base, data=replace(base.data, **_given(changed)))


def _values(owner: Any, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that are settings, with their values."""
    found = {field.name: getattr(owner, field.name) for field in fields(kind) if setting_of(field) is not None}
    return {name: value for name, value in found.items() if value not in (None, "")}


def _length_of_one_kind(changes: dict[str, Any]) -> dict[str, Any]:
    """Steps replace a preset's epochs, and the other way round."""
    other = {"steps": "epochs", "epochs": "steps"}
    return {**{other[name]: None for name in ("steps", "epochs") if name in changes}, **changes}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
