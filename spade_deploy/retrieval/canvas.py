"""The canvas: what the memory bank gives for a label map, pasted segment by segment. Training and deployment share it.

Each segment of the map is covered by the patch of the most similar segment of the bank, scaled to its bounding box.
Patches may reach beyond the segment. They are pasted from the back to the front: by class, those whose segments were
the largest in the training photos first, and within a class the larger ones first. Then the pixels at the borders of
classes are taken away, where patches fit the least. What no patch covers is a hole, which the network fills.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.retrieve import NOTHING, retrieve
from spade_deploy.retrieval.segments import find_segments

CANVAS_CHANNELS = 4
"""Red, green and blue in -1..1, zero in a hole; then 1 in a hole and 0 elsewhere."""
DROPPED_SHARE = 0.1
"""In training so many segments get no patch, so that the network learns to fill a whole segment."""
BORDER_SHARE = 1 / 128
"""The pixels that are taken away on each side of a border between classes, as a share of the shorter side."""


def make_canvases(bank: MemoryBank | None, label: NDArray[Any], unknown_id: int | None = None) -> NDArray[np.float32]:
    """Label maps N x H x W -> canvases N x CANVAS_CHANNELS x H x W. Without a bank all of it is a hole."""
    if bank is None:
        return np.stack([_as_input(*_empty(one.shape)) for one in label])
    return np.stack([make_canvas(bank, one, unknown_id) for one in label])


def make_canvas(
    bank: MemoryBank,
    label: NDArray[Any],
    unknown_id: int | None = None,
    *,
    excluded: Collection[int] = (),
    rng: np.random.Generator | None = None,
) -> NDArray[np.float32]:
    """A label map H x W -> its canvas, CANVAS_CHANNELS x H x W.

    unknown_id: the id of unknown pixels, which stay a hole. For training: excluded are the photos, by their numbers in
    the bank, whose segments must not be taken, and rng leaves out segments at random. Without rng nothing is random.
    """
    found = find_segments(label, unknown_id)
    chosen = retrieve(bank, found, excluded)
    if rng is not None:
        chosen[rng.random(len(found)) < DROPPED_SHARE] = NOTHING
    colors, is_hole = _empty(label.shape)
    for index in np.lexsort((-found.area, bank.depth[found.label])):  # stable, so that equal ones keep their order
        if chosen[index] == NOTHING:
            continue
        top, left, height, width = found.box[index].tolist()
        patch, inside = _resized(*bank.patch(chosen[index]), (height, width))
        here = (slice(top, top + height), slice(left, left + width))
        colors[here][inside] = patch[inside]
        is_hole[here][inside] = False
    is_hole |= near_borders(label)
    return _as_input(colors, is_hole)


def near_borders(label: NDArray[Any]) -> NDArray[np.bool_]:
    """The pixels H x W that are too close to another class."""
    near = np.zeros(label.shape, np.bool_)
    down, across = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    near[1:] |= down
    near[:-1] |= down
    near[:, 1:] |= across
    near[:, :-1] |= across
    for _ in range(max(1, round(BORDER_SHARE * min(label.shape))) - 1):
        wider = near.copy()
        wider[1:] |= near[:-1]
        wider[:-1] |= near[1:]
        wider[:, 1:] |= near[:, :-1]
        wider[:, :-1] |= near[:, 1:]
        near = wider
    return near


def canvas_pixels(canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A canvas as an image, H x W x 3, for people: holes are white."""
    pixels: NDArray[np.uint8] = np.rint((canvas[:3] + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    pixels[canvas[3] > 0] = 255
    return pixels


def _empty(shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    return np.zeros((*shape, 3), np.uint8), np.ones(shape, np.bool_)


def _as_input(colors: NDArray[np.uint8], is_hole: NDArray[np.bool_]) -> NDArray[np.float32]:
    canvas = np.empty((CANVAS_CHANNELS, *is_hole.shape), np.float32)
    canvas[:3] = np.where(is_hole, 0, colors.transpose(2, 0, 1) / np.float32(127.5) - 1)
    canvas[3] = is_hole
    return canvas


def _resized(
    colors: NDArray[np.uint8], inside: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A patch scaled to height and width: its colours bilinear, its shape nearest."""
    if inside.shape == size:
        return colors, inside
    wanted = (size[1], size[0])
    scaled = Image.fromarray(colors).resize(wanted, Image.Resampling.BILINEAR)
    shape = Image.fromarray(inside.astype(np.uint8)).resize(wanted, Image.Resampling.NEAREST)
    return np.asarray(scaled), np.asarray(shape) > 0
