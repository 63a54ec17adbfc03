"""Rows of gamma and beta that are kept from one label map to the next. NumPy only.

A row depends on its pattern and on the weights alone: not on where the pattern lies, on the size of the map, or on the
style. So the rows of a small edit are those of the map before, but for a few. A pattern is known by its whole window
of codes, never by a hash, and the rows that were not used for longest go where they take too much memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays
from spade_deploy.lookup.tables import level_names
from spade_deploy.spec import Architecture, GeneratorSpec

MakeRows = Callable[[Arrays], Arrays]
"""The label side of a lookup graph: codes and patterns of all levels -> tensors of rows, P x C, by name."""

SPARE = 1.25
"""How many times as many rows as there are get memory, so that not every edit copies all of them."""
LEFT = 0.75
"""The share of the limit that is left once rows have to go, so that not every edit lets some go."""
_ENTRY_BYTES = 160
"""About what Python takes to find one row: an entry of a dict and the object of its key."""


def are_worth_keeping(spec: GeneratorSpec) -> bool:
    """Whether rows cost something to compute, and follow from their pattern alone.

    CLADE's rows cost nothing: they are those of a table. OASIS's depend on the noise of the image, too.
    """
    return spec.architecture is Architecture.SPADE or (
        spec.architecture is Architecture.OASIS and not spec.noise_channels
    )


class KeptRows:
    """The rows of a generator's patterns. It is used by one thread at a time.

    columns: for each stride its tensors of rows, and how many columns each has. most_bytes: what all of them may take.
    """

    def __init__(self, spec: GeneratorSpec, columns: Mapping[int, Mapping[str, int]], most_bytes: int) -> None:
        self._most_bytes, self._now = most_bytes, 0
        key_bytes = 4 * spec.kernel_size**4
        self._levels = {stride: _Level(names, key_bytes) for stride, names in columns.items()}

    @property
    def num_bytes(self) -> int:
        """What they take: the rows, room for more of them, and what they are found by."""
        return sum(level.num_bytes(level.room) for level in self._levels.values())

    def rows_of(self, tables: Arrays, make: MakeRows) -> Arrays | None:
        """What the image side needs for the tables of a map: all tensors of rows, and each level's index into them.

        make: is asked for the rows that are missing, if there are any. Returns None for a map whose rows are more than
        may be kept, and keeps what it has. The tensors may be overwritten by the next call.
        """
        self._now += 1
        keys = {stride: pattern_keys(tables, stride) for stride in self._levels}
        if sum(level.num_bytes(len(keys[stride])) for stride, level in self._levels.items()) > LEFT * self._limit:
            return None
        missing = {stride: level.missing(keys[stride], self._now) for stride, level in self._levels.items()}
        if any(len(numbers) for numbers in missing.values()):
            self._make_room(missing)
            made = make(tables_of(tables, missing))
            for stride, level in self._levels.items():
                level.add([keys[stride][number] for number in missing[stride]], made, self._now)
        found: Arrays = {}
        for stride, level in self._levels.items():
            index = level_names(stride)[2]
            found[index] = level.places(keys[stride]).take(tables[index])
            found |= level.tensors()
        return found

    @property
    def _limit(self) -> float:
        """What rows may take, without the room for more."""
        return self._most_bytes / SPARE

    def _make_room(self, missing: Mapping[int, NDArray[np.int64]]) -> None:
        """Let the rows that were not used for longest go, until the missing ones fit in. Those of this map stay."""
        new = sum(level.num_bytes(len(missing[stride])) for stride, level in self._levels.items())
        by_age: Counter[int] = Counter()
        for level in self._levels.values():
            for age, count in zip(*np.unique(level.used, return_counts=True), strict=True):
                by_age[int(age)] += level.num_bytes(int(count))
        if new + by_age.total() <= self._limit:
            return
        left, oldest = LEFT * self._limit - new, self._now
        for age in sorted(by_age, reverse=True):
            left -= by_age[age]
            if left < 0:
                break
            oldest = age
        for level in self._levels.values():
            level.drop_before(oldest)


class _Level:
    """The rows of one resolution. A pattern has the same place in all of its tensors."""

    def __init__(self, columns: Mapping[str, int], key_bytes: int) -> None:
        self._tensors = {name: np.empty((0, count), np.float32) for name, count in columns.items()}
        self._places: dict[bytes, int] = {}
        self._count = 0
        self._used = np.empty(0, np.int64)
        self._row_bytes = 4 * sum(columns.values()) + self._used.itemsize + key_bytes + _ENTRY_BYTES

    @property
    def used(self) -> NDArray[np.int64]:
        """For each row the number of the last map that used it."""
        return self._used[: self._count]

    @property
    def room(self) -> int:
        """For how many rows there is memory."""
        return len(self._used)

    def num_bytes(self, rows: int) -> int:
        """What so many rows take."""
        return rows * self._row_bytes

    def tensors(self) -> Arrays:
        """The rows by name."""
        return {name: tensor[: self._count] for name, tensor in self._tensors.items()}

    def places(self, keys: list[bytes]) -> NDArray[np.int32]:
        """The place of each pattern's row; -1 where it is missing."""
        find = self._places.get
        return np.fromiter((find(key, -1) for key in keys), np.int32, len(keys))

    def missing(self, keys: list[bytes], now: int) -> NDArray[np.int64]:
        """The numbers of the patterns whose rows are missing; the others are used now."""
        places = self.places(keys)
        self._used[places[places >= 0]] = now
        return np.flatnonzero(places < 0)

    def add(self, keys: list[bytes], made: Arrays, now: int) -> None:
        """Keep the first rows of what was made, one for each of the keys."""
        first, count = self._count, self._count + len(keys)
        if count > self.room:
            self._resize(np.arange(first), self._used, int(SPARE * count))
        for name, tensor in self._tensors.items():
            tensor[first:count] = made[name][: len(keys)]
        self._used[first:count] = now
        self._count = count
        self._places.update(zip(keys, range(first, count), strict=True))  # last: until then none of them is found

    def drop_before(self, oldest: int) -> None:
        """Let the rows go that were last used by a map with a smaller number."""
        kept, used, places = np.flatnonzero(self.used >= oldest), self._used, self._places
        new = np.full(self._count, -1)
        new[kept] = np.arange(len(kept))
        self._places, self._count, self._used = {}, 0, used[:0]  # while the rows move, none is found
        self._resize(kept, used, len(kept))
        self._count = len(kept)
        self._places = {key: int(new[place]) for key, place in places.items() if new[place] >= 0}

    def _resize(self, kept: NDArray[np.int64], used: NDArray[np.int64], room: int) -> None:
        for name, tensor in self._tensors.items():
            new = np.empty((room, tensor.shape[1]), np.float32)
            np.take(tensor, kept, axis=0, out=new[: len(kept)], mode="clip")  # "raise" would make a copy first
            self._tensors[name] = new
        self._used = np.empty(room, np.int64)
        self._used[: len(kept)] = used[kept]


def pattern_keys(tables: Arrays, stride: int) -> list[bytes]:
    """What each pattern of a level is known by: the codes of its k*k windows; -1 for a window outside the image."""
    codes, patterns = (tables[name] for name in level_names(stride)[:2])
    windows = np.concatenate([codes, np.full((1, codes.shape[1]), -1, codes.dtype)])
    whole = windows[patterns].reshape(len(patterns), -1)
    keys: list[bytes] = whole.view(f"V{whole.itemsize * whole.shape[1]}").ravel().tolist()
    return keys


def tables_of(tables: Arrays, numbers: Mapping[int, NDArray[np.int64]]) -> Arrays:
    """The codes and patterns of these patterns of each level alone; of its first one where there are none."""
    found: Arrays = {}
    for stride, wanted in numbers.items():
        codes, patterns, _ = level_names(stride)
        taken = tables[patterns][wanted if len(wanted) else [0]]
        outside = len(tables[codes])
        is_used = np.zeros(outside + 1, np.bool_)
        is_used[taken] = True
        is_used[outside] = False
        if not is_used.any():
            is_used[0] = True  # a graph takes no empty table
        place = np.cumsum(is_used, dtype=np.int32) - 1
        place[outside] = is_used.sum()
        found[codes], found[patterns] = tables[codes][is_used[:-1]], place[taken].astype(np.int32)
    return found
