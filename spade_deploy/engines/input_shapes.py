"""From a shape profile of images to the shapes of every input of a graph.

The tables of a lookup graph have sizes of their own: how many patterns a map has is known only when the map comes. So
an engine takes from one pattern up to the largest possible number, and is tuned for the share of patterns that real
label maps usually have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from spade_deploy.artifact import CANVAS, FEATURES, INSTANCE, LABEL, POSITION, Z
from spade_deploy.errors import ConfigError
from spade_deploy.lookup.tables import LATENT, LATENT_KERNEL, level_names, modulated_channels, num_codes
from spade_deploy.retrieval.canvas import CANVAS_CHANNELS
from spade_deploy.spec import FEATURE_CHANNELS, Extent, GeneratorSpec, GraphKind, ShapeProfile

Shape = tuple[int, ...]
USUAL_SHARE = {1: 0.1, 2: 0.22, 4: 0.4, 8: 0.6, 16: 0.8}
"""The share of patterns among pixels, by stride, for which an engine is tuned. It is that of COCO-Stuff maps at
256 x 256, rounded up (benchmarks/patterns.py); coarser strides have nearly as many patterns as pixels."""


def tensor_ranges(spec: GeneratorSpec, kind: GraphKind, profile: ShapeProfile) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Least, best and most shape of every input by name, in the graph's order.

    Raises ConfigError for a profile that the model cannot run: sizes that are no multiples of its stride, or sizes
    other than its own if that one is fixed.
    """
    _check(spec, profile)
    extents = (profile.least, profile.best, profile.most)
    ranges: dict[str, tuple[Shape, Shape, Shape]] = {}
    if kind is GraphKind.DENSE:
        ranges[LABEL] = extents
        if spec.labels.has_edges:
            ranges[INSTANCE] = extents
    else:
        if spec.is_dynamic:
            ranges[LATENT] = _each(extents, lambda extent: (*_at(extent, stride=spec.stride), LATENT_KERNEL**2))
        for stride in modulated_channels(spec):
            codes, patterns, index = level_names(stride)
            taps = spec.window_kernel**2
            # There is at most one window of either kind for each pixel, as no window lies around a tap outside, and
            # windows of one pixel are no more than there are codes.
            most = min(_pixels(profile.most, stride), num_codes(spec) if taps == 1 else sys.maxsize)
            usual = min(most, max(1, int(_pixels(profile.best, stride) * USUAL_SHARE.get(stride, 1.0))))
            ranges[codes] = ((1, taps), (usual, taps), (most, taps))
            ranges[patterns] = ((1, taps), (usual, taps), (most, taps))
            ranges[index] = _each(extents, partial(_at, stride=stride))
    if spec.has_positions:
        ranges[POSITION] = _each(extents, lambda extent: (extent[0], 2, *extent[1:]))
    if spec.has_bank:
        ranges[CANVAS] = _each(extents, lambda extent: (extent[0], CANVAS_CHANNELS, *extent[1:]))
    if spec.has_features:
        ranges[FEATURES] = _each(extents, lambda extent: (extent[0], FEATURE_CHANNELS, *extent[1:]))
    if spec.z_dim is not None:
        z_dim = spec.z_dim
        ranges[Z] = _each(extents, lambda extent: (extent[0], z_dim))
    return ranges


def default_profile(spec: GeneratorSpec) -> ShapeProfile:
    """One image of the model's own size up to a batch of four."""
    size = (spec.height, spec.width)
    return ShapeProfile((1, *size), (1, *size), (4, *size))


def _check(spec: GeneratorSpec, profile: ShapeProfile) -> None:
    for extent in (profile.least, profile.best, profile.most):
        for what, size, own in (("height", extent[1], spec.height), ("width", extent[2], spec.width)):
            if not spec.takes_side(size):
                raise ConfigError(f"`profile`: {what} {size} of {profile} is not a {spec.side_rule}")
            if not spec.is_dynamic and size != own:
                raise ConfigError(f"`profile`: {what} {size} of {profile}: a model with a style vector has {own} alone")


def _each(extents: tuple[Extent, Extent, Extent], shape_of: Callable[[Extent], Shape]) -> tuple[Shape, Shape, Shape]:
    least, best, most = (shape_of(extent) for extent in extents)
    return least, best, most


def _at(extent: Extent, *, stride: int) -> Extent:
    return extent[0], extent[1] // stride, extent[2] // stride


def _pixels(extent: Extent, stride: int) -> int:
    batch, height, width = _at(extent, stride=stride)
    return batch * height * width
