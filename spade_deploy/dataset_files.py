"""Data sets on disk: where the files of each known layout lie, and which of them belong together.

Only names are looked at here; no file is opened. What does not pair is reported file by file, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.label_map import is_image_name

Size = tuple[int, int]
"""(height, width) in pixels."""

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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _jsonable(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, value: Any) -> DataConfig:
        """Raises ConfigError where a field is unknown or of another type."""
        if not isinstance(value, dict):
            raise ConfigError(f"data config: {type(value).__name__} is not an object")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ConfigError(f"data config: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**{name: _from_jsonable(name, entry) for name, entry in value.items()})


@dataclass(frozen=True)
class Sample:
    """Files that belong together. photo or instance is None where the data set has none."""

    stem: str
    label: Path
    photo: Path | None = None
    instance: Path | None = None


@dataclass(frozen=True)
class Problem:
    """A file that pairs with nothing. code: missing-label, missing-photo, missing-instance or duplicate-stem."""

    path: Path
    code: str
    message: str


@dataclass(frozen=True)
class Pairing:
    """samples by stem; problems name every file that is in no sample, unpaired_labels the label maps among them."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    unpaired_labels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Kind:
    """One kind of file of a layout: where to look, and which key a file has (None: another kind of file)."""

    folder: Path
    key: Callable[[Path], str | None]
    expected: str
    recursive: bool = False


@dataclass(frozen=True)
class _Layout:
    labels: _Kind
    photos: _Kind | None
    instances: _Kind | None


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
    layout = _layout(config, split)
    labels, label_problems = _collect(layout.labels)
    photos, photo_problems = _collect(layout.photos)
    instances, instance_problems = _collect(layout.instances)
    problems = [*label_problems, *photo_problems, *instance_problems]
    duplicated = {problem.path for problem in problems}
    samples = []
    for key, path in labels.items():
        missing = [
            name
            for name, kind, found in (("photo", layout.photos, photos), ("instance", layout.instances, instances))
            if kind is not None and key not in found
        ]
        if path in duplicated or any(found.get(key) in duplicated for found in (photos, instances)):
            continue  # reported already
        if missing:
            problems += [Problem(path, f"missing-{name}", _missing(name, layout)) for name in missing]
        else:
            samples.append(Sample(key, path, photos.get(key), instances.get(key)))
    for kind, found in ((layout.photos, photos), (layout.instances, instances)):
        if kind is not None:
            where = f"there is no label map for it in {layout.labels.folder}"
            problems += [
                Problem(path, "missing-label", where)
                for key, path in found.items()
                if key not in labels and path not in duplicated
            ]
    paired = {sample.label for sample in samples}
    every_label = {*labels.values(), *(problem.path for problem in label_problems)}
    return Pairing(
        tuple(sorted(samples, key=lambda sample: sample.stem)), tuple(problems), tuple(sorted(every_label - paired))
    )


def has_layout(config: DataConfig) -> bool:
    """Whether any split's label folder is there at all, and so `root` may be a data set root."""
    return any(_collect(_layout(config, split).labels)[0] for split in config.splits)


def _collect(kind: _Kind | None) -> tuple[dict[str, Path], list[Problem]]:
    """Files of a kind by key; of files that share a key all are problems, as nobody can tell which one is meant."""
    if kind is None or not kind.folder.is_dir():
        return {}, []
    try:
        entries = sorted(kind.folder.rglob("*") if kind.recursive else kind.folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{kind.folder}: the folder cannot be listed ({error.strerror})") from error
    by_key: dict[str, list[Path]] = {}
    for path in entries:
        if is_image_name(path) and (key := kind.key(path)) is not None and path.is_file():
            by_key.setdefault(key, []).append(path)
    problems = [
        Problem(path, "duplicate-stem", f"{key} occurs {len(paths)} times: " + ", ".join(map(str, paths)))
        for key, paths in by_key.items()
        if len(paths) > 1
        for path in paths
    ]
    return {key: paths[0] for key, paths in by_key.items()}, problems


def _layout(config: DataConfig, split: str) -> _Layout:
    root = config.root
    if config.preset in ("coco", "facades") and root:
        instances = _by_stem(root / f"{split}_inst") if config.preset == "coco" else None
        return _Layout(_by_stem(root / f"{split}_label"), _by_stem(root / f"{split}_img"), instances)
    if config.preset == "ade20k" and root:
        return _ade20k(root, split)
    if config.preset == "cityscapes" and root:
        return _cityscapes(root, split)
    if root:
        instances_dir = root / split / "instances"
        return _Layout(
            _by_stem(root / split / "labels"),
            _by_stem(root / split / "images"),
            _by_stem(instances_dir) if instances_dir.is_dir() else None,
        )
    if config.labels_dir:
        return _Layout(
            _by_stem(config.labels_dir),
            _by_stem(config.images_dir) if config.images_dir else None,
            _by_stem(config.instances_dir) if config.instances_dir else None,
        )
    raise ConfigError("--preset earth: the embedded data set has no files", hint="`spade data earth OUT` writes them")


def _by_stem(folder: Path) -> _Kind:
    return _Kind(folder, lambda path: path.stem, "*")


def _ade20k(root: Path, split: str) -> _Layout:
    """Photos and label maps may lie anywhere below the root: together, or as in ADEChallengeData2016."""
    token = f"_{split}_"

    def key(suffix: str) -> Callable[[Path], str | None]:
        def of(path: Path) -> str | None:
            # The full ADE20K has colour-coded NAME_seg.png and NAME_parts_1.png beside the photo: no label maps.
            is_other = path.stem.endswith("_seg") or "_parts_" in path.stem
            return path.stem if path.suffix.lower() == suffix and token in path.name and not is_other else None

        return of

    return _Layout(
        _Kind(root, key(".png"), f"**/*{token}*.png", recursive=True),
        _Kind(root, key(".jpg"), f"**/*{token}*.jpg", recursive=True),
        None,
    )


def _cityscapes(root: Path, split: str) -> _Layout:
    def key(ending: str) -> Callable[[Path], str | None]:
        return lambda path: "_".join(path.name.split("_")[:3]) if path.name.endswith(ending) else None

    def kind(top: str, ending: str) -> _Kind:
        return _Kind(root / top / split, key(ending), f"**/*{ending}", recursive=True)

    return _Layout(
        kind("gtFine", "_gtFine_labelIds.png"),
        kind("leftImg8bit", "_leftImg8bit.png"),
        kind("gtFine", "_gtFine_instanceIds.png"),
    )


def _missing(name: str, layout: _Layout) -> str:
    kind = layout.photos if name == "photo" else layout.instances
    what = "photo" if name == "photo" else "instance map"
    return f"there is no {what} for it in {kind.folder if kind else '?'}"


def _nothing_pairs(config: DataConfig, split: str) -> DatasetError:
    layout = _layout(config, split)
    kinds = (("label maps", layout.labels), ("photos", layout.photos), ("instance maps", layout.instances))
    looked = "; ".join(
        f"{name} as {kind.folder / kind.expected} ("
        + (f"{len(_collect(kind)[0])} found)" if kind.folder.is_dir() else "no such folder)")
        for name, kind in kinds
        if kind is not None
    )
    hint = {
        "ade20k": "the released models need SceneParse150 (ADEChallengeData2016), not the full ADE20K",
        "cityscapes": "unpack gtFine_trainvaltest and leftImg8bit_trainvaltest into the same folder",
    }.get(config.preset, "label maps, photos and instance maps belong together by the same file stem")
    return DatasetError(f"no {split} samples for the preset {config.preset}. Looked for {looked}", hint=hint)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _from_jsonable(name: str, value: Any) -> Any:
    if name == "preset" and isinstance(value, str):
        return value
    if name == "flip" and isinstance(value, bool):
        return value
    if name in ("load_size", "crop_size"):
        is_size = isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
        if is_size:
            return tuple(value)
    elif name not in ("preset", "flip") and (value is None or isinstance(value, str)):
        return None if value is None else Path(value)
    raise ConfigError(f"data config: {name} cannot be {value!r}")
