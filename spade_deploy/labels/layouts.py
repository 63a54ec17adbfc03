"""Data sets on disk: where the files of each known layout lie, and which of them belong together.

Only names are looked at here; no file is opened. What does not pair is reported file by file, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.fields import from_json, to_json
from spade_deploy.images.image_file import Size
from spade_deploy.labels.files import FOLDER, is_image_name, what_else

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
"""Load size and crop size that each preset trains with unless told otherwise."""

CITYSCAPES_LABELS = "_gtFine_labelIds.png"
CITYSCAPES_TRAIN_IDS = "_gtFine_labelTrainIds.png"
CITYSCAPES_INSTANCES = "_gtFine_instanceIds.png"
CITYSCAPES_PHOTOS = "_leftImg8bit.png"
"""How the official files' names end."""

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
_WHAT = {"photo": "photo", "instance": "instance map"}


@dataclass(frozen=True)
class DataConfig:
    """Which data set, where it lies, and how its images become training samples.

    preset: a key of PRESET_SPLITS. earth without a root is the embedded data set.
    root: folder in the preset's official layout; custom and earth: ROOT/{train,val,test}/{labels,images,instances}.
    labels_dir, images_dir, instances_dir: of custom instead of a root; one set of files that serves every split.
    load_size: samples are resized to it. crop_size: then cropped to it, at random; evaluation resizes to it directly.
    flip: mirror half of the training samples.
    """

    preset: str = "earth"
    root: Path | None = None
    labels_dir: Path | None = None
    images_dir: Path | None = None
    instances_dir: Path | None = None
    load_size: Size = (128, 128)
    crop_size: Size = (128, 128)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.preset not in PRESET_SPLITS:
            raise ConfigError(f"--preset: {self.preset!r} is not one of {', '.join(PRESET_SPLITS)}")
        given = {"--labels": self.labels_dir, "--images": self.images_dir, "--instances": self.instances_dir}
        folders = [flag for flag, folder in given.items() if folder is not None]
        if self.preset != "custom" and folders:
            raise ConfigError(f"{folders[0]}: the preset {self.preset} takes --data ROOT", hint="use --preset custom")
        if self.preset == "custom" and (self.root is None) == (self.labels_dir is None):
            raise ConfigError("--preset custom: needs either --data ROOT or --labels DIR (and --images DIR)")
        if self.root is not None and folders:
            raise ConfigError(f"{folders[0]}: contradicts --data {self.root}; give one of them")
        if self.preset not in ("custom", "earth") and self.root is None:
            raise ConfigError(f"--preset {self.preset}: needs the data set's folder, --data ROOT")
        for flag, size in (("load size", self.load_size), ("--size", self.crop_size)):
            if len(size) != 2 or not all(1 <= side <= 8192 for side in size):
                raise ConfigError(f"{flag}: {size} is not (height, width) in 1..8192 pixels")
        if self.crop_size[0] > self.load_size[0] or self.crop_size[1] > self.load_size[1]:
            raise ConfigError(f"--size: the crop {self.crop_size} is larger than the load size {self.load_size}")

    @classmethod
    def for_preset(cls, preset: str, *, crop_size: Size | None = None, **given: Any) -> DataConfig:
        """A config with the preset's sizes; another crop_size scales the load size along (286 : 256 stays)."""
        if preset not in PRESET_SIZES:
            raise ConfigError(f"--preset: {preset!r} is not one of {', '.join(PRESET_SIZES)}")
        load, crop = PRESET_SIZES[preset]
        if crop_size is not None:
            load = (-(-crop_size[0] * load[0] // crop[0]), -(-crop_size[1] * load[1] // crop[1]))
            crop = crop_size
        return cls(**{"preset": preset, "load_size": load, "crop_size": crop, **given})

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this data set has."""
        return PRESET_SPLITS[self.preset]

    @property
    def evaluation_split(self) -> str:
        """The split for sample grids and metrics: the second one, val (facades: test)."""
        return self.splits[1]

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> DataConfig:
        """Raises ConfigError where a field is unknown or of another type."""
        return from_json(cls, value, "data config")


@dataclass(frozen=True)
class Sample:
    """Files that belong together. photo or instance is None where the data set has none."""

    stem: str
    label: Path
    photo: Path | None = None
    instance: Path | None = None


@dataclass(frozen=True)
class Problem:
    """A file that is in no sample.

    code: missing-label, missing-photo, missing-instance, duplicate-stem, not-a-file, or photo (one beside label maps).
    """

    path: Path
    code: str
    message: str
    is_beside: bool = False
    """Whether it is about a photo or an instance map, not about a label map."""


@dataclass(frozen=True)
class Pairing:
    """samples by stem; problems name every file that is in no sample, unpaired_labels the label maps among them."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    unpaired_labels: tuple[Path, ...] = ()

    @property
    def in_order(self) -> list[Sample | Problem]:
        """Every file that was meant as a label map, by path: its sample, or what is wrong with it."""
        entries: list[Sample | Problem] = [*self.samples]
        entries += [problem for problem in self.problems if problem.code != "photo"]
        return sorted(entries, key=lambda entry: entry.label if isinstance(entry, Sample) else entry.path)

    @property
    def has_instances(self) -> bool:
        """Whether instance maps were looked for and found, or are missing for files that need them."""
        return any(sample.instance for sample in self.samples) or any(
            problem.code == "missing-instance" for problem in self.problems
        )


@dataclass(frozen=True)
class Kind:
    """One kind of file of a layout: where to look, and which key a file has (None: another kind of file)."""

    folder: Path
    key: Callable[[Path], str | None]
    expected: str
    recursive: bool = False
    is_labels: bool = False


@dataclass(frozen=True)
class Layout:
    """Where the kinds of files of a split lie; None where the data set has none."""

    labels: Kind
    photos: Kind | None
    instances: Kind | None


def find_samples(config: DataConfig, split: str) -> Pairing:
    """The samples of a split, paired by stem (Cityscapes: by the first three tokens of the name).

    Raises ConfigError for a split that the data set does not have, DatasetError where nothing pairs.
    """
    pairing = pair_files(config, split)
    if not pairing.samples:
        raise _nothing_pairs(config, split)
    return pairing


def pair_files(config: DataConfig, split: str) -> Pairing:
    """`find_samples` for a report: a split of which nothing pairs is problems without samples."""
    if split not in config.splits:
        raise ConfigError(f"--split: {config.preset} has no split {split!r}; it has {', '.join(config.splits)}")
    return paired(_layout(config, split))


def pair_flat(labels: Path, images: Path | None, instances: Path | None, preset: str = "custom") -> Pairing:
    """`pair_files` of folders of one set. Under the preset cityscapes its official names are understood."""
    return paired(flat_layout(labels, images, instances, is_cityscapes=preset == "cityscapes"))


def paired(layout: Layout) -> Pairing:
    """The samples of a layout. A file is never its own photo or instance map."""
    labels = _collect(layout.labels)
    others = {
        name: (kind, _collect(kind))
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
        tuple(sorted(samples, key=lambda sample: sample.stem)), tuple(problems), tuple(sorted(every_label - taken))
    )


def paired_file(key: str, label: Path, kind: Kind, name: str) -> tuple[Path | None, str]:
    """The photo or instance map (name: 'photo', 'instance') of one label map, or None and why there is none."""
    return _match(key, label, kind, _collect(kind), name)


def _match(key: str, label: Path, kind: Kind, found: _Collected, name: str) -> tuple[Path | None, str]:
    if key in found.unclear:
        return None, f"its {_WHAT[name]}: {found.unclear[key]}"
    if key not in found.files:
        return None, f"there is no {_WHAT[name]} for it in {kind.folder}"
    if is_same_file(found.files[key], label):
        return None, f"{found.files[key]} is the label map itself, not its {_WHAT[name]}"
    return found.files[key], ""


def has_layout(config: DataConfig) -> bool:
    """Whether any split's label folder is there at all, and so `root` may be a data set root."""
    return any(_collect(layout.labels).files for layout in label_layouts(config))


def label_layouts(config: DataConfig) -> list[Layout]:
    """The layout of each split, there or not."""
    return [_layout(config, split) for split in config.splits]


@dataclass(frozen=True)
class _Collected:
    """Files of a kind by key. unclear: keys without a file that can be taken -> why, which the problems say, too."""

    files: dict[str, Path]
    problems: list[Problem]
    unclear: dict[str, str]


def _collect(kind: Kind) -> _Collected:
    """Of files that share a key all are problems, as nobody can tell which one is meant."""
    if not kind.folder.is_dir():
        return _Collected({}, [], {})
    try:
        entries = sorted(kind.folder.rglob("*") if kind.recursive else kind.folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{kind.folder}: the folder cannot be listed ({error.strerror})") from error
    by_key: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    unclear: dict[str, str] = {}
    for path in entries:
        if not is_image_name(path) or (key := kind.key(path)) is None:
            continue
        other = what_else(path)
        if other is None:
            by_key.setdefault(key, []).append(path)
        elif other != FOLDER:
            problems.append(Problem(path, "not-a-file", f"is {other}, not a file: left out"))
            unclear[key] = f"{path} is {other}"
    if kind.is_labels:
        problems += _photos_beside(by_key)
    for key, paths in by_key.items():
        if len(paths) > 1:
            unclear[key] = f"{key} occurs {len(paths)} times: " + ", ".join(map(str, paths))
            problems += [Problem(path, "duplicate-stem", unclear[key]) for path in paths]
    files = {key: paths[0] for key, paths in by_key.items() if len(paths) == 1}
    return _Collected(files, problems, {key: why for key, why in unclear.items() if key not in files})


def _photos_beside(by_key: dict[str, list[Path]]) -> list[Problem]:
    """Take JPEGs out of `by_key` that lie beside another file of their key: photos, since no label map is a JPEG."""
    problems = []
    for key, paths in by_key.items():
        others = [path for path in paths if path.suffix.lower() not in JPEG_SUFFIXES]
        if others and len(others) < len(paths):
            by_key[key] = others
            message = f"a photo (JPEG) beside the label map {others[0].name}: left out"
            problems += [Problem(path, "photo", message) for path in paths if path not in others]
    return problems


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file or folder; links and other spellings included."""
    try:
        return first == second or first.samefile(second)
    except OSError:
        return False


def _layout(config: DataConfig, split: str) -> Layout:
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
        return Layout(
            by_stem(root / split / "labels", is_labels=True),
            by_stem(root / split / "images"),
            by_stem(instances_dir) if instances_dir.is_dir() else None,
        )
    if config.labels_dir:
        return flat_layout(config.labels_dir, config.images_dir, config.instances_dir)
    raise ConfigError("--preset earth: the embedded data set has no files", hint="`spade data earth OUT` writes them")


def flat_layout(labels: Path, images: Path | None, instances: Path | None, *, is_cityscapes: bool = False) -> Layout:
    """Folders that are paired by stem, or files by Cityscapes' official names, which may then lie in one folder.

    is_cityscapes: the names are looked for in the folders inside, too. Raises DatasetError where one folder is given
    for two kinds of files that it cannot hold both.
    """
    if has_cityscapes_names(labels, recursive=is_cityscapes):
        return Layout(
            cityscapes_kind(labels, CITYSCAPES_LABELS, is_labels=True),
            cityscapes_kind(images, CITYSCAPES_PHOTOS) if images else None,
            cityscapes_kind(instances, CITYSCAPES_INSTANCES) if instances else None,
        )
    for flag, folder in (("--images", images), ("--instances", instances)):
        if folder is not None and is_same_file(folder, labels):
            what = "photos" if flag == "--images" else "instance maps"
            raise DatasetError(
                f"{flag}: {folder} is the folder of the label maps, too, so each would be paired with itself",
                hint=f"put the {what} into a folder of their own, paired by the same file stem",
            )
    if images is not None and instances is not None and is_same_file(images, instances):
        raise DatasetError(f"--instances: {instances} is the folder of the photos, too", hint="name two folders")
    return Layout(
        by_stem(labels, is_labels=True),
        by_stem(images) if images else None,
        by_stem(instances) if instances else None,
    )


def by_stem(folder: Path, *, is_labels: bool = False) -> Kind:
    """All images of a folder, each by its stem."""
    return Kind(folder, lambda path: path.stem, "*", is_labels=is_labels)


def has_cityscapes_names(folder: Path, *, recursive: bool = False) -> bool:
    """Whether a folder holds label maps with Cityscapes' official names."""
    if not folder.is_dir():
        return False
    try:
        found = folder.rglob(f"*{CITYSCAPES_LABELS}") if recursive else folder.glob(f"*{CITYSCAPES_LABELS}")
        return next(iter(found), None) is not None
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be listed ({error.strerror})") from error


def train_ids_in(folder: Path) -> Path | None:
    """The first of Cityscapes' files of train ids in a folder and those inside, which are no label ids; else None."""
    return next(iter(sorted(folder.rglob(f"*{CITYSCAPES_TRAIN_IDS}"))), None) if folder.is_dir() else None


def cityscapes_kind(folder: Path, ending: str, *, is_labels: bool = False) -> Kind:
    """Files whose names end so, in a folder and those inside, by the first three parts of their names."""

    def key(path: Path) -> str | None:
        return cityscapes_key(path) if path.name.endswith(ending) else None

    return Kind(folder, key, f"**/*{ending}", recursive=True, is_labels=is_labels)


def cityscapes_key(path: Path) -> str:
    """City, sequence and frame: what the files of one sample share."""
    return "_".join(path.name.split("_")[:3])


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


def _nothing_pairs(config: DataConfig, split: str) -> DatasetError:
    layout = _layout(config, split)
    kinds = (("label maps", layout.labels), ("photos", layout.photos), ("instance maps", layout.instances))
    looked = "; ".join(
        f"{name} as {kind.folder / kind.expected} ("
        + (f"{len(_collect(kind).files)} found)" if kind.folder.is_dir() else "no such folder)")
        for name, kind in kinds
        if kind is not None
    )
    hint = {
        "ade20k": "the released models need SceneParse150 (ADEChallengeData2016), not the full ADE20K",
        "cityscapes": "unpack gtFine_trainvaltest and leftImg8bit_trainvaltest into the same folder",
    }.get(config.preset, "label maps, photos and instance maps belong together by the same file stem")
    if config.preset == "cityscapes" and config.root and (other := train_ids_in(config.root)) is not None:
        hint = f"{other.name} holds train ids (0..18); needed are the label ids of {CITYSCAPES_LABELS[1:]}"
    return DatasetError(f"no {split} samples for the preset {config.preset}. Looked for {looked}", hint=hint)
