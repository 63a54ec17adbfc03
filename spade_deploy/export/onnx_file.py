"""A model as an ONNX file: opset 18, named inputs and outputs, dynamic shapes, values named after layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from spade_deploy.artifact import TensorInfo, description, input_tensors, output_tensors
from spade_deploy.errors import ExportError, reason_of
from spade_deploy.export.build import TracedModel, stage_names
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.spade import levels
from spade_deploy.files.onnx_data import EXTERNAL_DATA_BYTES
from spade_deploy.lookup.tables import LATENT_KERNEL, lookup_tensors
from spade_deploy.spec import GeneratorSpec, GraphKind
from spade_deploy.version import __version__

OPSET = 18

_SCOPES = "pkg.torch.onnx.name_scopes"


def write_onnx(model: TracedModel, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Trace `model` and write it to `path`. Raises ExportError with the exporter's own words where that fails.

    Inputs and outputs are those of the module. The batch is dynamic; so are height and width, as multiples of the
    spec's stride, except with a VAE; so are the numbers of patterns of a lookup graph. Values that the trained
    generator also computes have the names of its layers (`up_0.conv_1`), so that a validation can name the first one
    that diverges. facts: the file's metadata, see `artifact/graph_facts.py`.
    """
    spec = model.spec
    is_lookup = isinstance(model, LookupModel)
    inputs, names, shapes = _example_tables(spec) if is_lookup else _example_inputs(spec)
    # There is one entry for each parameter of `forward`; the arguments after a star are one tuple.
    after_star = shapes if is_lookup else shapes[1:]
    dynamic = (*shapes[: len(shapes) - len(after_star)], *([tuple(after_star)] if after_star else []))
    try:
        with quiet_export():
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[tensor.name for tensor in output_tensors(spec)],
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises dozens of types
        raise ExportError(f"torch.onnx could not export the deploy model: {reason_of(error)}") from error
    assert program is not None
    _name_stages(program.model, model)
    tensors = (*(lookup_tensors(spec) if is_lookup else input_tensors(spec)), *output_tensors(spec))
    describe(program.model, tensors, description(spec, GraphKind.LOOKUP if is_lookup else GraphKind.DENSE), facts or {})
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)


def describe(onnx_model: Any, tensors: Sequence[TensorInfo], text: str, facts: Mapping[str, str]) -> None:
    """Write into a model what it is, what each of its tensors holds, and its facts, for people and for programs.

    tensors: its inputs and outputs. text: what the model does, in a sentence or two.
    """
    meanings = {tensor.name: tensor.meaning for tensor in tensors}
    onnx_model.producer_name, onnx_model.producer_version = "spade-deploy", __version__
    onnx_model.doc_string = onnx_model.graph.doc_string = text
    onnx_model.metadata_props.update(facts)
    for value in (*onnx_model.graph.inputs, *onnx_model.graph.outputs):
        value.doc_string = meanings[value.name]


def _example_inputs(spec: GeneratorSpec) -> tuple[tuple[Tensor, ...], list[str], list[dict[int, Any]]]:
    """Inputs to trace with, their names, and which of their axes are open, all as the tensor contract has them."""
    # Sizes that differ from each other and from 1, so that the tracer cannot take two of them for the same.
    sizes: dict[str, int] = {"N": 2, "H": 2 * spec.stride, "W": 3 * spec.stride}
    least = spec.least_side // spec.stride
    dims = {
        "N": Dim("batch", min=1),
        "H": spec.stride * Dim(f"h{spec.stride}", min=least),
        "W": spec.stride * Dim(f"w{spec.stride}", min=least),
    }
    tensors = input_tensors(spec)
    examples = tuple(
        torch.zeros([sizes[part] if isinstance(part, str) else part for part in tensor.shape]).to(
            getattr(torch, tensor.dtype)
        )
        for tensor in tensors
    )
    shapes = [
        {axis: dims[part] for axis, part in enumerate(tensor.shape) if isinstance(part, str)} for tensor in tensors
    ]
    return examples, [tensor.name for tensor in tensors], shapes


def _example_tables(spec: GeneratorSpec) -> tuple[tuple[Tensor, ...], list[str], list[dict[int, Any]]]:
    height, width = (2, 3) if spec.is_dynamic else (spec.latent_height, spec.latent_width)
    batch, rows, columns = Dim("batch", min=1), Dim(f"h{spec.stride}", min=1), Dim(f"w{spec.stride}", min=1)
    inputs, shapes = [], []
    if spec.z_dim is None:
        inputs.append(torch.zeros(2, height, width, LATENT_KERNEL**2, dtype=torch.int32))
        shapes.append({0: batch, 1: rows, 2: columns})
    taps = spec.kernel_size**2
    for level, stride in enumerate(levels(spec)):
        factor = spec.stride // stride
        inputs += [torch.zeros(count, taps, dtype=torch.int32) for count in (5 + level, 15 + level)]
        inputs.append(torch.zeros(2, factor * height, factor * width, dtype=torch.int32))
        shapes += [{0: Dim(f"codes{stride}", min=1)}, {0: Dim(f"patterns{stride}", min=1)}]
        shapes.append({0: batch, **({1: factor * rows, 2: factor * columns} if spec.is_dynamic else {})})
    if spec.z_dim is not None:
        inputs.append(torch.zeros(2, spec.z_dim))
        shapes.append({0: batch})
    return tuple(inputs), [tensor.name for tensor in lookup_tensors(spec)], shapes


def _name_stages(onnx_model: Any, model: TracedModel) -> None:
    last_value: dict[str, Any] = {}
    for node in onnx_model.graph:
        scopes = _scopes(node)
        if scopes:
            last_value[scopes[-1]] = node.outputs[0]
            if node.op_type == "MatMul" and node.inputs[1].is_initializer():
                # The exporter transposes the weight of such a product, and loses its name.
                node.inputs[1].name = f"{scopes[-1]}.weight"
        # They would put the exporting machine's paths and stack traces into every artifact.
        node.metadata_props.clear()
    for value in onnx_model.graph.inputs:
        value.metadata_props.clear()
    onnx_model.graph.metadata_props.clear()  # they come from sets, so that each export would have other bytes
    _forget_inner_shapes(onnx_model)
    stages = model_stages(model)
    missing = [name for name in stages if name not in last_value]
    if missing:
        raise ExportError(
            f"the exported graph has no value for layer {missing[0]}: this version of torch.onnx is not supported"
        )
    for name in stages:
        last_value[name].name = name


def model_stages(model: TracedModel) -> list[str]:
    """The named values of a model's graph. A lookup model makes no `norm_s`: its learned shortcut is one step."""
    names = stage_names(model.spec)
    return [name for name in names if not name.endswith("norm_s")] if isinstance(model, LookupModel) else names


def _forget_inner_shapes(onnx_model: Any) -> None:
    # Every runtime infers the shapes of inner values itself. Where the file has them, ONNX Runtime reuses buffers by
    # symbol, and a client that tries the graph at 1 x 1 (polygraphy's default) gets a failure instead of an image.
    outputs = {value.name for value in onnx_model.graph.outputs}
    for node in onnx_model.graph:
        for value in node.outputs:
            if value.name not in outputs:
                value.shape = None
                value.type = None


def _scopes(node: Any) -> list[str]:
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return []
    # "['', 'up_0', 'up_0.conv_1', 'conv2d_5']": modules from the root down, then the operator.
    names = [part.strip().strip("'") for part in text.strip("[]").split(",")]
    return [name for name in names[:-1] if name]


@contextmanager
def quiet_export() -> Iterator[None]:
    """A block without the exporter's warnings: it logs one for every torchvision operator if that is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
