"""The runtime of OpenVINO, which runs an artifact's ONNX files on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Arrays, Artifact
from spade_deploy.engines.base import GraphRuntime, TableRuntime, output_names_of
from spade_deploy.engines.openvino.exact_ids import exact_inputs
from spade_deploy.engines.openvino.library import load_openvino, said_by, version_of
from spade_deploy.engines.openvino.models import SizedModels
from spade_deploy.engines.openvino.row_keeper import RowKeeper
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.lookup.kept_rows import are_worth_keeping
from spade_deploy.lookup.row_counts import with_rounded_counts
from spade_deploy.retrieval.bank_file import bank_of
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision


class OpenVinoRuntime(GraphRuntime):
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
        self.bank = bank_of(artifact)
        how = ", computed in float32" if precision is Precision.FP16 else ""
        self.name = f"OpenVINO {version_of(openvino)} CPU, {graph.name}{how}"
        # In float32 a new number of rows costs nothing measurable, and more rows do.
        self._rounds_counts = kind is GraphKind.LOOKUP and precision in (Precision.BF16, Precision.INT8)
        self._lock = threading.Lock()
        self._models: SizedModels | None = SizedModels(artifact, graph, threads)
        self._open_side = partial(SizedModels, artifact, graph, threads)
        self._keeper: RowKeeper | None = None

    def _feed(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        fed = super()._feed(inputs)
        return exact_inputs(fed) if self.kind is GraphKind.DENSE else fed

    def keeping_rows(self, most_bytes: int) -> TableRuntime | None:
        """See `KeepsRows.keeping_rows`. Only in float32 are rows the same whatever they are computed beside."""
        is_able = self.kind is GraphKind.LOOKUP and self.precision is Precision.FP32 and are_worth_keeping(self.spec)
        if not is_able:
            return None
        with self._lock:
            if self._keeper is None:
                self._keeper = RowKeeper(self, self._open_side, most_bytes)
            return self._keeper

    def close(self) -> None:
        with self._lock:
            if self._models is not None:
                self._models.close()
            self._models = None
        if self._keeper is not None:
            self._keeper.close()

    def _run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        names = output_names_of(self.spec, output_names)
        if self._rounds_counts:
            inputs = with_rounded_counts(self.spec, inputs)
        with self._lock:
            if self._models is None:
                raise RuntimeUnavailableError(f"{self.name}: it was closed")
            request = self._models.request(inputs)
            try:
                request.infer(dict(inputs), share_inputs=True)
                return {name: np.array(request.get_tensor(name).data) for name in names}
            except (RuntimeError, MemoryError) as error:
                raise self._failed(inputs, said_by(error)) from error
