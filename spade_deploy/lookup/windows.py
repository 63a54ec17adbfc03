"""The distinct windows of one integer map: every pixel's k x k and (2k - 1) x (2k - 1) window, numbered. NumPy only.

The result is exact, and found fast. Most windows lie inside one region and have one code, by which they are numbered.
The others are ranked by integer keys that stand for the whole window, never by a hash. The key of a small window is
made of its k*k codes, that of a large one of its four corner windows, which cover it. Small windows whose centres lie
outside the image are ranked with the rest, so that the corners of a border pixel's window exist too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Digit = tuple[NDArray[Any], int]
"""A column of digits and its base: digits are in 0..base-1."""

_MAX_KEY = (1 << 63) - 1
_HASH_FACTORS = (0x9E3779B1, 0x85EBCA77)
"""Odd factors, one for each direction: with a single one, a window and its transpose would have the same hash."""


@dataclass(frozen=True)
class LevelPatterns:
    """The distinct windows of one resolution; all int32."""

    codes: Ints
    """U x k*k: windows of pixel codes, taps row by row; `num_codes` stands for outside the image."""
    patterns: Ints
    """P x k*k: windows of (2k - 1) x (2k - 1) pixels as rows of `codes`, one for each of the k*k taps; U stands for a
    tap whose centre is outside the image, where the hidden map is zero."""
    index: Ints
    """N x h x w: the row of `patterns` of every pixel."""


class WindowGrid:
    """The codes of one level, padded so that every window that touches the image exists, as one flat array.

    A window is named by the flat position of its first tap; tap (i, j) lies `i * self.width + j` further on. Flat
    shifts run over the ends of rows; the values that arise there are never read, or masked out.
    """

    def __init__(self, dense: NDArray[Any], names: Ints, kernel: int) -> None:
        self.kernel, self.names, self.outside = kernel, names, len(names) - 1
        count, self.rows, self.columns = dense.shape
        self.reach = kernel - 1  # how far a pixel's large window reaches to each side
        self.shape = (count, self.rows + 2 * self.reach, self.columns + 2 * self.reach)
        self.width = self.shape[2]
        self.num_pixels = dense.size
        padded = np.full(self.shape, self.outside, dense.dtype)
        padded[:, self.reach : self.reach + self.rows, self.reach : self.reach + self.columns] = dense
        self.flat = padded.reshape(-1)
        # There is a small window around each pixel and each tap outside the image, and a large one around each pixel.
        is_small = self._first_taps(self.rows + self.reach, self.columns + self.reach)
        is_large = self._first_taps(self.rows, self.columns)
        far = self.reach * self.width
        self.corners = sorted({0, self.reach, far, far + self.reach})
        uniform = self._uniform()
        self.small_uniform = uniform & is_small
        self.mixed_small = np.flatnonzero(is_small & ~uniform)
        # The four corner windows share the centre: where each is of one code, it is the same code.
        self.large_uniform = self.small_uniform & is_large
        for corner in self.corners[1:]:
            self.large_uniform[:-corner] &= uniform[corner:]
        self.mixed_large = np.flatnonzero(is_large & ~self.large_uniform)

    def at_most(self) -> int:
        """An upper bound of the number of patterns."""
        return min(self.num_pixels, len(self.mixed_large) + self.outside)

    def at_least(self) -> int:
        """A lower bound of the number of patterns: different hashes mean different windows, even if some collide."""
        across = _weighted_sum(self.flat.astype(np.uint32), 2 * self.kernel - 1, 1, _HASH_FACTORS[0])
        hashes = _weighted_sum(across, 2 * self.kernel - 1, self.width, _HASH_FACTORS[1])
        bits = min(24, (16 * self.num_pixels).bit_length())
        seen = np.zeros(1 << bits, np.bool_)
        kept = hashes.reshape(self.shape)[:, : self.rows, : self.columns]
        seen[(kept >> np.uint32(32 - bits)).astype(np.intp)] = True
        return int(np.count_nonzero(seen))

    def extract(self) -> LevelPatterns:
        taps = [i * self.width + j for i in range(self.kernel) for j in range(self.kernel)]
        centre = taps[len(taps) // 2]
        # The centre is the first digit and `outside` the greatest code: windows around outside taps come last.
        by_weight = [centre, *(tap for tap in taps if tap != centre)]
        small, first = self._number(
            self.small_uniform,
            self.mixed_small,
            lambda windows: ((self.flat[tap:].take(windows), self.outside + 1) for tap in by_weight),
        )
        num_small = len(first)
        first = first[: np.count_nonzero(self.flat[centre:].take(first) != self.outside)]
        codes = np.stack([self.names.take(self.flat[tap:].take(first)) for tap in taps], axis=1)
        index, first = self._number(
            self.large_uniform,
            self.mixed_large,
            lambda windows: ((small[corner:].take(windows), num_small) for corner in self.corners),
        )
        patterns = np.stack([np.minimum(small[tap:].take(first), len(codes)) for tap in taps], axis=1)
        inside = index.reshape(self.shape)[:, : self.rows, : self.columns]
        return LevelPatterns(codes, patterns, np.ascontiguousarray(inside))

    def _number(
        self, uniform: Flags, mixed: Positions, digits: Callable[[Positions], Iterable[Digit]]
    ) -> tuple[Ints, Positions]:
        """Number the distinct windows: those of one code by code, then those in `mixed` by their digits.

        Returns the number at every first tap, and a first tap for every number.
        """
        member = np.full(len(self.names), -1)
        plain = np.flatnonzero(uniform)
        member[self.flat.take(plain)] = plain
        found = member >= 0
        number_of_code = (np.cumsum(found) - 1).astype(np.int32)
        numbers = number_of_code.take(self.flat)
        rank, representatives = rank_rows(digits(mixed))
        first = member[found]
        numbers[mixed] = rank + len(first)
        return numbers, np.concatenate([first, mixed.take(representatives)])

    def _first_taps(self, rows: int, columns: int) -> Flags:
        mask = np.zeros(self.shape, np.bool_)
        mask[:, :rows, :columns] = True
        return mask.reshape(-1)

    def _uniform(self) -> Flags:
        """Where all k*k taps of a window are one code."""
        if self.kernel == 1:
            return np.ones(self.flat.shape, np.bool_)
        across = _all_shifted(self.flat[1:] == self.flat[:-1], self.kernel - 1, 1)
        down = _all_shifted(self.flat[self.width :] == self.flat[: -self.width], self.kernel - 1, self.width)
        across = _all_shifted(across, self.kernel, self.width)
        uniform = np.zeros(self.flat.shape, np.bool_)
        uniform[: len(across)] = across & down[: len(across)]
        return uniform


def rank_rows(columns: Iterable[Digit]) -> tuple[Positions, Positions]:
    """Rank rows of digits in lexicographic order. Returns the rank of every row, and one row for every rank.

    columns: each has n digits in 0..base-1 and their base; the first column counts most. The digits of a row become one
    64-bit integer. When that is full, the rows so far are ranked, and their ranks become one digit, so that different
    rows never collide.
    """
    key: NDArray[Any] | None = None
    span = 1
    for digits, base in columns:
        if key is None:
            key = digits.astype(np.int64)
        else:
            if span > _MAX_KEY // base:
                key, rows = _ranked(key)
                span = len(rows)  # ranks are less than the number of rows, which times a base always fits
            key = key * base + digits
        span *= base
    if key is None:
        raise ValueError("rows need at least one digit")
    return _ranked(key)


def _ranked(key: NDArray[np.int64]) -> tuple[Positions, Positions]:
    order = np.argsort(key)
    ascending = key.take(order)
    is_new = np.ones(len(key), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:])
    rank = np.empty(len(key), np.int64)
    rank[order] = np.cumsum(is_new) - 1
    return rank, order[is_new]


def _all_shifted(flags: Flags, count: int, step: int) -> Flags:
    """At p, whether flags at p, p + step, ... are all set, `count` of them; shorter by what that reaches beyond."""
    size = len(flags) - (count - 1) * step
    result = flags[:size].copy()
    for shift in range(step, count * step, step):
        result &= flags[shift : shift + size]
    return result


def _weighted_sum(values: NDArray[np.uint32], count: int, step: int, factor: int) -> NDArray[np.uint32]:
    """At p, the sum of values at p, p + step, ... weighted with powers of `factor`, modulo 2^32; zero near the end."""
    size = len(values) - (count - 1) * step
    total = np.zeros(values.shape, np.uint32)
    for shift in range(0, count * step, step):
        total[:size] = total[:size] * np.uint32(factor) + values[shift : shift + size]
    return total
