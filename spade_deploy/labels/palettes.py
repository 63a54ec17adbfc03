"""Colours of label sets, and what a label file's palette says about its indices: whether they are the ids.

Label files are read by index, whatever their colours are. Two kinds of palettes show that a program has renumbered the
indices: one of greys, which PNG optimisers make of greyscale files, and one with the label set's colours in another
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec, Rgb

_SHARE = 0.5  # the share of used colours that, at other indices of the label set, is worth a look


@dataclass(frozen=True)
class MovedPalette:
    """A palette whose colours contradict its indices."""

    mapping: dict[int, int]
    """For each index in use the file value that its colour stands for (255 is unknown)."""
    is_certain: bool
    """Whether all colours stand for allowed ids, so that reading by index would be wrong; else it is worth a look."""
    is_grey: bool
    """Whether the colours are greys, whose values are then the ids."""
    labels: LabelSpec
    """The label set that the palette was compared with."""

    @property
    def message(self) -> str:
        index, value = next((index, value) for index, value in self.mapping.items() if index != value)
        if not self.is_grey:
            return (
                f"the palette has the label set's colours at other indices: index {index} has the colour of id {value}"
                f" ({self.labels.name_of(value)}), yet files are read by index"
            )
        text = f"the palette is of greys other than their index: index {index} is the grey {value}"
        if self.is_certain:
            return f"{text}; PNG optimisers make such files of greyscale ones, whose ids are the greys"
        return f"{text}; it is read by index, as the greys are no ids here or repeat"


def effective_palette(labels: LabelSpec) -> tuple[Rgb, ...]:
    """The label set's own palette, or `voc_palette` where it has none."""
    return labels.palette or voc_palette(labels.num_ids)


def voc_palette(count: int) -> tuple[Rgb, ...]:
    """PASCAL VOC's colour map: the bits of an id are dealt to red, green and blue in turn, from the top bit down."""
    return tuple(
        (_every_third_bit(label_id), _every_third_bit(label_id >> 1), _every_third_bit(label_id >> 2))
        for label_id in range(count)
    )


def _every_third_bit(value: int) -> int:
    return sum(((value >> (3 * k)) & 1) << (7 - k) for k in range(8))


def moved_palette(indices: NDArray[Any], palette: Sequence[Rgb], labels: LabelSpec) -> MovedPalette | None:
    """Find out if the palette of a file contradicts its indices; None for an ordinary palette file.

    indices: H x W of the file. palette: its colours, maybe fewer than there are indices.
    """
    used = [int(index) for index in np.unique(indices)]
    if not used or used[-1] >= len(palette):
        return None
    colors = {index: palette[index] for index in used}
    for known in (labels.palette, voc_palette(256)):
        if known and all(index < len(known) and known[index] == color for index, color in colors.items()):
            return None  # the colours of the label set, or VOC's, in their order
    if all(len(set(color)) == 1 for color in colors.values()):
        return _moved_greys(colors, palette, labels)
    return _moved_colors(colors, labels)


def _moved_greys(colors: dict[int, Rgb], palette: Sequence[Rgb], labels: LabelSpec) -> MovedPalette | None:
    mapping = {index: color[0] for index, color in colors.items()}
    if all(index == grey for index, grey in mapping.items()):
        return None
    greys = set(mapping.values())
    legal = all(g < labels.num_ids or (g == UNKNOWN_VALUE and labels.unknown_id is not None) for g in greys)
    # A single grey among colours may be the colour of a class; a palette of nothing but greys was a greyscale file.
    is_greyscale = len(greys) > 1 or all(len(set(color)) == 1 for color in palette)
    return MovedPalette(mapping, legal and len(greys) == len(mapping) and is_greyscale, True, labels)


def _moved_colors(colors: dict[int, Rgb], labels: LabelSpec) -> MovedPalette | None:
    ids_of: dict[Rgb, list[int]] = {}
    for label_id, color in enumerate(effective_palette(labels)):
        ids_of.setdefault(color, []).append(label_id)
    mapping = {
        index: index if index in ids_of[color] else ids_of[color][0]
        for index, color in colors.items()
        if color in ids_of
    }
    moved = sum(index != value for index, value in mapping.items())
    if len(mapping) == len(colors):
        return MovedPalette(mapping, True, False, labels) if moved else None
    if labels.palette and moved >= 2 and moved >= _SHARE * len(colors):
        return MovedPalette(mapping, False, False, labels)
    return None
