"""The models that are judged: a checkpoint in PyTorch, an artifact in its runtime, or a folder of finished images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy import runs
from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays, Artifact, Z, with_features
from spade_deploy.engines.base import Backend
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError
from spade_deploy.evaluation.data import Sample, instance_maps
from spade_deploy.evaluation.pytorch import needed_pytorch
from spade_deploy.images.image_file import Size, read_photo
from spade_deploy.labels.files import duplicate_stems, is_image_name, list_label_files
from spade_deploy.labels.kinds import stem_of
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.runs.layout import SHIPPED
from spade_deploy.runs.settings import generator_settings, settings_of
from spade_deploy.spec import GeneratorSpec

Pixels = NDArray[np.uint8]
"""An image, H x W x 3."""


class Kind(StrEnum):
    """The kind of path that stands for a model."""

    CHECKPOINT = "checkpoint"
    ARTIFACT = "artifact"
    IMAGES = "images"


@dataclass(frozen=True)
class Model:
    """A model to judge, which is not loaded yet."""

    path: Path
    """Where it lies."""
    kind: Kind
    """What the path is."""
    name: str
    """Its name for people, which is unique in a report."""
    spec: GeneratorSpec | None = None
    """How its generator is built; None for a folder of images."""
    data: DataConfig | None = None
    """The data set that it was trained on; None if that is not known."""
    init: str = ""
    """The weights that its training began from, as `train.init`; empty for random ones."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Architecture, step, origin and digest of its weights, for the report."""
    settings: dict[str, Any] | None = None
    """How it was built and trained, as a flat table (`runs.settings`); None for a folder of images."""

    @property
    def z_dim(self) -> int | None:
        return self.spec.z_dim if self.spec is not None else None

    def check_size(self, size: Size) -> None:
        """Raise ConfigError if this generator cannot make images of `size`."""
        spec = self.spec
        if spec is None or size == (spec.height, spec.width):
            return
        if not spec.is_dynamic:
            raise ConfigError(
                f"`size`: {self.name} makes {spec.height} x {spec.width} only (its style vector fixes the size)"
            )
        for side in size:
            if not spec.takes_side(side):
                raise ConfigError(f"`size`: {side} is not a {spec.side_rule}, as {self.name} needs")


class Images(ExitStack, ABC):
    """A model that is loaded and makes images; a context manager."""

    runtime: str
    """The engine or library that really runs, for people."""

    @abstractmethod
    def make(self, samples: Sequence[Sample], styles: NDArray[np.float32] | None) -> list[Pixels | str]:
        """An image for each sample, or a sentence why there is none.

        styles: N x z_dim, for a model that has a style vector.
        """


def find_models(paths: Sequence[Path], runs_dir: Path, *, best: bool = False) -> list[Model]:
    """The models at these paths; without paths the newest run. Their names are made unique.

    best: of a run, take the checkpoint that was the best by the metric it was trained to keep, not its newest.
    Raises NotFoundError, ConfigError, and CheckpointError or ArtifactError for what is damaged.
    """
    models = [_find(path, runs_dir, best) for path in paths] if paths else [_newest(runs_dir, best)]
    seen: dict[Path, Path] = {}
    for path, model in zip(paths, models, strict=False):
        if (place := model.path.resolve()) in seen:
            raise ConfigError(f"{path}: is the same model as {seen[place]}")
        seen[place] = path
    names = [model.name for model in models]
    return [replace(m, name=str(m.path)) if names.count(m.name) > 1 else m for m in models]


def open_images(model: Model, size: Size, backend: Backend) -> Images:
    """Load a model to make images of `size`. Raises what loading it raises."""
    if model.kind is Kind.IMAGES:
        return _FolderImages(model.path, size)
    if model.kind is Kind.ARTIFACT:
        return _ArtifactImages(model.path, backend)
    return _CheckpointImages(model.path, backend)


def _newest(runs_dir: Path, best: bool) -> Model:
    if best:
        return _checkpoint(runs.resolve_checkpoint(None, runs_dir, best=True))
    try:
        return _checkpoint(runs.newest_checkpoint(runs_dir))
    except NotFoundError as error:
        try:
            return _artifact(runs.newest_artifact(runs_dir), runs_dir)
        except NotFoundError:
            raise error from None


def _find(path: Path, runs_dir: Path, best: bool) -> Model:
    if not path.exists() and str(path) in SHIPPED:
        return _shipped(path)
    if not path.exists():
        raise NotFoundError(
            f"{path}: does not exist", hint="give a run, a checkpoint, an artifact, or a folder of images"
        )
    folder = path.parent if path.is_file() and path.name in _MARKS else path
    is_run = (folder / runs.CHECKPOINTS).is_dir()
    if best and not is_run:
        raise ConfigError(f"`best`: {path} is not a run: only a run has a best checkpoint", hint="leave `best` out")
    if (folder / runs.MANIFEST_JSON).is_file():
        return _artifact(runs.resolve_artifact(folder, runs_dir), runs_dir)
    if any((folder / name).exists() for name in (runs.CHECKPOINTS, runs.CHECKPOINT_JSON, runs.GENERATOR_FILE)):
        return _checkpoint(runs.resolve_checkpoint(folder, runs_dir, best=best))
    if (folder / runs.ARTIFACT / runs.MANIFEST_JSON).is_file():
        return _artifact(runs.resolve_artifact(folder, runs_dir), runs_dir)
    if folder.is_dir() and any(is_image_name(entry) for entry in folder.iterdir()):
        return Model(folder, Kind.IMAGES, folder.name or str(folder))
    raise NotFoundError(
        f"{path}: is neither a run, a checkpoint ({runs.CHECKPOINT_JSON}), an artifact ({runs.MANIFEST_JSON}) nor a"
        " folder with images",
        hint=runs.MAKE_CHECKPOINT,
    )


def _shipped(name: Path) -> Model:
    """A model that comes with the package, by its name."""
    with needed_pytorch(name):
        from spade_deploy.runs.shipped import shipped_facts
    found, data = shipped_facts(str(name)), DataConfig.for_preset(str(name))
    spec = found.generator
    facts = _facts(spec, None, "shipped", found.sha256)
    return Model(name, Kind.CHECKPOINT, str(name), spec, data, "", facts, generator_settings(spec))


def _facts(spec: GeneratorSpec, step: int | None, origin: str, sha256: str) -> dict[str, Any]:
    return {"architecture": spec.title, "step": step, "origin": origin, "generator_sha256": sha256}


def _checkpoint(path: Path) -> Model:
    info = runs.read_checkpoint_info(path)
    run = path.resolve().parent.parent.name if path.resolve().parent.name == runs.CHECKPOINTS else path.resolve().name
    name = f"{run}, step {info.step}" if info.origin == "train" else run
    facts = _facts(info.generator, info.step, info.origin, info.generator_sha256)
    return Model(path, Kind.CHECKPOINT, name, info.generator, _data_of(info), info.init, facts, settings_of(info))


def _artifact(path: Path, runs_dir: Path) -> Model:
    manifest = Artifact.open(path).manifest
    digest = manifest.source.generator_sha256
    checkpoint = runs.find_checkpoint_by_digest(digest, near=path, runs_dir=runs_dir)
    info = runs.read_checkpoint_info(checkpoint) if checkpoint is not None else None
    data, init = (_data_of(info), info.init) if info is not None else (None, "")
    settings = settings_of(info) if info is not None else generator_settings(manifest.generator)
    facts = _facts(manifest.generator, manifest.source.step, manifest.source.origin, digest)
    whose = path.resolve()
    name = f"{whose.parent.name}/{whose.name}"
    return Model(path, Kind.ARTIFACT, name, manifest.generator, data, init, facts, settings)


def _data_of(info: runs.CheckpointInfo) -> DataConfig | None:
    if info.data is None:
        return None
    try:
        return DataConfig.from_json(info.data)
    except ConfigError:  # another version wrote it: the user has to say which data to use
        return None


class _CheckpointImages(Images):
    """The trained module in eval mode and float32, on CUDA if a GPU is there and `backend` allows it."""

    def __init__(self, path: Path, backend: Backend) -> None:
        super().__init__()
        with needed_pytorch(path):
            import torch

            from spade_deploy.runs.checkpoint import load_generator
            from spade_deploy.runs.shipped import shipped_generator
        if backend not in (Backend.AUTO, Backend.CPU, Backend.CUDA):
            raise ConfigError(f"`backend`: {backend} runs artifacts; {path} is a checkpoint")
        has_cuda = torch.cuda.is_available()
        if backend is Backend.CUDA and not has_cuda:
            raise ConfigError(f"`backend`: PyTorch {torch.__version__} sees no CUDA device", hint="use `backend` cpu")
        self._name = str(path)
        self._device = torch.device("cuda" if has_cuda and backend is not Backend.CPU else "cpu")
        is_shipped = not path.exists() and str(path) in SHIPPED
        module = shipped_generator(str(path)) if is_shipped else load_generator(path).module
        self._module, self._spec = module.to(self._device), module.spec
        self.runtime = f"PyTorch {torch.__version__} {self._device}, float32"

    def make(self, samples: Sequence[Sample], styles: NDArray[np.float32] | None) -> list[Pixels | str]:
        import torch

        from spade_deploy.networks.spade import make_segmap, to_pixels

        labels = self._spec.labels
        label = torch.from_numpy(np.stack([sample.label for sample in samples])).to(self._device)
        instance = torch.from_numpy(instance_maps(samples)).to(self._device) if labels.has_edges else None
        z = torch.from_numpy(styles).to(self._device) if styles is not None else None
        with torch.inference_mode():
            image = self._module(make_segmap(label, instance, labels), z)
            finite = image.isfinite().flatten(1).all(1).tolist()
            pixels = to_pixels(image).cpu().numpy()
        return _only_finite(self._name, samples, list(pixels), finite)


class _ArtifactImages(Images):
    def __init__(self, path: Path, backend: Backend) -> None:
        super().__init__()
        artifact = Artifact.open(path)
        self._name = str(path)
        self._spec = artifact.manifest.generator
        self._runtime = self.enter_context(open_runtime(artifact, backend=backend))
        self.runtime = self._runtime.name

    def make(self, samples: Sequence[Sample], styles: NDArray[np.float32] | None) -> list[Pixels | str]:
        inputs: Arrays = {LABEL: np.stack([sample.label for sample in samples])}
        if self._spec.labels.has_edges:
            inputs[INSTANCE] = instance_maps(samples)
        if styles is not None:
            inputs[Z] = styles
        found = self._runtime.run(with_features(self._spec, inputs), [PIXELS, IMAGE])
        finite = [bool(np.isfinite(image).all()) for image in found[IMAGE]]
        return _only_finite(self._name, samples, list(found[PIXELS]), finite)


class _FolderImages(Images):
    """Finished images, found by the stems of their samples. Images of another size are resized, and counted."""

    def __init__(self, path: Path, size: Size) -> None:
        super().__init__()
        files = list_label_files(path)
        self._path, self._size = path, size
        self._twice = duplicate_stems(files)
        self._by_stem = {stem_of(file): file for file in files}
        self.runtime = f"{len(files)} files"

    def make(self, samples: Sequence[Sample], styles: NDArray[np.float32] | None) -> list[Pixels | str]:
        return [self._read(sample.stem) for sample in samples]

    def _read(self, stem: str) -> Pixels | str:
        if stem in self._twice:
            names = " and ".join(path.name for path in self._twice[stem])
            return f"{self._path}: holds {names}, and it is not clear which one is meant"
        if stem not in self._by_stem:
            return f"{self._path}: has no image {stem}"
        try:
            return read_photo(self._by_stem[stem], self._size)
        except LabelMapError as error:
            return error.message


def _only_finite(
    name: str, samples: Sequence[Sample], pixels: list[Pixels], finite: Sequence[bool]
) -> list[Pixels | str]:
    """Replace images that have NaN or infinity by a sentence: as pixels, such values would be any colour."""
    return [
        one if is_finite else f"{name}: the network makes NaN or infinity of {sample.stem}"
        for one, sample, is_finite in zip(pixels, samples, finite, strict=True)
    ]


_MARKS = (runs.MANIFEST_JSON, runs.CHECKPOINT_JSON, runs.GENERATOR_FILE)
