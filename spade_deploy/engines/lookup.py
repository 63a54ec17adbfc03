"""Dense or lookup, decided map by map: the lookup graph while a map's patterns are few enough for it to be faster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z
from spade_deploy.engines.base import (
    ClosedByWith,
    GraphChoice,
    KeepsRows,
    Runtime,
    RuntimeRequest,
    TableRuntime,
    check_inputs,
)
from spade_deploy.errors import ArtifactError
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

_LOG = logging.getLogger(__name__)


def open_by_choice(
    wanted: RuntimeRequest, precision: Precision, open_graph: Callable[[GraphKind], TableRuntime]
) -> Runtime:
    """Open the graph that was asked for. For `auto`, open both if the lookup graph was measured to win on some maps.

    precision: what runs; that of the graphs follows from it. open_graph: opens the graph of that kind in an engine.
    """
    if wanted.graph is GraphChoice.LOOKUP:
        return open_graph(GraphKind.LOOKUP)
    graphs = wanted.artifact.manifest.graphs
    found = [graph for graph in graphs if graph.kind is GraphKind.LOOKUP and graph.precision is precision.exported]
    share = found[0].break_even_share if found and wanted.graph is GraphChoice.AUTO else None
    if not share:
        return open_graph(GraphKind.DENSE)
    return AutoRuntime(open_graph(GraphKind.LOOKUP), lambda: open_graph(GraphKind.DENSE), share)


class AutoRuntime(ClosedByWith):
    """Runs each map on the lookup graph or on the dense one, in any engine that can run tables.

    open_dense: opens the dense graph. It is called at most once, when the first map needs it. share: the dense graph
    runs a map with a larger share of unique patterns (`PatternTables.unique_share`) than this.
    If the artifact's folder was replaced or removed in the meantime, the dense graph is that of another model, or gone.
    Then the lookup graph, which is open, runs every map: slower, and the same image.
    """

    def __init__(self, lookup: TableRuntime, open_dense: Callable[[], Runtime], share: float) -> None:
        self._lookup = lookup
        self._open_dense = open_dense
        self._dense: Runtime | None = None
        self._kept: AutoRuntime | None = None
        self._share = share
        self.kind = GraphKind.LOOKUP
        self.patterns_s: float | None = None
        self.name = f"{lookup.name} (dense above {share:.0%} unique patterns)"

    @property
    def spec(self) -> GeneratorSpec:
        return self._lookup.spec

    @property
    def precision(self) -> Precision:
        return self._lookup.precision

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """See `Runtime.run`."""
        check_inputs(self.spec, inputs)
        start = time.perf_counter()
        tables = extract_patterns(self.spec, inputs[LABEL], inputs.get(INSTANCE), max_share=self._share)
        self.patterns_s = time.perf_counter() - start
        if tables is not None:
            self.kind = GraphKind.LOOKUP
            return self._lookup.run_tables(tables.to_inputs(inputs.get(Z)), output_names, is_checked=True)
        dense = self._opened_dense()
        self.kind = GraphKind.LOOKUP if dense is self._lookup else GraphKind.DENSE
        return dense.run(inputs, output_names)

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """See `Runtime.run_many`."""
        return (self.run(inputs, output_names) for inputs in batches)

    def keeping_rows(self, most_bytes: int) -> Runtime | None:
        """See `KeepsRows.keeping_rows`. The dense graph keeps nothing, and is shared."""
        if self._kept is None and isinstance(self._lookup, KeepsRows):
            lookup = self._lookup.keeping_rows(most_bytes)
            if lookup is not None:
                self._kept = AutoRuntime(cast(TableRuntime, lookup), self._opened_dense, self._share)
        return self._kept

    def _opened_dense(self) -> Runtime:
        if self._dense is None:
            try:
                self._dense = self._open_dense()
            except ArtifactError as error:
                _LOG.warning("%s; every map runs on the lookup graph, which is open", error.message)
                self._dense = self._lookup
        return self._dense

    def close(self) -> None:
        self._lookup.close()
        if self._dense is not None and self._dense is not self._lookup:
            self._dense.close()
