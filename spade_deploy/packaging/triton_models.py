"""The Triton models of an artifact: the configuration and the files of each.

    NAME                  the dense graph in ONNX Runtime: label ids in, pixels out
    NAME-lookup           Python: finds the patterns of the label maps, and calls one of the two graphs
    NAME-lookup-graph     the lookup graph in ONNX Runtime: pattern tables in, pixels out
    NAME-tensorrt         the dense graph's engine of `spade build`, where the artifact has one

The configuration is that of Triton's model_config.proto. Inputs, outputs and sizes follow from the generator spec, as
the graphs' own do. NAME-lookup calls by Triton's business logic scripting: the graph runs in Triton's own ONNX Runtime,
on the device of its instance group, while another copy finds the patterns of the next batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spade_deploy.artifact import (
    LABEL,
    Arrays,
    Artifact,
    Graph,
    TensorInfo,
    graph_facts,
    graph_tensors,
    input_tensors,
    model_facts,
    one_by_one,
    output_tensors,
)
from spade_deploy.lookup.tables import graph_inputs, lookup_tensors
from spade_deploy.packaging.engines import PlanChoice
from spade_deploy.packaging.request import Device, PackageRequest
from spade_deploy.packaging.text_format import Word, map_field, text_of
from spade_deploy.printable import one_line
from spade_deploy.spec import GraphKind

LOOKUP_MODEL, DENSE_MODEL, BREAK_EVEN = "spade.lookup_model", "spade.dense_model", "spade.break_even_share"
"""The parameters of the Python model beside the facts of the generator."""
LABELS = "labels.txt"
_KINDS = {Device.AUTO: "KIND_AUTO", Device.CPU: "KIND_CPU", Device.GPU: "KIND_GPU"}
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
_MODEL_PY = Path(__file__).parent / "model.py"


@dataclass(frozen=True)
class TritonModel:
    """One folder of the model repository."""

    name: str
    """The model's name, which is that of its folder."""
    config: Mapping[str, Any]
    """The fields of its ModelConfig."""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Files below its folder by their names: those that are made."""
    graph: Graph | None = None
    """The artifact's graph that it runs; its file is copied to `graph_file`."""
    graph_file: str = ""
    """The place of that file below the model's folder."""

    def config_text(self) -> str:
        """The text of its config.pbtxt."""
        return text_of(self.config)


class Models:
    """Makes the models of one artifact."""

    def __init__(self, artifact: Artifact, asked: PackageRequest, name: str) -> None:
        self._artifact, self._asked, self._name = artifact, asked, name
        self._spec = artifact.manifest.generator
        self._version = str(asked.model_version)

    def dense(self, graph: Graph) -> TritonModel:
        """The dense graph in ONNX Runtime."""
        asked = self._asked
        config = {
            "name": self._name,
            "backend": "onnxruntime",
            "default_model_filename": "model.onnx",
            **self._batched(graph_tensors(self._spec), asked.max_batch),
            "instance_group": {"count": asked.instances, "kind": Word(_KINDS[asked.device])},
            **self._version_policy(),
            "model_warmup": self._warmup(self._golden(), range(1, asked.max_batch + 1)),
            "parameters": self._parameters(graph, self._session_options()),
        }
        return self._of_graph(self._name, config, graph, self._golden())

    def lookup_graph(self, graph: Graph) -> TritonModel:
        """The lookup graph in ONNX Runtime. Its tables have no common first dimension: Triton must not batch it."""
        asked, name = self._asked, f"{self._name}-lookup-graph"
        tables = graph_inputs(self._spec, GraphKind.LOOKUP, self._golden())
        config = {
            "name": name,
            "backend": "onnxruntime",
            "default_model_filename": "model.onnx",
            "max_batch_size": 0,
            "input": [_tensor(info, info.shape) for info in lookup_tensors(self._spec)],
            "output": [_tensor(info, info.shape) for info in output_tensors(self._spec)],
            "instance_group": {"count": asked.instances, "kind": Word(_KINDS[asked.device])},
            **self._version_policy(),
            "model_warmup": self._warmup(tables, (1,), is_batched=False),
            "parameters": self._parameters(graph, self._session_options()),
        }
        return self._of_graph(name, config, graph, tables)

    def lookup(self, graph: Graph) -> TritonModel:
        """The Python model that finds the patterns. It has a copy more than the graph, to find those of the next batch.

        It is not warmed up: Triton loads models in any order, and a call to a model that is not loaded yet fails.
        """
        asked, name = self._asked, f"{self._name}-lookup"
        tensors = input_tensors(self._spec)
        share = graph.break_even_share
        calls = {
            LOOKUP_MODEL: f"{name}-graph",
            DENSE_MODEL: self._name,
            BREAK_EVEN: "" if not share else str(share),
        }
        config = {
            "name": name,
            "backend": "python",
            "default_model_filename": "model.py",
            **self._batched(tensors, asked.max_batch, optional=[info.name for info in tensors if info.name != LABEL]),
            "instance_group": {"count": asked.instances + 1, "kind": Word("KIND_CPU")},
            **self._version_policy(),
            "parameters": self._parameters(graph, calls),
        }
        contents = {f"{self._version}/model.py": _MODEL_PY.read_bytes(), **self._label_file()}
        return TritonModel(name, config, contents)

    def tensorrt(self, graph: Graph, plan: PlanChoice) -> TritonModel:
        """The dense graph's TensorRT engines, one for each kind of card."""
        name, profile = f"{self._name}-tensorrt", plan.profile
        max_batch = min(profile.most[0], self._asked.max_batch)
        sizes = [low if low == high else -1 for low, high in zip(profile.least[1:], profile.most[1:], strict=True)]
        case = self._golden()
        fits = profile.contains(1, *case[LABEL].shape[1:])
        facts = {"spade.tensorrt": plan.version, "spade.cards": ", ".join(plan.cards), "spade.profile": str(profile)}
        first, *others = plan.files
        config = {
            "name": name,
            "backend": "tensorrt",
            "default_model_filename": first,
            **({"cc_model_filenames": map_field({plan.files[one]: one for one in plan.files})} if others else {}),
            **self._batched(graph_tensors(self._spec), max_batch, sizes=sizes),
            "instance_group": {"count": self._asked.instances, "kind": Word("KIND_GPU")},
            **self._version_policy(),
            **({"model_warmup": self._warmup(case, range(1, max_batch + 1))} if fits else {}),
            "parameters": self._parameters(graph, facts),
        }
        contents = {f"{self._version}/{file}": content for file, content in plan.contents.items()}
        warmup = _warmup_files(case) if fits else {}
        return TritonModel(name, config, {**contents, **warmup, **self._label_file()})

    def _of_graph(self, name: str, config: Mapping[str, Any], graph: Graph, inputs: Arrays) -> TritonModel:
        contents = {**_warmup_files(inputs), **self._label_file()}
        return TritonModel(name, config, contents, graph, f"{self._version}/model.onnx")

    def _golden(self) -> Arrays:
        """The dense graph's inputs of the first golden image: a real label map, where the export was given some."""
        return graph_inputs(self._spec, GraphKind.DENSE, next(one_by_one(self._artifact.golden().inputs)))

    def _batched(
        self,
        tensors: Iterable[TensorInfo],
        max_batch: int,
        *,
        optional: Iterable[str] = (),
        sizes: list[int] | None = None,
    ) -> dict[str, Any]:
        """Inputs and outputs without their first dimension, which Triton joins requests along.

        sizes: the height and width that alone are taken, -1 for any; None leaves them to the generator spec.
        """
        fixed = {"H": sizes[0], "W": sizes[1]} if sizes else {}

        def told(info: TensorInfo) -> dict[str, Any]:
            return _tensor(info, [fixed.get(str(size), size) for size in info.shape[1:]])

        names = set(optional)
        inputs = [told(info) | ({"optional": True} if info.name in names else {}) for info in tensors]
        preferred = [size for size in _powers_of_two() if size <= max_batch]
        batching = {
            "preferred_batch_size": preferred,
            "max_queue_delay_microseconds": round(self._asked.max_delay_ms * 1000),
        }
        return {
            "max_batch_size": max_batch,
            "input": inputs,
            "output": [told(info) for info in output_tensors(self._spec)],
            **({"dynamic_batching": batching} if max_batch > 1 else {}),
        }

    def _version_policy(self) -> dict[str, Any]:
        return {"version_policy": {"latest": {"num_versions": 1}}}

    def _session_options(self) -> dict[str, str]:
        """ONNX Runtime's options that are not its defaults, as `spade infer` sets them."""
        threads = {} if self._asked.threads is None else {"intra_op_thread_count": str(self._asked.threads)}
        return threads | ({} if self._asked.device is Device.GPU else {"enable_mem_pattern": "0"})

    def _parameters(self, graph: Graph, more: Mapping[str, str]) -> list[dict[str, Any]]:
        manifest = self._artifact.manifest
        facts = model_facts(self._spec, manifest.source, manifest.versions)
        facts |= graph_facts(graph.kind, graph.precision, graph.kept_fp32)
        return map_field({name: {"string_value": value} for name, value in {**facts, **more}.items()})

    def _label_file(self) -> dict[str, bytes]:
        """The name of each id in a line of its own."""
        labels = self._spec.labels
        return {LABELS: "".join(f"{one_line(labels.name_of(number))}\n" for number in range(labels.num_ids)).encode()}

    def _warmup(self, inputs: Arrays, sizes: Iterable[int], *, is_batched: bool = True) -> list[dict[str, Any]]:
        """Requests that each copy answers before it takes others, one for each batch size that is preferred."""
        wanted = [size for size in sizes if size == 1 or size in _powers_of_two()]
        return [
            {
                "name": f"a batch of {size}" if is_batched else "a label map",
                "batch_size": size,
                "inputs": map_field(
                    {
                        name: {
                            "data_type": Word(_TYPES[str(array.dtype)]),
                            "dims": list(array.shape[1:] if is_batched else array.shape),
                            "input_data_file": name,
                        }
                        for name, array in inputs.items()
                    }
                ),
            }
            for size in wanted
        ]


def _tensor(info: TensorInfo, shape: Iterable[int | str]) -> dict[str, Any]:
    dims = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": info.name, "data_type": Word(_TYPES[info.dtype]), "dims": dims}


def _warmup_files(inputs: Arrays) -> dict[str, bytes]:
    """Where Triton looks for the data of warm-up requests: raw bytes in the folder warmup/ of the model."""
    return {f"warmup/{name}": array.tobytes() for name, array in inputs.items()}


def _powers_of_two() -> tuple[int, ...]:
    return tuple(2**power for power in range(1, 13))
