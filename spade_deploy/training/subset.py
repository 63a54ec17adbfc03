"""Some of the samples of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spade_deploy.labels.samples import SampleArrays
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.training.dataset import SampleSource


class Subset:
    """The samples of a source at some places, as a source of their own."""

    def __init__(self, whole: SampleSource, places: Sequence[int]) -> None:
        self._whole, self._places = whole, tuple(places)
        self.what, self.check_hint = whole.what, whole.check_hint

    def __len__(self) -> int:
        return len(self._places)

    def stem(self, index: int) -> str:
        return self._whole.stem(self._places[index])

    def record(self) -> DataRecord:
        return self._whole.record()

    def load(self, index: int, rng: np.random.Generator | None) -> SampleArrays:
        return self._whole.load(self._places[index], rng)

    def whole(self, index: int) -> SampleArrays:
        return self._whole.whole(self._places[index])

    def overlapping(self, index: int) -> tuple[int, ...]:
        known = {place: own for own, place in enumerate(self._places)}
        return tuple(known[place] for place in self._whole.overlapping(self._places[index]) if place in known)
