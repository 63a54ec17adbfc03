"""Maps as runs of equal numbers: the form of a map, or of a part of one, in a request's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, ImageTooLargeError, LabelMapError


@dataclass(frozen=True)
class RunLengths:
    """A map as runs of equal numbers, row by row: [value, length, value, length, ...]."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    runs: tuple[int, ...]
    """Value and length in turn; the lengths sum up to height x width."""

    def __str__(self) -> str:
        return "`runs`"

    def values(self, most_pixels: int) -> NDArray[np.int32]:
        """H x W int32. Raises LabelMapError."""
        pixels = self.height * self.width
        if self.height < 1 or self.width < 1:
            raise LabelMapError(
                f"`runs`: {self.height} x {self.width} is not a size", hint="height and width in pixels"
            )
        if pixels > most_pixels:
            raise ImageTooLargeError(f"`runs`: {self.width} x {self.height} pixels exceed the limit of {most_pixels}")
        flat = np.asarray(self.runs, np.int64)
        ids, lengths = flat[::2], flat[1::2]
        wrong = None
        if len(flat) % 2 or not len(flat):
            wrong = f"{len(flat)} numbers are not pairs of a value and a length"
        elif (lengths < 1).any():
            wrong = f"{int(lengths.min())} is not a length"
        elif int(lengths.sum()) != pixels:
            wrong = f"the lengths add up to {int(lengths.sum())}, not to {self.height} x {self.width} = {pixels}"
        if wrong:
            hint = "[value, length, value, length, ...] row by row, with lengths of at least 1"
            raise LabelMapError(f"`runs`: {wrong}", hint=hint)
        if int(np.abs(ids).max()) > np.iinfo(np.int32).max:
            raise LabelMapError(f"`runs`: {int(np.abs(ids).max())} is not an id")
        return np.repeat(ids.astype(np.int32), lengths).reshape(self.height, self.width)


def run_lengths(value: Mapping[str, Any], name: str, most_pixels: int) -> RunLengths:
    """The members height, width and runs of a request's JSON. Raises ConfigError, which names the field `name`."""
    height, width, runs = value["height"], value["width"], value["runs"]
    if not (is_int(height) and is_int(width) and isinstance(runs, list) and all(map(is_int, runs))):
        raise ConfigError(f"`{name}`: height, width and all of runs have to be integers")
    if len(runs) > 2 * most_pixels:
        raise ImageTooLargeError(f"`{name}`: {len(runs)} numbers are more than {most_pixels} pixels need")
    if any(abs(number) >= 2**31 for number in (height, width, *runs)):
        raise ConfigError(f"`{name}`: a number is out of range")
    return RunLengths(height, width, tuple(runs))


def is_int(value: Any) -> bool:
    """Whether a value of JSON is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)
