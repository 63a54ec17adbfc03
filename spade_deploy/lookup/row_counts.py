"""Tables with few different numbers of rows, for an engine that prepares anew for each number that it has not met.

Every label map has other numbers of windows and of patterns. OpenVINO makes machine code for each new shape of a
product in bf16 or int8, which takes as long as a large part of a small model's image. With rows that nobody looks up
at the end of each table the numbers become those of a coarse scale, so that after some maps all have been met. NumPy
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays
from spade_deploy.lookup.tables import level_names, modulated_channels
from spade_deploy.spec import GeneratorSpec

STEPS = 8
"""How many numbers of rows there are between one and its double. More rows cost time, and so do more numbers: with 8
the tables of maps grow by 4.5 % in the mean (at most an eighth)."""


def rounded_count(rows: int) -> int:
    """The next number of the scale that is not smaller: all up to 16, then 18, 20 ... 32, 36, 40 ... 64, 72, ..."""
    step = max(1, (1 << max(rows - 1, 0).bit_length() >> 1) // STEPS)
    return -(-rows // step) * step


def with_rounded_counts(spec: GeneratorSpec, tables: Mapping[str, NDArray[Any]]) -> Arrays:
    """A lookup graph's inputs -> the same ones with longer tables: the graph makes the same image of them.

    A new row of `codes` or `patterns` holds zeros, which are allowed there, and no index points to it. 'Outside the
    image' is the row after the last one of `codes`, so that its number in `patterns` moves.
    """
    found = dict(tables)
    for stride in modulated_channels(spec):
        codes, patterns, _ = level_names(stride)
        rows = len(found[codes])
        longer = _lengthened(found[codes])
        if len(longer) > rows:
            found[codes] = longer
            found[patterns] = np.where(found[patterns] == rows, np.int32(len(longer)), found[patterns])
        found[patterns] = _lengthened(found[patterns])
    return found


def _lengthened(table: NDArray[Any]) -> NDArray[Any]:
    """The table itself if its number of rows is on the scale."""
    more = rounded_count(len(table)) - len(table)
    return np.pad(table, ((0, more), (0, 0))) if more else table
