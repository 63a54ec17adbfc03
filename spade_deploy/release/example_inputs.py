"""The label maps that an export is proved on (golden) and that int8 is calibrated on.

They come from a folder where one is named, else from the data set that the model was trained on; else they are
synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z, with_features
from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, NotFoundError
from spade_deploy.labels.files import (
    label_dtype,
    synthetic_label_maps,
)
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import read_maps, require_instances
from spade_deploy.labels.same_photos import copies_trained_on
from spade_deploy.runs import CheckpointInfo
from spade_deploy.runs.learned import learned_before
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training.dataset import SampleSource, validation_labels
from spade_deploy.training.evaluator import photo_pixels
from spade_deploy.training.splits import open_held_out, open_source

Photos = NDArray[np.uint8]
"""Real photos, N x H x W x 3."""

Maps = tuple[NDArray[Any], NDArray[Any] | None, str, Photos | None]
"""Label maps N x H x W, their instance maps or None, a text on where they came from, and their photos or None."""


_TRAINING = "training"


@dataclass(frozen=True)
class ExampleInputs:
    """Label maps as the dense graph takes them."""

    inputs: Arrays
    """The dense graph's inputs by name, N of each."""

    described: str
    """Where they came from, for people."""

    photos: Photos | None = None
    """The real photos of the label maps, where the data set has them."""


def golden_inputs(
    spec: GeneratorSpec, info: CheckpointInfo, labels: Path | None, instances: Path | None, count: int
) -> ExampleInputs:
    """The first `count` maps of a folder, or of the data set's held-out split.

    Broken files are left out, and counted. Raises NotFoundError if a folder is named and holds no usable file.
    """
    if labels is not None:
        ids, objects, described, photos = _read_maps(spec, "labels", labels, instances, count, is_spaced=False)
    else:
        ids, objects, described, photos = _data_set_maps(spec, info, open_held_out, count, seed=0, name="labels")
    return ExampleInputs(_graph_inputs(spec, ids, objects, seed=0), described, photos)


def calibration_inputs(
    spec: GeneratorSpec, info: CheckpointInfo, labels: Path | None, instances: Path | None, count: int
) -> ExampleInputs:
    """`count` maps, evenly spaced, of a folder or of the data set's training labels. Raises as `golden_inputs`."""
    if labels is not None:
        hint = "spade export --int8 --calibrate DIR --calibrate-instances DIR"
        found = find_label_maps(labels, instances, spec.labels)
        require_instances(found, spec.labels, "`calibrate_instances` is needed", hint)
        ids, objects, described, _ = _read_maps(spec, "calibrate", labels, instances, count, is_spaced=True)
    else:
        ids, objects, described, _ = _data_set_maps(spec, info, _open_training, count, seed=1, name="calibrate")
    return ExampleInputs(_graph_inputs(spec, ids, objects, seed=1), f"{len(ids)} {described}")


def _open_training(config: DataConfig, labels: LabelSpec) -> tuple[SampleSource, str]:
    return open_source(config, "train", labels), _TRAINING


def _where_from(config: DataConfig, split: str, source: SampleSource, init: str) -> str:
    """The split of a data set in words, which never calls held out what the run, or one before it, was trained on."""
    learned = 0 if split in ("train", _TRAINING) else learned_before(init).count(source.record())
    if learned is None:
        return f"the data set's {split} split (it is not known whether the run's initial weights learned from them)"
    if learned:
        return f"the data set's {split} split ({learned} of its {len(source)} samples were learned in an earlier run)"
    if copies := len(copies_trained_on(config, split)) if split != _TRAINING else 0:
        return f"the data set's {split} split ({copies} of its {len(source)} photos are trained on, too)"
    if split == "val" and config.holdout is not None:
        return "the data set's held-out samples"
    return "the training samples, since none are held out" if split == "train" else f"the data set's {split} split"


def _data_set_maps(
    spec: GeneratorSpec,
    info: CheckpointInfo,
    open_split: Callable[[DataConfig, LabelSpec], tuple[SampleSource, str]],
    count: int,
    *,
    seed: int,
    name: str,
) -> Maps:
    why = "an imported model has no data set"
    if info.data is not None:
        try:
            config = DataConfig.from_json(info.data)
            source, split = open_split(config, spec.labels)
            label, instance, photo = validation_labels(source, count)
            objects = None if instance is None else instance.numpy()
            described = f"label maps of {_where_from(config, split, source, info.init)}"
            return label.numpy(), objects, described, None if config.labels_only else photo_pixels(photo)
        except (DatasetError, NotFoundError, LabelMapError, ConfigError) as error:
            why = error.message
    ids, objects = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed=seed)
    # Reports keep this text and show it as it is, so it names what is typed.
    return ids, objects, f"synthetic label maps ({why}; `spade export ... --{name} DIR` takes real ones)", None


def _read_maps(
    spec: GeneratorSpec, name: str, folder: Path, instances: Path | None, count: int, *, is_spaced: bool
) -> Maps:
    size = (spec.height, spec.width)
    pairing = find_label_maps(folder, instances, spec.labels)
    files = pairing.in_order
    wanted = files[:count]
    if is_spaced and len(files) > count:
        wanted = [files[index * len(files) // count] for index in range(count)]
    found: list[tuple[NDArray[Any], NDArray[Any] | None]] = []
    broken: list[str] = []
    for sample in dict.fromkeys([*wanted, *files]):  # other files replace those that cannot be read
        if len(found) == count:
            break
        try:
            found.append(read_maps(sample, spec.labels, size))
        except LabelMapError as error:
            broken.append(error.message)
    if not found:
        reason = f"; the first of {len(broken)} that cannot be used: {broken[0]}" if broken else ""
        raise NotFoundError(
            f"`{name}`: {folder} holds no usable label maps{reason}", hint="`spade check-labels DIR` says why"
        )
    skipped = f" ({len(broken)} skipped, the first: {broken[0]})" if broken else ""
    instance = [entry[1] for entry in found if entry[1] is not None]
    return (
        np.stack([entry[0] for entry in found]),
        np.stack(instance) if instance else None,
        f"label maps of {folder}{skipped}",
        None,
    )


def _graph_inputs(spec: GeneratorSpec, ids: NDArray[Any], objects: NDArray[Any] | None, seed: int) -> Arrays:
    inputs: Arrays = {LABEL: ids.astype(label_dtype(spec.labels))}
    if spec.labels.has_edges:
        inputs[INSTANCE] = (np.zeros(ids.shape) if objects is None else objects).astype(np.int32)
    if spec.z_dim is not None:
        inputs[Z] = np.random.default_rng(seed).standard_normal((len(ids), spec.z_dim)).astype(np.float32)
    return with_features(spec, inputs, np.random.default_rng(seed))
