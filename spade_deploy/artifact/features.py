"""The instance features that a pix2pixHD may see beside the labels: three numbers a pixel, the same in all of a region.

They are means of what the encoder of the artifact makes of a photo (`inference/style.py`). The regions of a map are
those of its instance map, each id one of them; where there is none they are the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact.tensors import FEATURES, INSTANCE, LABEL, Arrays
from spade_deploy.spec import FEATURE_CHANNELS, GeneratorSpec


def with_features(
    spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]], rng: np.random.Generator | None = None
) -> Arrays:
    """The inputs of a graph, N maps, with features where the model sees some and the inputs have none.

    rng: draws a colour in -1..1 for each region, to prove and to measure with. Without it they are zeros, the middle
    of what an encoder gives: the default where there is no photo.
    """
    if not spec.has_features or FEATURES in inputs:
        return dict(inputs)
    count, height, width = inputs[LABEL].shape
    drawn = np.zeros((count, FEATURE_CHANNELS, height, width), np.float32)
    if rng is not None:
        for index, regions in enumerate(inputs.get(INSTANCE, inputs[LABEL])):
            ids, places = np.unique(regions, return_inverse=True)
            drawn[index] = rng.uniform(-1, 1, (FEATURE_CHANNELS, len(ids)))[:, places.reshape(regions.shape)]
    return {**inputs, FEATURES: drawn}


def region_means(features: NDArray[np.float32], regions: NDArray[Any]) -> NDArray[np.float32]:
    """Features C x H x W, and regions H x W, one id a pixel -> the mean over its region at each pixel, C x H x W."""
    ids, places = np.unique(regions, return_inverse=True)
    flat = places.ravel()
    counts = np.bincount(flat, minlength=len(ids))
    sums = np.stack([np.bincount(flat, channel.ravel(), len(ids)) for channel in features])
    means: NDArray[np.float32] = (sums / counts).astype(np.float32)[:, flat].reshape(features.shape)
    return means
