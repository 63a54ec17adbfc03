"""A model as an ONNX file: opset 18, named inputs and outputs, dynamic shapes, values named after layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from spade_deploy.artifact import TensorInfo, description, graph_tensors, output_tensors
from spade_deploy.export.build import ExportedModel, stage_names
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.export.onnx_sizes import Dimension, Size, times
from spade_deploy.export.spade import levels
from spade_deploy.files.onnx_data import EXTERNAL_DATA_BYTES
from spade_deploy.lookup.tables import LATENT_KERNEL, lookup_tensors
from spade_deploy.spec import GeneratorSpec, GraphKind
from spade_deploy.version import __version__

OPSET = 18

BATCH = Size(1, "batch")
"""The number of label maps, which is not fixed."""


def write_onnx(model: ExportedModel, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Record `model` as a graph and write it to `path`. Raises ExportError for an operation that ONNX nodes lack here.

    Inputs and outputs are those of the module. The batch is dynamic; so are height and width, as multiples of the
    spec's stride, except with a VAE; so are the numbers of patterns of a lookup graph. Values that the trained
    generator also computes have the names of its layers (`up_0.conv_1`), so that a validation can name the first one
    that diverges. facts: the file's metadata, see `artifact/graph_facts.py`.
    """
    spec = model.spec
    is_lookup = isinstance(model, LookupModel)
    tensors = lookup_tensors(spec) if is_lookup else graph_tensors(spec)
    sizes = _table_sizes(spec) if is_lookup else [open_sizes(spec, tensor) for tensor in tensors]
    inputs = [
        GraphInput(tensor.name, getattr(torch, tensor.dtype), one) for tensor, one in zip(tensors, sizes, strict=True)
    ]
    outputs = [(tensor.name, open_sizes(spec, tensor)) for tensor in output_tensors(spec)]
    onnx_model = Recorder(model, OPSET).record(inputs, outputs, model_stages(model))
    kind = GraphKind.LOOKUP if is_lookup else GraphKind.DENSE
    describe(onnx_model, (*tensors, *output_tensors(spec)), description(spec, kind), facts or {})
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ir.save(onnx_model, path, external_data=f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None)


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


def open_sizes(spec: GeneratorSpec, tensor: TensorInfo) -> tuple[Dimension, ...]:
    """The sizes of a tensor, as the tensor contract has them: of the dense graph, or of the style encoder."""
    named = {"N": BATCH, "H": Size(spec.stride, f"h{spec.stride}"), "W": Size(spec.stride, f"w{spec.stride}")}
    return tuple(named[part] if isinstance(part, str) else part for part in tensor.shape)


def _table_sizes(spec: GeneratorSpec) -> list[tuple[Dimension, ...]]:
    """The sizes of the inputs of the lookup graph, in their order."""
    height: Dimension = Size(1, f"h{spec.stride}") if spec.is_dynamic else spec.latent_height
    width: Dimension = Size(1, f"w{spec.stride}") if spec.is_dynamic else spec.latent_width
    sizes: list[tuple[Dimension, ...]] = []
    if spec.is_dynamic:
        sizes.append((BATCH, height, width, LATENT_KERNEL**2))
    taps = spec.window_kernel**2
    for stride in levels(spec):
        factor = spec.stride // stride
        sizes += [(Size(1, f"codes{stride}"), taps), (Size(1, f"patterns{stride}"), taps)]
        sizes.append((BATCH, times(height, factor), times(width, factor)))
    if spec.has_positions:
        sizes.append((BATCH, 2, times(height, spec.stride), times(width, spec.stride)))
    if spec.z_dim is not None:
        sizes.append((BATCH, spec.z_dim))
    return sizes


def model_stages(model: ExportedModel) -> list[str]:
    """The named values of a model's graph. A lookup model makes no `norm_s`: its learned shortcut is one step."""
    names = stage_names(model.spec)
    return [name for name in names if not name.endswith("norm_s")] if isinstance(model, LookupModel) else names


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
