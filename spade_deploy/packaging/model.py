"""Triton's Python back end runs this file: label maps in, pixels out, by the lookup graph.

`spade package` copies it into the model repository. It finds the patterns of the label maps with
`spade_deploy.lookup`, and calls the model of the lookup graph, which Triton runs in its own ONNX Runtime. A map whose
share of unique patterns is above `spade.break_even_share` goes to the model of the dense graph, as `spade infer` does.
Both models, the share and the generator spec are parameters in config.pbtxt.

The Python that Triton runs needs spade-deploy, and nothing of its extras: pip install spade-deploy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z, default_style, input_tensors, joined
from spade_deploy.engines.base import check_inputs
from spade_deploy.errors import InputRefusedError
from spade_deploy.lookup.tables import extract_patterns, graph_inputs
from spade_deploy.spec import GeneratorSpec, GraphKind


class _CallFailedError(Exception):
    """The model of a graph answered with an error."""


class TritonPythonModel:
    """The model, by the names that Triton's Python back end looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters. args: `model_config` is the configuration as JSON."""
        config = json.loads(args["model_config"])
        told = {name: value.get("string_value", "") for name, value in config["parameters"].items()}
        self._spec = GeneratorSpec.from_json(json.loads(told["spade.spec"]))
        self._lookup, self._dense = told["spade.lookup_model"], told["spade.dense_model"]
        self._share = float(told["spade.break_even_share"]) if told["spade.break_even_share"] else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order. A request that is refused has an error, and the others their images.

        Requests of one size are one batch, so that their maps share the patterns.
        """
        responses: dict[int, Any] = {}
        batches: dict[tuple[int, ...], dict[int, Arrays]] = {}
        for number, request in enumerate(requests):
            if request.is_cancelled():
                responses[number] = _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                inputs = self._inputs_of(request)
            except InputRefusedError as error:
                responses[number] = _failed(error.message, pb_utils.TritonError.INVALID_ARG)
                continue
            batches.setdefault(inputs[LABEL].shape[1:], {})[number] = inputs
        for batch in batches.values():
            responses |= self._answered(requests, batch)
        return [responses[number] for number in range(len(requests))]

    def _inputs_of(self, request: Any) -> Arrays:
        """The checked inputs of a request. Without instances a map is one object; without z, the default style.

        Raises InputRefusedError.
        """
        inputs = {}
        for info in input_tensors(self._spec):
            tensor = pb_utils.get_input_tensor_by_name(request, info.name)
            if tensor is not None:
                inputs[info.name] = tensor.as_numpy()
        if LABEL in inputs:
            label = inputs[LABEL]
            if self._spec.labels.has_edges:
                inputs.setdefault(INSTANCE, np.zeros(label.shape, np.int32))
            style = default_style(self._spec, len(label))
            if style is not None:
                inputs.setdefault(Z, style)
        check_inputs(self._spec, inputs)
        return inputs

    def _answered(self, requests: Sequence[Any], batch: dict[int, Arrays]) -> dict[int, Any]:
        """The responses to requests of one size, by their numbers."""
        names = list(dict.fromkeys(name for number in batch for name in requests[number].requested_output_names()))
        try:
            made = self._run(joined(list(batch.values())), names)
        except _CallFailedError as error:
            if len(batch) == 1:
                return {number: _failed(str(error), pb_utils.TritonError.INTERNAL) for number in batch}
            alone = [self._answered(requests, {number: inputs}) for number, inputs in batch.items()]
            return {number: response for answer in alone for number, response in answer.items()}
        responses, start = {}, 0
        for number, inputs in batch.items():
            end = start + len(inputs[LABEL])
            wanted = requests[number].requested_output_names()
            tensors = [pb_utils.Tensor(name, np.ascontiguousarray(made[name][start:end])) for name in wanted]
            responses[number] = pb_utils.InferenceResponse(output_tensors=tensors)
            start = end
        return responses

    def _run(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        """The outputs of a batch, by the graph that is faster for it. Raises _CallFailedError."""
        tables = extract_patterns(self._spec, inputs[LABEL], inputs.get(INSTANCE), max_share=self._share)
        if tables is None:
            return _call(self._dense, graph_inputs(self._spec, GraphKind.DENSE, inputs), names)
        return _call(self._lookup, tables.to_inputs(inputs.get(Z)), names)


def _call(model: str, inputs: Arrays, names: Sequence[str]) -> Arrays:
    """What another model of this server answers, in the memory of the CPU. Raises _CallFailedError."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(names),
        inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise _CallFailedError(f"{model}: {response.error().message()}")
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in names}


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
