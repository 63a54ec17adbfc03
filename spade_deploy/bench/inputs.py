"""Label maps -> cases: the batches that every candidate runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, Arrays, Artifact, Z, joined, one_by_one, with_features
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.inference.size import checked_size
from spade_deploy.labels.files import resize_nearest
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.pairs import read_maps, require_instances, require_labels
from spade_deploy.lookup.tables import pixel_codes
from spade_deploy.settings import check_range
from spade_deploy.spec import MAX_BATCH, GeneratorSpec

SEGMAP = "segmap"
"""The name of a plain export's input."""


def read_cases(
    artifact: Artifact,
    labels: Path | None = None,
    instances: Path | None = None,
    batch_size: int = 1,
    size: Size | None = None,
    most: int | None = None,
) -> tuple[Arrays, ...]:
    """The cases of the folder `labels`, or the golden cases if `labels` is None."""
    if labels is not None:
        return folder_cases(artifact, labels, instances, batch_size, size, most)
    require_labels(labels, instances)
    return golden_cases(artifact, batch_size, size)


def golden_cases(artifact: Artifact, batch_size: int = 1, size: Size | None = None) -> tuple[Arrays, ...]:
    """The artifact's golden inputs, resized with nearest neighbour to `size` (height, width) where it is given."""
    spec = artifact.manifest.generator
    target = checked_size(spec, size)
    inputs = artifact.golden().inputs
    return batches([_resized(one, target) for one in one_by_one(inputs)], batch_size)


def folder_cases(
    artifact: Artifact,
    labels: Path,
    instances: Path | None,
    batch_size: int = 1,
    size: Size | None = None,
    most: int | None = None,
) -> tuple[Arrays, ...]:
    """The label maps of a folder (or one file), paired by stem with instance maps and resized to `size`.

    most: how many label maps are read at most, in the order of their names. Raises NotFoundError, ConfigError,
    LabelMapError.
    """
    spec = artifact.manifest.generator
    target = checked_size(spec, size)
    if not spec.labels.has_edges and instances is not None:
        raise ConfigError("`instances`: this model has no edge channel", hint="leave the flag out")
    found = find_label_maps(labels, instances, spec.labels)
    if instances is None:
        require_instances(found, spec.labels)
    maps = []
    for number, sample in enumerate(found.in_order[:most]):
        label, instance = read_maps(sample, spec.labels, target)  # it raises: no label map is left out in silence
        one: Arrays = {LABEL: label[None]}
        if instance is not None:
            one[INSTANCE] = instance[None]
        if spec.z_dim is not None:
            one[Z] = np.random.default_rng(number).standard_normal((1, spec.z_dim)).astype(np.float32)
        maps.append(with_features(spec, one, np.random.default_rng(number)))
    return batches(maps, batch_size)


def batches(maps: list[Arrays], batch_size: int) -> tuple[Arrays, ...]:
    """Single maps -> batches in turn; the last one is filled up from the beginning, so that all have one shape."""
    check_range("batch_size", batch_size, 1, MAX_BATCH)
    count = -(-len(maps) // batch_size)
    groups = [[maps[(k * batch_size + n) % len(maps)] for n in range(batch_size)] for k in range(count)]
    return tuple(joined(group) for group in groups)


def make_segmap(spec: GeneratorSpec, inputs: Arrays) -> NDArray[np.float32]:
    """The network's input as the untouched module takes it, N x L x H x W: one-hot, the edge map, instance features."""
    codes: NDArray[Any] = pixel_codes(spec, inputs[LABEL], inputs.get(INSTANCE)).astype(np.int64)
    batch, height, width = codes.shape
    segmap = np.zeros((batch, spec.labels.num_channels, height, width), np.float32)
    if spec.labels.has_edges:
        codes, segmap[:, -1] = codes // 2, codes % 2
    np.put_along_axis(segmap, codes[:, None], 1, axis=1)
    return np.concatenate([segmap, inputs[FEATURES]], axis=1) if FEATURES in inputs else segmap


def module_feeds(spec: GeneratorSpec, inputs: Arrays) -> Arrays:
    """What a plain export is fed: the segmap by its name, and the style where the model has one."""
    feeds: Arrays = {SEGMAP: make_segmap(spec, inputs)}
    return {**feeds, Z: inputs[Z]} if Z in inputs else feeds


def _resized(one: Arrays, size: Size) -> Arrays:
    found = {name: array for name, array in one.items() if name == Z}
    found |= {name: resize_nearest(array[0], size)[None] for name, array in one.items() if array.ndim == 3}
    if FEATURES in one:
        found[FEATURES] = np.stack([resize_nearest(channel, size) for channel in one[FEATURES][0]])[None]
    return found
