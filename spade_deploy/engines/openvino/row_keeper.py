"""A lookup graph that is cut in two, so that rows of gamma and beta are kept from one label map to the next.

The label side makes the rows of those patterns that no map before had. The image side makes the image of all rows.
Both are models of their own beside the whole graph's, so the weights are in memory twice while both are in use.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import PIXELS, Arrays
from spade_deploy.engines.base import GraphRuntime, TableRuntime, output_names_of
from spade_deploy.engines.openvino.cut import ROWS, Part, is_of_labels, stride_of
from spade_deploy.engines.openvino.library import said_by
from spade_deploy.engines.openvino.models import SizedModels
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.lookup.kept_rows import KeptRows, tables_of
from spade_deploy.lookup.tables import level_names
from spade_deploy.spec import GraphKind

_LOG = logging.getLogger(__name__)

CHECKED = 8
"""Of the first map's rows, one in so many is computed a second time, beside few others."""


class RowKeeper(GraphRuntime):
    """The images of a lookup graph, made from rows that are kept.

    The first map is made by the whole graph, too. Unless both images are the same in every pixel, and rows that are
    computed beside few others the same in every bit, nothing is kept on this machine: the whole graph makes all images.
    It also makes those whose rows are more than may be kept. whole: runs the whole graph; it is not closed here.
    open_side: opens a side of it. most_bytes: what the rows may take. Safe to be called by several threads.
    """

    def __init__(self, whole: TableRuntime, open_side: Callable[[Part], SizedModels], most_bytes: int) -> None:
        self.spec, self.precision, self.kind = whole.spec, whole.precision, GraphKind.LOOKUP
        self.name = f"{whole.name}, rows kept"
        self._whole, self._open_side, self._most_bytes = whole, open_side, most_bytes
        self._lock = threading.Lock()
        self._sides: _Sides | None = None
        self._is_usable, self._is_checked = True, False

    @property
    def num_bytes(self) -> int:
        """What the kept rows take."""
        return 0 if self._sides is None else self._sides.rows.num_bytes

    def close(self) -> None:
        with self._lock:
            self._is_usable = False
            self._let_go()

    def _run(self, fed: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        names = output_names_of(self.spec, output_names)
        with self._lock:
            found = self._from_rows(fed, names) if self._is_usable else None
        if found is None:
            return self._whole.run_tables(fed, names, is_checked=True)
        return {name: found[name] for name in names}

    def _from_rows(self, fed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Arrays | None:
        """The outputs; None where the whole graph has to make them."""
        try:
            if self._sides is None:
                self._sides = _Sides(self._open_side, self.spec, fed, self._most_bytes)
            found = self._sides.run(fed, names if self._is_checked else list({*names, PIXELS}))
            if found is not None and not self._is_checked:
                self._check(self._sides, fed, found[PIXELS])
            return found if self._is_usable else None
        except RuntimeUnavailableError as error:  # it cannot be cut, or not be compiled
            self._give_up(error.message)
            return None
        except (RuntimeError, MemoryError) as error:
            self._let_go()
            raise self._failed(fed, said_by(error)) from error

    def _check(self, sides: _Sides, fed: Mapping[str, NDArray[Any]], pixels: NDArray[Any]) -> None:
        """Keep no rows unless those of the first map are right."""
        whole = self._whole.run_tables(fed, [PIXELS], is_checked=True)[PIXELS]
        if not np.array_equal(pixels, whole):
            self._give_up("the image that is made from rows is not that of the whole graph")
        elif not sides.are_rows_reproducible(fed):
            self._give_up("a row depends on which others it is computed with")
        self._is_checked = True

    def _give_up(self, why: str) -> None:
        _LOG.warning("%s: every edit runs the whole graph: %s", self.name, why)
        self._is_usable = False
        self._let_go()

    def _let_go(self) -> None:
        if self._sides is not None:
            self._sides.close()
        self._sides = None


class _Sides:
    """Both sides of a graph, and the rows between them."""

    def __init__(
        self, open_side: Callable[[Part], SizedModels], spec: Any, fed: Mapping[str, NDArray[Any]], most_bytes: int
    ) -> None:
        self._labels, self._image = open_side(Part.LABELS), open_side(Part.IMAGE)
        columns: dict[int, dict[str, int]] = defaultdict(dict)
        for tensor in self._labels.request(fed).model_outputs:
            name = tensor.get_any_name()
            columns[stride_of(name)][name] = tensor.get_partial_shape()[1].get_length()
        self.rows = KeptRows(spec, columns, most_bytes)

    def close(self) -> None:
        """Let go of all memory."""
        self._labels.close()
        self._image.close()

    def run(self, fed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Arrays | None:
        """The outputs; None for a map whose rows are more than may be kept."""
        given = self.rows.rows_of(dict(fed), self._make)
        if given is None:
            return None
        request = self._image.request(fed)
        rest = {name: array for name, array in fed.items() if not is_of_labels(name)}
        request.infer({**rest, **given}, share_inputs=True)
        return {name: np.array(request.get_tensor(name).data) for name in names}

    def are_rows_reproducible(self, fed: Mapping[str, NDArray[Any]]) -> bool:
        """Whether rows are the same in every bit beside few others as beside all of a map."""
        tables = dict(fed)
        kept = self.rows.rows_of(tables, self._make)
        assert kept is not None  # this map's rows are kept already
        some, places = {}, {}
        for stride in {stride_of(name) for name in kept if name.startswith(ROWS)}:
            _, patterns, index = level_names(stride)
            some[stride] = np.arange(0, len(tables[patterns]), CHECKED)
            place = np.empty(len(tables[patterns]), np.int64)
            place[tables[index]] = kept[index]
            places[stride] = place[some[stride]]
        again = self._make(tables_of(tables, some))
        return all(np.array_equal(again[name], kept[name][places[stride_of(name)]]) for name in again)

    def _make(self, tables: Arrays) -> Arrays:
        request = self._labels.request(tables)
        request.infer(tables, share_inputs=True)
        return {name: request.get_tensor(name).data for name in map(_name_of, request.model_outputs)}


def _name_of(tensor: Any) -> str:
    return str(tensor.get_any_name())
