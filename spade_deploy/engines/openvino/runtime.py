"""The runtime of OpenVINO, which runs an artifact's ONNX files on the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays, Artifact
from spade_deploy.engines.base import ClosedByWith, check_inputs, output_names_of
from spade_deploy.engines.openvino.exact_ids import exact_inputs
from spade_deploy.engines.openvino.library import load_openvino, said_by, version_of
from spade_deploy.engines.openvino.models import SizedModels
from spade_deploy.errors import ConfigError, RuntimeUnavailableError
from spade_deploy.lookup.tables import check_tables, graph_inputs
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision


class OpenVinoRuntime(ClosedByWith):
    """One graph of an artifact in OpenVINO on the CPU.

    precision: bf16 runs the fp32 graph in bfloat16; fp32 is real float32, whatever the CPU could do. threads: the
    number of CPU threads. Raises MissingDependencyError, or ArtifactError for a graph that OpenVINO cannot read.
    Safe to be called by several threads, which then take turns.
    """

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision,
        threads: int | None = None,
        kind: GraphKind = GraphKind.DENSE,
    ) -> None:
        openvino = load_openvino()
        graph = replace(artifact.graph(precision.exported, kind), precision=precision)
        self.spec: GeneratorSpec = artifact.manifest.generator
        self.precision: Precision = precision
        self.kind: GraphKind = kind
        self.patterns_s: float | None = None
        how = ", computed in float32" if precision is Precision.FP16 else ""
        self.name = f"OpenVINO {version_of(openvino)} CPU, {graph.name}{how}"
        self._lock = threading.Lock()
        self._models: SizedModels | None = SizedModels(artifact, graph, threads)

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """See `Runtime.run`. Raises RuntimeUnavailableError where OpenVINO fails."""
        check_inputs(self.spec, inputs)
        start = time.perf_counter()
        fed = graph_inputs(self.spec, self.kind, inputs)
        if self.kind is GraphKind.LOOKUP:
            self.patterns_s = time.perf_counter() - start
        else:
            fed = exact_inputs(fed)
        return self._run(fed, output_names)

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """See `Runtime.run_many`; one batch after another, since each takes all threads."""
        for batch in batches:
            yield self.run(batch, output_names)

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """See `TableRuntime.run_tables`."""
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError(f"{self.name}: pattern tables are for a lookup graph; this one takes label maps")
        if not is_checked:
            check_tables(self.spec, tables)
        return self._run(tables, output_names)

    def close(self) -> None:
        with self._lock:
            if self._models is not None:
                self._models.close()
            self._models = None

    def _run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        names = output_names_of(self.spec, output_names)
        with self._lock:
            if self._models is None:
                raise RuntimeUnavailableError(f"{self.name}: it was closed")
            request = self._models.request(inputs)
            try:
                request.infer(dict(inputs), share_inputs=True)
                return {name: np.array(request.get_tensor(name).data) for name in names}
            except (RuntimeError, MemoryError) as error:
                shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in inputs.items())
                raise RuntimeUnavailableError(
                    f"{self.name} failed on {shapes}: {said_by(error)}",
                    hint="where memory ran out, a smaller `batch_size` or `size` helps",
                ) from error
