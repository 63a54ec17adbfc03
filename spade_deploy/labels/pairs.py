"""Which label map, photo and instance map belong together: the one place that pairs files.

Only names are looked at, except by `read_maps`; what does not pair is reported file by file, never dropped silently.
Where the files of a data set lie is in `layouts.py`; the label maps that a command is given are found by `find.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.collect import Collected, Problem, collect
from spade_deploy.labels.files import LabelIds, read_instance_map, read_label_map
from spade_deploy.labels.kinds import CITYSCAPES_LABELS, Kind, Layout, is_same_file, train_ids_in
from spade_deploy.labels.layouts import DataConfig, flat_layout, label_layouts, layout_of
from spade_deploy.labels.nested import images_inside
from spade_deploy.spec import LabelSpec

_WHAT = {"photo": "photo", "instance": "instance map"}


@dataclass(frozen=True)
class Sample:
    """Files that belong together."""

    stem: str
    """The name of the sample, and of a result that is made of it."""
    label: Path
    """The label map."""
    photo: Path | None = None
    """The photo; None if the data set has no photos."""
    instance: Path | None = None
    """The instance map; None if the data set has no instance maps."""


@dataclass(frozen=True)
class Pairing:
    """The samples in the folders of a data set, or of a command, and the files that are in no sample."""

    samples: tuple[Sample, ...]
    """The samples in the order of their stems."""
    problems: tuple[Problem, ...]
    """One for every file that is in no sample."""
    unpaired_labels: tuple[Path, ...] = ()
    """The label maps that are in no sample."""
    nested: tuple[Problem, ...] = ()
    """One for every folder in which, beside its own files, there are folders with images, which are not read."""

    @property
    def in_order(self) -> list[Sample | Problem]:
        """For every label map, in the order of the paths, its sample, or its problem if it is in no sample."""
        entries: list[Sample | Problem] = [*self.samples]
        entries += [problem for problem in self.problems if problem.code != "photo"]
        return sorted(entries, key=lambda entry: entry.label if isinstance(entry, Sample) else entry.path)

    @property
    def has_instances(self) -> bool:
        """Whether instance maps were looked for and found, or are missing for files that need them."""
        return any(sample.instance for sample in self.samples) or any(
            problem.code == "missing-instance" for problem in self.problems
        )


def merged(pairings: Sequence[Pairing]) -> Pairing:
    """Join several pairings, such as those of all splits; the samples and problems of each stay together."""
    return Pairing(
        tuple(sample for pairing in pairings for sample in pairing.samples),
        tuple(problem for pairing in pairings for problem in pairing.problems),
        tuple(path for pairing in pairings for path in pairing.unpaired_labels),
        tuple(problem for pairing in pairings for problem in pairing.nested),
    )


def find_samples(config: DataConfig, split: str) -> Pairing:
    """The samples of a split, paired by stem (Cityscapes: by the first three tokens of the name).

    Raises ConfigError for a split that the data set does not have, DatasetError where nothing pairs.
    """
    pairing = pair_files(config, split)
    if not pairing.samples:
        raise _nothing_pairs(config, split)
    return pairing


def pair_files(config: DataConfig, split: str) -> Pairing:
    """Like `find_samples`, but if nothing pairs, the pairing only has problems, and no error is raised."""
    if split not in config.splits:
        raise ConfigError(f"`split`: {config.preset} has no split {split!r}; it has {', '.join(config.splits)}")
    held_out = config.holdout
    if held_out is None or split not in ("train", "val"):
        return paired(layout_of(config, split))
    # Both are parts of the same files; those that pair with nothing are told once, with the training samples.
    whole, wanted = paired(layout_of(config, "train")), split == "val"
    samples = tuple(sample for sample in whole.samples if held_out.holds_out(sample.stem) == wanted)
    return replace(whole, samples=samples) if split == "train" else Pairing(samples, ())


def pair_flat(labels: Path, images_dir: Path | None, instances_dir: Path | None, preset: str = "custom") -> Pairing:
    """Pair the files of plain folders. With the preset cityscapes its official names are understood."""
    return paired(flat_layout(labels, images_dir, instances_dir, is_cityscapes=preset == "cityscapes"))


def paired(layout: Layout) -> Pairing:
    """The samples of a layout. A file is never its own photo or instance map."""
    labels = collect(layout.labels)
    others = {
        name: (kind, collect(kind))
        for name, kind in (("photo", layout.photos), ("instance", layout.instances))
        if kind is not None
    }
    problems = [*labels.problems]
    for _, found in others.values():
        problems += [replace(problem, is_beside=True) for problem in found.problems]
    samples = []
    for key, path in labels.files.items():
        beside: dict[str, Path] = {}
        for name, (kind, found) in others.items():
            file, reason = _match(key, path, kind, found, name)
            if file is not None:
                beside[name] = file
            else:
                problems.append(Problem(path, f"missing-{name}", reason))
        if len(beside) == len(others):
            samples.append(Sample(key, path, beside.get("photo"), beside.get("instance")))
    known = {*labels.files, *labels.unclear}
    for _, found in others.values():
        where = f"there is no label map for it in {layout.labels.folder}"
        problems += [
            Problem(path, "missing-label", where, is_beside=True)
            for key, path in found.files.items()
            if key not in known
        ]
    taken = {sample.label for sample in samples}
    every_label = {*labels.files.values(), *(problem.path for problem in labels.problems)}
    return Pairing(
        tuple(sorted(samples, key=lambda sample: sample.stem)),
        tuple(problems),
        tuple(sorted(every_label - taken)),
        tuple(_nested(layout)),
    )


def _nested(layout: Layout) -> Iterator[Problem]:
    for kind in (layout.labels, layout.photos, layout.instances):
        if kind is not None and not kind.recursive and (inside := images_inside(kind.folder)) is not None:
            text = f"the folders in it hold {inside.count} images, such as {inside.first}, which are not read"
            yield Problem(kind.folder, "nested", text, is_beside=kind is not layout.labels)


def instance_of(key: str, label: Path, kind: Kind) -> tuple[Path | None, str]:
    """The instance map of one label map, or None, and the reason why there is none."""
    return _match(key, label, kind, collect(kind), "instance")


def _match(key: str, label: Path, kind: Kind, found: Collected, name: str) -> tuple[Path | None, str]:
    if key in found.unclear:
        return None, f"its {_WHAT[name]}: {found.unclear[key]}"
    if key not in found.files:
        return None, f"there is no {_WHAT[name]} for it in {kind.folder}"
    if is_same_file(found.files[key], label):
        return None, f"{found.files[key]} is the label map itself, not its {_WHAT[name]}"
    return found.files[key], ""


def has_layout(config: DataConfig) -> bool:
    """Whether the label folder of any split exists, so that `root` can be the root of a data set."""
    return any(collect(layout.labels).files for layout in label_layouts(config))


def require_labels(labels: Path | None, instances: Path | None) -> None:
    """Raises ConfigError for instance maps without label maps."""
    if instances is not None and labels is None:
        raise ConfigError("`instances` without `labels`: the golden inputs have their own", hint="give `labels` too")


def require_instances(
    found: Pairing, labels: LabelSpec, asked: str = "`instances` is needed", hint: str | None = None
) -> None:
    """Raise ConfigError if a model has an edge channel and a data set's own layout has no instance maps.

    It is for commands without a folder of instance maps. asked: the beginning of the message, which names the field
    to give.
    """
    if labels.has_edges and not found.has_instances:
        raise ConfigError(f"{asked}: this model has an edge channel, made of instance maps", hint=hint)


def read_maps(
    one: Sample | Problem, labels: LabelSpec, size: Size | None = None
) -> tuple[LabelIds, NDArray[np.int32] | None]:
    """The label map and the instance map, if there is one, of an entry of `Pairing.in_order`: H x W each.

    size: (height, width) that both are resized to. Raises LabelMapError, also for what is no sample.
    """
    if isinstance(one, Problem):
        raise LabelMapError(f"{one.path}: {one.message}")
    instance = None
    label = read_label_map(one.label, labels, size)
    if one.instance is not None:
        instance = read_instance_map(one.instance, size)
    return label, instance


def _nothing_pairs(config: DataConfig, split: str) -> DatasetError:
    layout = layout_of(config, split)
    kinds = (("label maps", layout.labels), ("photos", layout.photos), ("instance maps", layout.instances))
    looked = "; ".join(
        f"{name} as {kind.folder / kind.expected} ("
        + (f"{len(collect(kind).files)} found)" if kind.folder.is_dir() else "no such folder)")
        for name, kind in kinds
        if kind is not None
    )
    hint = {
        "ade20k": "the released models need SceneParse150 (ADEChallengeData2016), not the full ADE20K",
        "cityscapes": "unpack gtFine_trainvaltest and leftImg8bit_trainvaltest into the same folder",
    }.get(config.preset, "label maps, photos and instance maps belong together by the same file stem")
    if config.preset == "cityscapes" and config.root and (other := train_ids_in(config.root)) is not None:
        hint = f"{other.name} holds train ids (0..18); needed are the label ids of {CITYSCAPES_LABELS[1:]}"
    inside = [(kind.folder, found) for _, kind in kinds if kind and (found := images_inside(kind.folder))]
    if inside and all(not collect(kind).files for _, kind in kinds if kind):
        hint = f"the folders in {inside[0][0]} hold images, such as {inside[0][1].first}: give the folders of the files"
    folders = [kind.folder for _, kind in kinds if kind] if config.root is None else [config.root]
    if (missing := next((folder for folder in folders if not folder.is_dir()), None)) is not None:
        hint = f"check the path: {missing} is no folder"
    return DatasetError(f"no {split} samples for the preset {config.preset}. Looked for {looked}", hint=hint)
