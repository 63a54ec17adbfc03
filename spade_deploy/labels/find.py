"""Find the label maps that a command is given, and their instance maps: in a file, a folder, or a data set.

Every command reads the same data sets as training: Cityscapes' official tree or any folder of it, and the roots of the
other presets. The caller names the preset, or it follows from the model's label set.
"""

from __future__ import annotations

from pathlib import Path

from spade_deploy.errors import ConfigError, NotFoundError
from spade_deploy.labels.collect import Problem
from spade_deploy.labels.files import list_images, what_else
from spade_deploy.labels.kinds import (
    CITYSCAPES_INSTANCES,
    CITYSCAPES_LABELS,
    CITYSCAPES_PHOTOS,
    CITYSCAPES_TRAIN_IDS,
    Layout,
    by_stem,
    cityscapes_key,
    cityscapes_kind,
    has_cityscapes_names,
    is_same_file,
    stem_of,
    train_ids_in,
)
from spade_deploy.labels.layouts import PRESET_SPLITS, DataConfig, label_layouts, unknown_preset
from spade_deploy.labels.pairs import Pairing, Sample, has_layout, instance_of, merged, paired
from spade_deploy.labels.sets import preset_of
from spade_deploy.spec import LabelSpec


def find_label_maps(
    labels: Path, instances: Path | None, spec: LabelSpec, *, preset: str | None = None, no_instances: bool = False
) -> Pairing:
    """The label maps of a file, a folder or a data set's root (all splits that exist), without photos.

    instances: the folder of instance maps, or the file for a single label map; if it is left out, those of the data
    set's layout are taken. They are paired only for labels with an edge channel, and not with `no_instances`.
    Results are named by the samples' stems. Files that cannot be used are among the pairing's problems.
    Raises NotFoundError if there are no label maps, ConfigError for arguments that contradict each other.
    """
    preset = preset or preset_of(spec)
    if preset is not None and preset not in PRESET_SPLITS:
        raise unknown_preset(preset)
    _require(labels, "", "give a folder of label maps, or one label map")
    if instances is not None:
        _require(instances, "`instances`: ", "give the folder of instance maps")
    needs_instances = spec.has_edges and not no_instances
    if not needs_instances:
        instances = None
    if not labels.is_dir():
        if preset == "cityscapes":
            _refuse_other_kinds(labels)
        found = _one_file(labels, instances)
    else:
        if instances is not None and not instances.is_dir():
            raise ConfigError(f"`instances`: {instances} is a file, but {labels} is a folder", hint="give a folder")
        found = _folder(labels, instances, preset, needs_instances)
    if not (found.samples or found.problems):
        raise NotFoundError(
            f"{labels} holds no label maps (.png files and the like; folders inside are not searched, except in a data"
            " set's layout)",
            hint="`spade data earth OUT` writes label maps to try; `preset` NAME says which data set it is",
        )
    return found


def _require(path: Path, field: str, hint: str) -> None:
    if not path.exists():
        raise NotFoundError(f"{field}{path} does not exist", hint=hint)
    other = what_else(path)
    if other is not None and not path.is_dir():
        raise NotFoundError(f"{field}{path} is {other}, neither a file nor a folder", hint=hint)


def _one_file(label: Path, instances: Path | None) -> Pairing:
    official = label.name.endswith(CITYSCAPES_LABELS)
    key = cityscapes_key(label) if official else stem_of(label)
    if instances is None or not instances.is_dir():
        if instances is not None and is_same_file(label, instances):
            raise ConfigError(f"`instances`: {instances} is the label map itself, not its instance map")
        return Pairing((Sample(key, label, instance=instances),), ())
    kind = cityscapes_kind(instances, CITYSCAPES_INSTANCES) if official else by_stem(instances)
    found, reason = instance_of(key, label, kind)
    if found is None:
        return Pairing((), (Problem(label, "missing-instance", reason),), (label,))
    return Pairing((Sample(key, label, instance=found),), ())


def _folder(labels: Path, instances: Path | None, preset: str | None, needs_instances: bool) -> Pairing:
    listed = list_images(labels)
    is_cityscapes = preset == "cityscapes"
    if has_cityscapes_names(labels, recursive=is_cityscapes and not listed.files):
        kind = cityscapes_kind(labels, CITYSCAPES_LABELS, is_labels=True)
        beside = cityscapes_kind(instances or labels, CITYSCAPES_INSTANCES) if needs_instances else None
        return _labels_alone(paired(Layout(kind, None, beside)))
    if is_cityscapes:
        _refuse_other_kinds(labels)
    if not listed.files:
        for name in dict.fromkeys((preset or "custom", "custom")):
            config = DataConfig.for_preset(name, root=labels)
            if has_layout(config):
                return _splits(config, instances, needs_instances)
    kind = by_stem(labels, is_labels=True)
    return _labels_alone(paired(Layout(kind, None, by_stem(instances) if instances else None)))


def _splits(config: DataConfig, instances: Path | None, needs_instances: bool) -> Pairing:
    found = []
    for layout in label_layouts(config):
        beside = by_stem(instances) if instances is not None else layout.instances
        found.append(_labels_alone(paired(Layout(layout.labels, None, beside if needs_instances else None))))
    return merged(found)


def _labels_alone(found: Pairing) -> Pairing:
    """The pairing without problems of instance maps; the caller needs only those of label maps."""
    problems = [problem for problem in found.problems if not problem.is_beside]
    return Pairing(found.samples, tuple(problems), found.unpaired_labels)


def _refuse_other_kinds(labels: Path) -> None:
    """Raise NotFoundError for a folder or a file of Cityscapes that holds something else than label ids."""
    other = labels.name.endswith((CITYSCAPES_INSTANCES, "_gtFine_color.png", CITYSCAPES_PHOTOS))
    if other:
        raise NotFoundError(
            f"{labels} does not have the name of a Cityscapes label map", hint=f"those end in {CITYSCAPES_LABELS}"
        )
    found = labels if labels.name.endswith(CITYSCAPES_TRAIN_IDS) else train_ids_in(labels)
    if found is not None:
        raise NotFoundError(
            f"{labels} holds train ids (0..18), such as {found.name}, but this model takes label ids (0..33)",
            hint=f"give the folder of the files *{CITYSCAPES_LABELS}; they come in the same archive, gtFine",
        )
