"""Turn the request for a student into a checked setup, of a new run or of one that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import CheckpointError, ConfigError, quoted
from spade_deploy.labels.class_file import class_labels, own_labels
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import pair_files
from spade_deploy.labels.samples import is_embedded
from spade_deploy.labels.sets import LABEL_SETS, label_set
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.distillation.config import Distillation
from spade_deploy.training.distillation.pruning import can_be_pruned
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.teacher import FoundTeacher, find_teacher
from spade_deploy.training.own_data import FOLDERS, held_out
from spade_deploy.training.perceptual import fetch_vgg
from spade_deploy.training.presets import PRESETS, preset
from spade_deploy.training.request import DataRequest
from spade_deploy.training.resolve import complete, resumed_setup

WEIGHT_L1 = 10.0
"""The weight of L1 to the teacher's image, whatever weight L1 to the photo had in the teacher's training."""


def student_setup(
    asked: DistillRequest, runs_dir: Path = Path("runs"), *, downloads: bool = True
) -> tuple[Setup, tuple[str, ...]]:
    """The setup of a new student, and sentences on what the data decided. Raises ConfigError, which names the field.

    downloads: whether weights of the perceptual loss may be downloaded. Raises CheckpointError, NotFoundError for the
    teacher, and DatasetError.
    """
    teacher = find_teacher(asked.teacher, runs_dir)
    if teacher.facts.generator.architecture is Architecture.SIMS:
        raise ConfigError(
            f"`teacher`: {teacher.facts.place} is of sims, whose images are made of a memory bank; students have none",
            hint="take a teacher of another architecture",
        )
    data, notes = student_data(asked, teacher)
    spec = _spec(asked, teacher.facts.generator, data)
    if spec.has_bank:
        raise ConfigError(
            f"`teacher`: {teacher.facts.place} is a {spec.architecture} generator; students have no memory bank",
            hint="train a narrow one with `spade train`, or distill another architecture",
        )
    student = {name: value for name, value in asked.student.items() if value is not None}
    if student.get("cache"):
        student.setdefault("weight_features", 0.0)
    if not can_be_pruned(spec):
        for name in ("weight_features", "pruned"):
            if student.get(name):
                raise ConfigError(
                    f"`{name}`: a student of {spec.architecture} learns from its teacher's images alone, as its layers"
                    " are not SPADE's residual blocks",
                    hint="leave it out",
                )
        student |= {"weight_features": 0.0, "pruned": False}
    train = _train(asked, teacher, data, downloads)
    return Setup(replace(train, distill=Distillation(teacher.facts, **student)), spec, data), notes


def resumed_student(asked: DistillRequest, checkpoint: Path, runs_dir: Path) -> Setup:
    """The setup of a student's run that goes on. What may not change is refused, the teacher's weights first."""
    saved = resumed_setup(asked.as_training, checkpoint)
    before = saved.train.distill
    if before is None:
        raise CheckpointError(
            f"{checkpoint}: its run has no teacher", hint="continue it with `spade train --resume`, or start a new run"
        )
    teacher = find_teacher(asked.teacher, runs_dir).facts
    if teacher.sha256 != before.teacher.sha256:
        raise CheckpointError(
            f"`teacher`: {teacher.place} has the SHA-256 {teacher.sha256[:12]}, and the run's teacher"
            f" {before.teacher.place} {before.teacher.sha256[:12]}",
            hint="name the checkpoint that the run began with, or start a new run",
        )
    for name, value in asked.student.items():
        if value is not None and value != (was := getattr(before, name)):
            raise CheckpointError(
                f"`{name}` {value} cannot change when a run is resumed: {checkpoint} was trained with {was}",
                hint="leave it out, or start a new run",
            )
    moved = replace(before, teacher=replace(before.teacher, place=teacher.place))
    return replace(saved, train=replace(saved.train, distill=moved))


def complete_student(asked: DistillRequest, setup: Setup) -> DistillRequest:
    """The request that gives every setting of `setup`, which was made of `asked`."""
    whole, distill = complete(asked.as_training, setup), setup.train.distill
    assert distill is not None  # student_setup
    widths: dict[str, Any] = {name: whole.generator.get(name) for name in ("base_channels", "hidden_channels")}
    return replace(
        asked,
        **widths,
        mac_budget=None,
        student={name: getattr(distill, name) for name in ("weight_features", "pruned", "cache")},
        labels_only=setup.data.labels_only,
        data=whole.data,
        train=whole.train,
        discriminator=whole.discriminator,
        perceptual=whole.perceptual,
    )


def student_data(asked: DistillRequest, teacher: FoundTeacher) -> tuple[DataConfig, tuple[str, ...]]:
    """The data that a student learns from: what is asked for, else the teacher's own. Raises ConfigError."""
    given, spec = asked.data, teacher.facts.generator
    size = given.size or (spec.height, spec.width)
    is_new = any((given.preset, given.root, given.labels, given.images))
    data = _new_data(given, size) if is_new or teacher.info is None else _own_data(given, teacher, size)
    changed = {name: getattr(given, name) for name in ("load_size", "flip")}
    data = replace(data, **{name: value for name, value in changed.items() if value is not None})
    _check_labels(given, teacher, data)
    if asked.labels_only:
        return replace(data, labels_only=True), ()
    return _without_missing_photos(data)


def _new_data(given: DataRequest, size: tuple[int, int]) -> DataConfig:
    folders = {name: getattr(given, field) for field, name in FOLDERS.items() if getattr(given, field) is not None}
    name = given.preset_name
    only = {"labels_only": True} if given.labels is not None and given.images is None else {}
    if name != "custom":
        return DataConfig.for_preset(name, crop_size=size, **folders)
    data = DataConfig.for_preset("custom", crop_size=size, **folders, **only)
    return replace(data, holdout=held_out(data, given.holdout, given.holdout_seed))


def _own_data(given: DataRequest, teacher: FoundTeacher, size: tuple[int, int]) -> DataConfig:
    """The data that the teacher was trained on."""
    info = teacher.info
    assert info is not None  # the caller
    if info.data is None:
        raise ConfigError(
            f"`labels`: {teacher.facts.place} does not say what it was trained on: it was imported",
            hint="`labels` DIR names label maps, and `images` DIR their photos, if there are any; or `preset` NAME"
            " `data` DIR",
        )
    try:
        data = DataConfig.from_json(info.data)
    except ConfigError as error:
        raise CheckpointError(
            f"{teacher.facts.place}: its data: {error.message}", hint="name it: `labels` DIR"
        ) from error
    for name in ("holdout", "holdout_seed"):
        if getattr(given, name) is not None:
            raise ConfigError(f"`{name}`: the teacher's data set says what is held out", hint="leave it out")
    moved = {name: getattr(given, field) for field, name in FOLDERS.items() if getattr(given, field) is not None}
    if size != data.crop_size:
        load = DataConfig.for_preset(data.preset, crop_size=size, root=data.root, labels_dir=data.labels_dir).load_size
        data = replace(data, crop_size=size, load_size=load)
    return replace(data, **moved)


def _without_missing_photos(data: DataConfig) -> tuple[DataConfig, tuple[str, ...]]:
    """The data set without photos where its photos are gone and its label maps are not, and a sentence on it."""
    if is_embedded(data) or data.labels_only or pair_files(data, "train").samples:
        return data, ()
    bare = replace(data, labels_only=True)
    if not (found := len(pair_files(bare, "train").samples)):
        return data, ()  # opening it says what is missing
    told = f"the photos of {data.described} are not there: {found} label maps are, and the student learns from its"
    return bare, (f"{told} teacher's images of them, without an adversarial loss",)


def _check_labels(given: DataRequest, teacher: FoundTeacher, data: DataConfig) -> None:
    """Refuse labels other than the teacher's: the student could not learn what they mean."""
    own = teacher.facts.generator.labels
    if data.preset in LABEL_SETS and data.preset != "custom":
        _compare(teacher, label_set(data.preset), own, f"`preset` {data.preset}", by_names=False)
    unknown: dict[str, Any] = {"ignore_id": given.ignore_id}
    has_dontcare = own.has_dontcare if given.has_dontcare is None else given.has_dontcare
    if given.classes is not None:
        told = class_labels(
            given.classes, given.num_labels, has_dontcare=has_dontcare, has_edges=own.has_edges, **unknown
        )
        _compare(teacher, told, own, f"`classes` {given.classes}", by_names=True)
    elif given.num_labels is not None or given.has_dontcare is not None:
        count = own.num_labels if given.num_labels is None else given.num_labels
        told = own_labels(count, has_dontcare=has_dontcare, has_edges=own.has_edges, **unknown)
        asked = f"`num_labels` {given.num_labels}" if given.num_labels is not None else f"`dontcare` {has_dontcare}"
        _compare(teacher, told, own, asked, by_names=False)


def _compare(teacher: FoundTeacher, told: LabelSpec, own: LabelSpec, asked: str, *, by_names: bool) -> None:
    def counts(labels: LabelSpec) -> str:
        more = [what for what, is_so in (("unknown", labels.has_dontcare), ("edges", labels.has_edges)) if is_so]
        return " with ".join([f"{labels.num_labels} labels", *([" and ".join(more)] if more else [])])

    if (told.num_labels, told.has_dontcare, told.has_edges) != (own.num_labels, own.has_dontcare, own.has_edges):
        raise ConfigError(
            f"{asked}: these are {counts(told)}, and the teacher {teacher.facts.place} paints {counts(own)}",
            hint="a student has its teacher's labels: name the teacher's data, or train a teacher on this one",
        )
    if not by_names or not (told.names and own.names):
        return
    for label_id, (one, other) in enumerate(zip(told.names, own.names, strict=True)):
        if one != other:
            raise ConfigError(
                f"{asked}: label {label_id} is {quoted(one)}, and {quoted(other)} for the teacher"
                f" {teacher.facts.place}",
                hint="a student has its teacher's labels, in the same order",
            )


def _spec(asked: DistillRequest, teacher: GeneratorSpec, data: DataConfig) -> GeneratorSpec:
    """The student's network: its teacher's, narrower."""
    if asked.base_channels is None:
        raise ConfigError(
            "it is not said how wide the student is to be",
            hint=f"give `base_channels` N, at most {teacher.base_channels}, or `mac_budget`, such as 20G",
        )
    widths: dict[str, Any] = {"base_channels": asked.base_channels}
    if teacher.has("hidden_channels"):
        narrowed = max(1, round(teacher.hidden_channels * asked.base_channels / teacher.base_channels))
        widths["hidden_channels"] = narrowed if asked.hidden_channels is None else asked.hidden_channels
    elif asked.hidden_channels is not None:
        raise ConfigError(
            f"`hidden_channels` {asked.hidden_channels}: {teacher.architecture} has none", hint="leave it out"
        )
    check_widths(teacher, **widths)
    size = data.crop_size
    if not teacher.is_dynamic and size != (teacher.height, teacher.width):
        raise ConfigError(
            f"`size`: the teacher makes {teacher.height} x {teacher.width} only (its style vector fixes the size)",
            hint="leave `size` out",
        )
    return replace(teacher, **widths, height=size[0], width=size[1])


def check_widths(teacher: GeneratorSpec, **widths: int | None) -> None:
    """Raise ConfigError for a width that is larger than the teacher's; None is not given."""
    for name, width in widths.items():
        if width is not None and width > getattr(teacher, name):
            raise ConfigError(
                f"`{name}` {width}: a student is not wider than its teacher, which has {getattr(teacher, name)}",
                hint="give less",
            )


def _train(asked: DistillRequest, teacher: FoundTeacher, data: DataConfig, downloads: bool) -> TrainConfig:
    """The settings of the training: the teacher's own, else those of the data set's preset, with what is given."""
    info = teacher.info
    if info is not None and info.train is not None:
        base = TrainConfig.from_json({**info.train, "distill": None})
        files = base.perceptual_file
        base = replace(
            base,
            init="",
            device="auto",
            compile=False,
            perceptual_file=files if files is not None and files.is_file() else None,
            **_UNMEASURED,
        )
    elif data.preset in PRESETS:
        base = preset(data.preset, data.root or Path()).train
    else:
        base = TrainConfig(epochs=200)
    changes: dict[str, Any] = {name: value for name, value in asked.train.items() if value is not None}
    if "steps" in changes and "epochs" in changes:
        raise ConfigError("`steps` contradicts `epochs`", hint="give one of them")
    if {"steps", "epochs"} & set(changes):
        changes = {"steps": None, "epochs": None, **changes}
    if asked.perceptual is not None:
        if changes.get("perceptual_file") is not None:
            raise ConfigError(f"`perceptual` {asked.perceptual} contradicts `perceptual_file`", hint="give one of them")
        if downloads:
            changes["perceptual_file"] = fetch_vgg(asked.perceptual)
    changes["discriminator"] = replace(base.discriminator, **_given(asked.discriminator))
    return replace(base, **{"weight_l1": WEIGHT_L1, "encoder": False, **changes})


_UNMEASURED: dict[str, Any] = {"eval_every": 0, "extractor": None, "segmenter": None, "best_by": ""}
"""What of the teacher's training belongs to its own samples and files, and is not taken over."""


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
