"""The memory bank of SIMS: segments of training photos with their colours."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError
from spade_deploy.retrieval.segments import GRID


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Segments of photos, S of them, by class and then in the order of their photos. Raises ConfigError."""

    label: NDArray[np.int32]
    """The class of each segment, S, ascending."""
    photo: NDArray[np.int32]
    """The number of the training sample that each segment is of, S."""
    mask: NDArray[np.bool_]
    """Their shapes, S x GRID x GRID, see `Segments`."""
    context: NDArray[np.int16]
    """The classes in and around them, S x GRID x GRID, see `Segments`."""
    size: NDArray[np.int32]
    """Height and width of each patch of colours, S x 2."""
    colors: NDArray[np.uint8]
    """The pixels of all patches, one patch after the other and row by row, P x 3 RGB."""
    inside: NDArray[np.bool_]
    """Which of these pixels are of the segment, P; the others lie beside it in its bounding box."""
    depth: NDArray[np.int32]
    """For each class the place in the order of pasting, one for each id of the labels: 0 lies behind all others."""

    def __post_init__(self) -> None:
        count, pixels = len(self.label), int(self.size.astype(np.int64).prod(axis=-1).sum())
        shapes = {
            "label": (count,),
            "photo": (count,),
            "mask": (count, GRID, GRID),
            "context": (count, GRID, GRID),
            "size": (count, 2),
            "colors": (pixels, 3),
            "inside": (pixels,),
            "depth": self.depth.shape[:1],
        }
        for name, kind in BANK_TYPES.items():
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shapes[name]:
                expected = " x ".join(map(str, shapes[name]))
                found = " x ".join(map(str, array.shape))
                raise ConfigError(f"memory bank: {name} is {array.dtype} of {found}, expected {kind} of {expected}")
        if count and not (self.label[0] >= 0 and self.label[-1] < len(self.depth) and (np.diff(self.label) >= 0).all()):
            raise ConfigError(f"memory bank: label is not ascending from 0 on and below {len(self.depth)}")
        if (self.size < 1).any():
            raise ConfigError("memory bank: size has a patch without pixels")

    def __deepcopy__(self, memo: Any) -> MemoryBank:
        return self  # nothing in it ever changes

    def __len__(self) -> int:
        return len(self.label)

    @property
    def nbytes(self) -> int:
        """How much memory the arrays take."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def patch(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The colours of a segment's bounding box, h x w x 3, and which of its pixels are of the segment, h x w."""
        height, width = self.size[index]
        pixels = slice(self._starts[index], self._starts[index] + height * width)
        return self.colors[pixels].reshape(height, width, 3), self.inside[pixels].reshape(height, width)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        ends = np.cumsum(self.size.astype(np.int64).prod(axis=1))
        return np.concatenate([[0], ends[:-1]]) if len(ends) else ends


BANK_TYPES = {
    "label": np.dtype(np.int32),
    "photo": np.dtype(np.int32),
    "mask": np.dtype(np.bool_),
    "context": np.dtype(np.int16),
    "size": np.dtype(np.int32),
    "colors": np.dtype(np.uint8),
    "inside": np.dtype(np.bool_),
    "depth": np.dtype(np.int32),
}
"""The arrays of a memory bank by name, each with its type."""
