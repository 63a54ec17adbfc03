"""Which segment of a memory bank is the most similar to a segment of a label map.

The score is that of Qi et al., "Semi-Parametric Image Synthesis" (CVPR 2018), section 4: the intersection over union of
the shapes plus that of the surroundings, among segments of the same class. Both are of boxes that are scaled to one
size. So the intersection over union of the boxes in pixels, corner on corner, is added: otherwise a patch of a few
pixels would fill a whole image, if both are rectangles. Points and pixels are counted, so that the same maps have the
same scores everywhere; of equal scores the first segment of the bank is taken.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.segments import GRID, OUTSIDE, Segments

NOTHING = -1
"""It stands for a segment whose class has none in the bank."""

_AT_ONCE = 1 << 24
"""How many points are compared at once, so that memory stays small."""


def retrieve(bank: MemoryBank, wanted: Segments, excluded: Collection[int] = ()) -> NDArray[np.int64]:
    """For each segment the most similar one of the bank, by its index there; or NOTHING.

    excluded: the photos, by their numbers, whose segments must not be taken.
    """
    found = np.full(len(wanted), NOTHING, np.int64)
    allowed = ~np.isin(bank.photo, np.array(sorted(excluded), bank.photo.dtype))
    for label in np.unique(wanted.label):
        first, end = np.searchsorted(bank.label, [label, label + 1])
        rows = first + np.flatnonzero(allowed[first:end])
        if not len(rows):
            continue
        queries = np.flatnonzero(wanted.label == label)
        alike = scores(wanted.mask[queries], wanted.context[queries], bank.mask[rows], bank.context[rows])
        alike += box_scores(wanted.box[queries, 2:], bank.size[rows])
        found[queries] = rows[alike.argmax(axis=1)]
    return found


def scores(
    mask: NDArray[np.bool_],
    context: NDArray[np.int16],
    bank_mask: NDArray[np.bool_],
    bank_context: NDArray[np.int16],
) -> NDArray[np.float64]:
    """How alike shapes and surroundings are, of each of Q segments and each of S, Q x S from 0 to 2.

    All arrays have GRID x GRID points.
    """
    own, other = mask.reshape(len(mask), -1).astype(np.float32), bank_mask.reshape(len(bank_mask), -1)
    common = (own @ other.T.astype(np.float32)).astype(np.float64)  # counts, which float32 holds exactly
    union = own.sum(axis=1, dtype=np.float64)[:, None] + other.sum(axis=1, dtype=np.float64)[None] - common
    shape = common / np.maximum(union, 1)  # a thin shape may have no point
    around, bank_around = context.reshape(len(context), -1), bank_context.reshape(len(bank_context), -1)
    equal = np.empty(common.shape)
    step = max(1, _AT_ONCE // max(1, len(bank_around) * GRID**2))
    for start in range(0, len(around), step):
        part = around[start : start + step, None]
        equal[start : start + step] = ((part == bank_around[None]) & (part != OUTSIDE)).sum(axis=2)
    valid, bank_valid = (around != OUTSIDE).sum(axis=1)[:, None], (bank_around != OUTSIDE).sum(axis=1)[None]
    result: NDArray[np.float64] = shape + equal / np.maximum(valid + bank_valid - equal, 1)
    return result


def box_scores(size: NDArray[np.int64], bank_size: NDArray[np.int32]) -> NDArray[np.float64]:
    """How alike the sizes in pixels are, Q x 2 and S x 2: Q x S, above 0 and at most 1."""
    own, other = size[:, None].astype(np.float64), bank_size[None].astype(np.float64)
    common = np.minimum(own, other).prod(axis=2)
    result: NDArray[np.float64] = common / (own.prod(axis=2) + other.prod(axis=2) - common)
    return result
