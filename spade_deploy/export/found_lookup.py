"""The lookup graph with the finding of its patterns in front: label maps in, pixels out, all shapes fixed."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Z
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.onnx_file import OPSET
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.export.pattern_finder import PatternFinder
from spade_deploy.export.spade import levels
from spade_deploy.files.onnx_data import EXTERNAL_DATA_BYTES

EXCESS = "excess"


class FoundLookup(nn.Module):
    """label (, instance) (, z) -> (pixels, image, excess): `PatternFinder` and `LookupModel`.

    The image is right only where `excess` is zero: elsewhere the map needs the dense graph.
    """

    def __init__(self, finder: PatternFinder, lookup: nn.Module) -> None:
        super().__init__()
        self.finder, self.lookup = finder, lookup

    def forward(self, label: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        has_edges = self.finder.spec.labels.has_edges
        *tables, excess = self.finder(label, *rest[: int(has_edges)])
        pixels, image = self.lookup(*tables, *rest[int(has_edges) :])
        return pixels, image, excess


def write_found_lookup(finder: PatternFinder, lookup: LookupModel, path: Path) -> None:
    """Write both as one ONNX file, for the batch and size of the finder. Raises ExportError."""
    spec, shape = finder.spec, finder.shape
    inputs = {LABEL: torch.zeros(shape, dtype=getattr(torch, spec.labels.id_type))}
    if spec.labels.has_edges:
        inputs[INSTANCE] = torch.zeros(shape, dtype=torch.int32)
    if spec.z_dim is not None:
        inputs[Z] = torch.zeros(shape[0], spec.z_dim)
    model = FoundLookup(finder, lookup).eval()
    given = [GraphInput(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in inputs.items()]
    batch, height, width = shape
    outputs = [
        (PIXELS, (batch, height, width, 3)),
        (IMAGE, (batch, 3, height, width)),
        (EXCESS, (2 * len(levels(spec)),)),
    ]
    onnx_model = Recorder(model, OPSET).record(given, outputs, [])
    onnx_model.producer_name = "spade-deploy"
    size = sum(value.numel() * value.element_size() for value in [*model.parameters(), *model.buffers()])
    ir.save(onnx_model, path, external_data=f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None)
