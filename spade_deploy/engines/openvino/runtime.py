"""The runtime of OpenVINO: a graph that is compiled once for each size that it meets."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, Artifact, TensorInfo, input_tensors
from spade_deploy.engines.base import ClosedByWith, check_contract, check_inputs, output_names_of
from spade_deploy.engines.openvino.library import DEVICE, core, load_openvino, version_of
from spade_deploy.errors import ArtifactError, ConfigError, RuntimeUnavailableError, reason_of
from spade_deploy.lookup.tables import check_tables, graph_inputs, level_names, lookup_tensors, modulated_channels
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

KEPT_SIZES = 4
"""How many sizes keep their compiled model; of more, the one that was not used for longest goes."""

Extent = tuple[int, ...]


class OpenVinoRuntime(ClosedByWith):
    """One graph of an artifact in OpenVINO on the CPU.

    precision: bf16 runs the fp32 graph in bfloat16; fp32 is real float32, whatever the CPU could do. threads: the
    number of CPU threads. Raises MissingDependencyError, or ArtifactError for a graph that OpenVINO cannot read.
    """

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision,
        threads: int | None = None,
        kind: GraphKind = GraphKind.DENSE,
    ) -> None:
        openvino = load_openvino()
        self._graph = artifact.graph(precision.exported, kind)
        self._artifact, self._openvino = artifact, openvino
        self.spec: GeneratorSpec = artifact.manifest.generator
        self.precision: Precision = precision
        self.kind: GraphKind = kind
        self.patterns_s: float | None = None
        said = str(precision) if kind is GraphKind.DENSE else f"{precision} {kind}"
        self.name = f"OpenVINO {version_of(openvino)} CPU, {said}"
        self._settings: dict[str, Any] = {
            # OpenVINO's own default is bf16 wherever the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled: OrderedDict[Extent, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._is_open = True
        self._model: Any = self._read()

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """See `Runtime.run`. Raises RuntimeUnavailableError where OpenVINO fails."""
        check_inputs(self.spec, inputs)
        start = time.perf_counter()
        fed = graph_inputs(self.spec, self.kind, inputs)
        if self.kind is GraphKind.LOOKUP:
            self.patterns_s = time.perf_counter() - start
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
        self._is_open = False
        self._compiled.clear()
        self._model = None

    def _run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        if not self._is_open:
            raise RuntimeUnavailableError(f"{self.name}: it was closed")
        names = output_names_of(self.spec, output_names)
        try:
            with self._lock:
                request = self._request(inputs)
                request.infer(dict(inputs), share_inputs=True)
                return {name: np.array(request.get_tensor(name).data) for name in names}
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in inputs.items())
            raise RuntimeUnavailableError(
                f"{self.name} failed on {shapes}: {reason_of(error)}",
                hint="where memory ran out, a smaller `batch_size` or `size` helps",
            ) from error

    def _request(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        finest = LABEL if self.kind is GraphKind.DENSE else level_names(min(modulated_channels(self.spec)))[2]
        extent = inputs[finest].shape
        request = self._compiled.get(extent)
        if request is None:
            self._model.reshape(dict(_shapes(self._tensors(), inputs)))
            request = core().compile_model(self._model, DEVICE, self._settings).create_infer_request()
            while len(self._compiled) >= KEPT_SIZES:
                self._compiled.popitem(last=False)
            self._compiled[extent] = request
        self._compiled.move_to_end(extent)
        return request

    def _tensors(self) -> tuple[TensorInfo, ...]:
        return input_tensors(self.spec) if self.kind is GraphKind.DENSE else lookup_tensors(self.spec)

    def _read(self) -> Any:
        with self._artifact.vouched(self._graph.file) as path:
            try:
                model = core().read_model(str(path))
            except RuntimeError as error:
                raise ArtifactError(
                    f"{path}: OpenVINO {version_of(self._openvino)} cannot read it: {reason_of(error)}",
                    hint=f"the graph is of opset {self._graph.opset}: pip install --upgrade openvino, or `spade export`"
                    " again",
                ) from error
        check_contract(self._artifact, self._graph, _types_of(model.inputs), _types_of(model.outputs))
        return model


def _types_of(tensors: Iterable[Any]) -> list[tuple[str, str]]:
    return [(tensor.get_any_name(), tensor.get_element_type().to_dtype().name) for tensor in tensors]


def _shapes(tensors: Iterable[TensorInfo], inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, list[int]]]:
    """The shape of each input with N, height and width fixed; the number of windows and of patterns stays open (-1)."""
    for tensor in tensors:
        sizes = inputs[tensor.name].shape
        is_open = [isinstance(part, str) and part[0] in "UP" for part in tensor.shape]
        yield tensor.name, [-1 if free else size for free, size in zip(is_open, sizes, strict=True)]
