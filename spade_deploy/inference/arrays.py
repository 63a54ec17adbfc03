"""Make images from label maps that are arrays, in a runtime that is open."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, PIXELS, Arrays, Z, default_style, with_features
from spade_deploy.engines.base import Runtime
from spade_deploy.errors import ConfigError, InputRefusedError


def make_images(
    runtime: Runtime,
    labels: ArrayLike,
    instances: ArrayLike | None = None,
    styles: ArrayLike | None = None,
    features: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """N label maps -> N images, N x H x W x 3, uint8 RGB; one label map, H x W, -> one image, H x W x 3.

    labels: integers, the ids of the model's classes, of a size that the model takes. instances: integers of the same
    shape, one object id a pixel; where a model has edges and none are given, each map is one object. styles: N x z_dim
    numbers (z_dim for one map) of a model with a style vector; without them the default style, mostly zeros.
    features: N x 3 x H x W numbers (3 x H x W for one map) of a model with instance features; without them zeros.
    Raises InputRefusedError for ids, shapes and types that the model does not take, ConfigError for a style,
    features or instance maps that it has no use for.
    """
    spec = runtime.spec
    label = _integers(labels, "labels")
    is_one = label.ndim == 2
    inputs: Arrays = {LABEL: _converted(label[None] if is_one else label, spec.labels.id_type, "labels")}
    if spec.labels.has_edges:
        objects = np.zeros(label.shape, np.int32) if instances is None else _integers(instances, "instances")
        if objects.shape != label.shape:
            raise InputRefusedError(f"`instances` is of shape {objects.shape}, `labels` of {label.shape}")
        inputs[INSTANCE] = _converted(objects[None] if is_one else objects, "int32", "instances")
    elif instances is not None:
        raise ConfigError("`instances`: this model has no edges, so it takes no instance maps", hint="leave them out")
    if spec.z_dim is not None:
        count = len(inputs[LABEL])
        style = default_style(spec, count) if styles is None else np.asarray(styles)
        assert style is not None  # this model has one
        inputs[Z] = (style[None] if style.ndim == 1 else style).astype(np.float32)
    elif styles is not None:
        raise ConfigError("`styles`: this model has no style vector; its output follows from the labels alone")
    if spec.has_features and features is not None:
        seen = np.asarray(features, np.float32)
        inputs[FEATURES] = seen[None] if seen.ndim == 3 else seen
    elif features is not None:
        raise ConfigError("`features`: this model has no instance features; its output follows from the labels alone")
    inputs = with_features(spec, inputs)
    pixels: NDArray[np.uint8] = runtime.run(inputs, [PIXELS])[PIXELS]
    return pixels[0] if is_one else pixels


def _integers(values: ArrayLike, name: str) -> NDArray[Any]:
    found = np.asarray(values)
    if found.dtype.kind not in "iu":
        raise InputRefusedError(f"`{name}` holds {found.dtype}; ids are integers")
    if found.ndim not in (2, 3) or not found.size:
        raise InputRefusedError(f"`{name}` is of shape {found.shape}; it should be H x W, or N x H x W")
    return found


def _converted(values: NDArray[Any], kind: str, name: str) -> NDArray[Any]:
    """The same integers as another type. Raises InputRefusedError where it cannot hold one of them."""
    limits = np.iinfo(kind)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < limits.min or highest > limits.max:
        bad = lowest if lowest < limits.min else highest
        raise InputRefusedError(f"`{name}`: {bad} is out of range; allowed are at most {limits.min}..{limits.max}")
    return values.astype(kind)
