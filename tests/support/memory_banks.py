"""Label maps of blocks, photos for them, and a memory bank made by hand."""

from __future__ import annotations

import numpy as np

from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.segments import GRID
from spade_deploy.spec import LabelSpec

LABELS = LabelSpec(6)
RED, GREEN, BLUE = (250, 10, 20), (30, 240, 40), (50, 60, 230)


def blocks(seed: int, cell: int, side: int = 96, classes: int = 4) -> np.ndarray:
    """A map of square cells of random classes, side x side; regions of equal neighbours have many shapes."""
    ids = np.random.default_rng(seed).integers(0, classes, (side // cell, side // cell))
    return np.kron(ids, np.ones((cell, cell), int)).astype(np.uint8)


def photo_of(seed: int, side: int = 96) -> np.ndarray:
    """A photo of noise, side x side x 3."""
    return np.random.default_rng(1000 + seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def bank_of(
    patches: list[tuple[int, int, np.ndarray, np.ndarray]], depth: list[int], context: np.ndarray | None = None
) -> MemoryBank:
    """A bank of (class, photo, colours h x w x 3, inside h x w), in the order of their classes.

    Shapes are those of the patches; surroundings are the class alone, or `context` for all of them.
    """
    points = [((2 * np.arange(GRID) + 1) * side) // (2 * GRID) for _, _, _, inside in patches for side in inside.shape]
    grids = [
        inside[rows[:, None], columns[None]]
        for (*_, inside), rows, columns in zip(patches, points[::2], points[1::2], strict=True)
    ]
    own = [np.full((GRID, GRID), label) if context is None else context for label, *_ in patches]
    return MemoryBank(
        label=np.array([label for label, *_ in patches], np.int32),
        photo=np.array([photo for _, photo, *_ in patches], np.int32),
        mask=np.stack(grids),
        context=np.stack(own).astype(np.int16),
        size=np.array([inside.shape for *_, inside in patches], np.int32),
        colors=np.concatenate([colors.reshape(-1, 3) for _, _, colors, _ in patches]),
        inside=np.concatenate([inside.reshape(-1) for *_, inside in patches]),
        depth=np.array(depth, np.int32),
    )


def plain(height: int, width: int, color: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A patch of one colour, all of it inside."""
    return np.full((height, width, 3), color, np.uint8), np.ones((height, width), np.bool_)
