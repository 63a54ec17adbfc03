"""What an edit changes: rectangles of a map, each as run lengths with the place of its first pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, ImageTooLargeError, LabelMapError, quoted
from spade_deploy.serving.maps import Maps, instance_values, label_values
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.run_lengths import RunLengths, is_int, run_lengths

PATCHES, INSTANCE_PATCHES = "patches", "instance_patches"
"""The fields of an edit that hold rectangles of the label map and of the instance map."""
MOST_PATCHES = 4096
"""Rectangles of one edit."""
_MEMBERS = {"x", "y", "height", "width", "runs"}


@dataclass(frozen=True)
class Patch:
    """A rectangle of a map that is new."""

    x: int
    """The column of its first pixel."""
    y: int
    """The row of its first pixel."""
    part: RunLengths
    """Its size and its numbers."""


def edited(model: ServedModel, maps: Maps, fields: Mapping[str, Any], most_pixels: int) -> Maps:
    """The maps with the rectangles of an edit in them, later ones over earlier ones; `maps` itself stays as it is.

    fields: those of the request. Raises ConfigError, which names a field that cannot be read, LabelMapError for a
    rectangle that does not lie inside the map, and for ids that the model does not know.
    """
    of_label, of_instance = (_patches(fields, name, most_pixels) for name in (PATCHES, INSTANCE_PATCHES))
    label = _patched(maps.label, of_label, PATCHES, lambda part: label_values(model, part, most_pixels))
    instance = maps.instance
    if of_instance:
        if instance is None:
            raise ConfigError(
                f"`{INSTANCE_PATCHES}`: the drawing has no instance map", hint="begin it with `label` and `instance`"
            )
        instance = _patched(instance, of_instance, INSTANCE_PATCHES, lambda part: instance_values(part, most_pixels))
    return Maps(label, instance)


def _patches(fields: Mapping[str, Any], name: str, most_pixels: int) -> list[Patch]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise ConfigError(f"`{name}`: {quoted(value)} is not a list of {{x, y, height, width, runs}}")
    if len(value) > MOST_PATCHES:
        raise ImageTooLargeError(f"`{name}`: {len(value)} rectangles; {MOST_PATCHES} are read")
    found = [_patch(one, name, most_pixels) for one in value]
    if sum(one.part.height * one.part.width for one in found) > most_pixels:
        raise ImageTooLargeError(f"`{name}`: the rectangles have more than the {most_pixels} pixels that are read")
    return found


def _patch(value: Any, name: str, most_pixels: int) -> Patch:
    if not isinstance(value, Mapping) or set(value) != _MEMBERS:
        raise ConfigError(f"`{name}`: {quoted(value)} is not {{x, y, height, width, runs}}")
    if not (is_int(value["x"]) and is_int(value["y"])):
        raise ConfigError(f"`{name}`: x and y are integers")
    return Patch(value["x"], value["y"], run_lengths(value, name, most_pixels))


def _patched(
    values: NDArray[Any], patches: Sequence[Patch], name: str, decode: Callable[[RunLengths], NDArray[Any]]
) -> NDArray[Any]:
    if not patches:
        return values
    rows, columns = values.shape
    found = np.array(values)
    for one in patches:
        height, width = one.part.height, one.part.width
        if min(one.x, one.y) < 0 or min(height, width) < 1 or one.x + width > columns or one.y + height > rows:
            raise LabelMapError(
                f"`{name}`: {width} x {height} pixels from column {one.x} and row {one.y} on do not lie inside the map"
                f" of {columns} x {rows}"
            )
        found[one.y : one.y + height, one.x : one.x + width] = decode(one.part)
    return found
