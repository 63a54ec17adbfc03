"""The compiled models of one graph: one for each batch, height and width that is in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from spade_deploy.artifact import Artifact, Graph, TensorInfo, output_tensors
from spade_deploy.engines.base import check_contract, fed_tensors
from spade_deploy.engines.openvino.cache import Extent, ModelCache, StoredModel, open_cache
from spade_deploy.engines.openvino.cut import ROWS, Part, is_of_labels, part_of
from spade_deploy.engines.openvino.exact_ids import compare_ids_as_integers
from spade_deploy.engines.openvino.exact_norms import sum_axis_by_axis
from spade_deploy.engines.openvino.library import DEVICE, core, load_openvino, read_onnx, said_by, version_of
from spade_deploy.engines.openvino.pattern_sums import sum_window_rows
from spade_deploy.engines.openvino.winograd import use_winograd
from spade_deploy.errors import ArtifactError, RuntimeUnavailableError, SpadeError
from spade_deploy.lookup.tables import extent_of
from spade_deploy.spec import GraphKind, Precision

KEPT_SIZES = 4
"""How many sizes keep their compiled model: of more, the one that was not used for longest goes. The first so many are
also kept on the disk, for the next start."""


Named = tuple[str, str]
"""The name and the type of a tensor."""


@dataclass(frozen=True)
class _Ready:
    """A compiled model that runs."""

    request: Any
    """OpenVINO's own `InferRequest`."""
    stored: StoredModel | None
    """The file that it was loaded from, which must stay mapped while it runs; None if it was compiled."""


class SizedModels:
    """Compiles a graph for each size that comes, or loads what an earlier process compiled.

    With height, width and batch fixed OpenVINO merges transposes and reorders, which it leaves alone where they are
    open. The numbers of windows and patterns, which differ from map to map, stay open. graph: its precision is that of
    what runs. part: one side of a lookup graph may run alone; the label side knows no sizes. Raises ArtifactError, when
    it is made or when a size first comes, for a file that OpenVINO cannot read, and RuntimeUnavailableError for a graph
    that cannot be cut.
    """

    def __init__(self, artifact: Artifact, graph: Graph, threads: int | None, part: Part = Part.WHOLE) -> None:
        self._artifact, self._graph, self._part, self._openvino = artifact, graph, part, load_openvino()
        self._settings = settings_of(graph.precision, threads)
        self._ready: OrderedDict[Extent, _Ready] = OrderedDict()
        self._cache: ModelCache | None = open_cache(artifact, graph, self._settings, part)
        self._stored = 0
        # What an earlier process compiled was read by it: only a graph that nobody has read yet is read at once.
        self._model: Any = self._read() if self._cache is None or self._cache.is_empty() else None

    def request(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """The `InferRequest` for inputs of these shapes. Raises RuntimeUnavailableError where it cannot be compiled."""
        spec = self._artifact.manifest.generator
        extent = () if self._part is Part.LABELS else extent_of(spec, self._graph.kind, inputs)
        ready = self._ready.get(extent)
        if ready is None:
            while len(self._ready) >= KEPT_SIZES:  # first, so that there is never one more in memory
                self._ready.popitem(last=False)
            ready = self._ready[extent] = self._load(extent) or self._compile(extent, inputs)
        self._ready.move_to_end(extent)
        return ready.request

    def close(self) -> None:
        """Let go of all memory."""
        self._ready.clear()
        self._model = None

    def _load(self, extent: Extent) -> _Ready | None:
        stored = None if self._cache is None else self._cache.load(extent)
        if self._cache is None or stored is None:
            return None
        try:
            tensor = self._openvino.Tensor(stored.content, shared_memory=True)
            compiled = core().import_model(tensor, DEVICE, self._settings)
            self._check(compiled)
        except (RuntimeError, SpadeError) as error:
            self._cache.discard(extent, error.message if isinstance(error, SpadeError) else said_by(error))
            return None
        stored.release()
        return _Ready(compiled.create_infer_request(), stored)

    def _compile(self, extent: Extent, inputs: Mapping[str, NDArray[Any]], *, is_kept: bool = True) -> _Ready:
        if self._model is None:
            self._model = self._read()
        try:
            model, self._model = self._model, None
            known = dict(_shapes(fed_tensors(self._artifact.manifest.generator, self._graph.kind), inputs))
            names = [tensor.get_any_name() for tensor in model.inputs]
            model.reshape({name: known[name] for name in names if name in known})  # rows stay open
            if self._graph.precision is Precision.FP32:
                sum_window_rows(model)
                use_winograd(model, self._graph.kind)
            compiled = core().compile_model(model, DEVICE, self._settings)
        except RuntimeError as error:
            size = " x ".join(map(str, extent))
            raise RuntimeUnavailableError(
                f"OpenVINO {version_of(self._openvino)} cannot compile {self._graph.name} for {size}: {said_by(error)}",
                hint="if memory ran out, a smaller `batch_size` or `size` helps; `backend` cpu can run it, too",
            ) from error
        del model
        self._check(compiled)
        if self._cache is not None and is_kept and self._stored < KEPT_SIZES:
            self._stored += 1
            if self._cache.store(extent, compiled.export_model):
                # A compiled model keeps the weights as they were in the file, too; one that is loaded does not.
                del compiled
                return self._load(extent) or self._compile(extent, inputs, is_kept=False)
        return _Ready(compiled.create_infer_request(), None)

    def _check(self, compiled: Any) -> None:
        """Raise for a model that has other inputs or outputs, or another precision, than was asked for."""
        inputs, outputs = self._types_of(compiled.inputs), self._types_of(compiled.outputs)
        if self._part is Part.WHOLE:
            check_contract(self._artifact, self._graph, inputs, outputs)
        else:
            self._check_part(inputs, outputs)
        found, asked = compiled.get_property("INFERENCE_PRECISION_HINT"), self._settings["INFERENCE_PRECISION_HINT"]
        if found != getattr(self._openvino.Type, asked):
            raise RuntimeUnavailableError(f"OpenVINO runs {self._graph.name} in {found}, not in {asked}")

    def _check_part(self, inputs: list[Named], outputs: list[Named]) -> None:
        """Raise ArtifactError for what is not this side of the graph: the other one, or the whole."""
        spec = self._artifact.manifest.generator
        fed = [(tensor.name, tensor.dtype) for tensor in fed_tensors(spec, self._graph.kind)]
        is_labels = self._part is Part.LABELS
        own = sorted(one for one in fed if is_of_labels(one[0]) is is_labels)
        made = [] if is_labels else sorted((tensor.name, tensor.dtype) for tensor in output_tensors(spec))
        rows = [one for one in (outputs if is_labels else inputs) if one[0].startswith(ROWS)]
        taken, given = (sorted(one for one in found if one not in rows) for found in (inputs, outputs))
        if not rows or taken != own or given != made:
            raise ArtifactError(f"{self._graph.name}: it is not the {self._part}: inputs {inputs}, outputs {outputs}")

    def _types_of(self, tensors: Iterable[Any]) -> list[Named]:
        return [(self._name_of(tensor), tensor.get_element_type().to_dtype().name) for tensor in tensors]

    def _name_of(self, tensor: Any) -> str:
        """The name by which a graph's input or output is known. A cast to the same type that went gives it another."""
        spec = self._artifact.manifest.generator
        known = {one.name for one in (*fed_tensors(spec, self._graph.kind), *output_tensors(spec))}
        return str(next((name for name in tensor.get_names() if name in known), tensor.get_any_name()))

    def _read(self) -> Any:
        with self._artifact.vouched(self._graph.file) as path:
            try:
                model = read_onnx(path)
            except Exception as error:  # the exceptions of its readers share no base class
                raise ArtifactError(
                    f"{path}: OpenVINO {version_of(self._openvino)} cannot read it: {said_by(error)}",
                    hint=f"the graph is of opset {self._graph.opset}: pip install --upgrade openvino, or `spade export`"
                    " again",
                ) from error
        check_contract(self._artifact, self._graph, self._types_of(model.inputs), self._types_of(model.outputs))
        if self._graph.precision is not Precision.BF16:
            sum_axis_by_axis(model)
        elif self._graph.kind is GraphKind.DENSE:
            compare_ids_as_integers(model, self._artifact.manifest.generator.labels)
        return part_of(model, self._part)


def settings_of(precision: Precision, threads: int | None) -> dict[str, Any]:
    """What OpenVINO is told. threads: None leaves the number to OpenVINO, which takes one for each physical core."""
    settings: dict[str, Any] = {
        # OpenVINO's own default is bf16 wherever the CPU has it. What is no bf16 is real float32: in an int8 graph that
        # is all between the quantised convolutions, and in an fp16 graph, as in ONNX Runtime, the arithmetic.
        "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of two processes, or of two graphs, sit on the same cores and leave the others idle.
        "ENABLE_CPU_PINNING": False,
    }
    return settings if threads is None else {**settings, "INFERENCE_NUM_THREADS": threads}


def _shapes(tensors: Iterable[TensorInfo], inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, list[int]]]:
    """The shape of each input with N, height and width fixed; the number of windows and of patterns stays open (-1)."""
    for tensor in tensors:
        sizes = inputs[tensor.name].shape
        is_open = [isinstance(part, str) and part[0] in "UP" for part in tensor.shape]
        yield tensor.name, [-1 if free else size for free, size in zip(is_open, sizes, strict=True)]
