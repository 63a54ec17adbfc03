"""The lookup graph with the finding of its patterns in front: label maps in, pixels out, all shapes fixed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Z
from spade_deploy.errors import ExportError, reason_of
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.onnx_file import OPSET, quiet_export
from spade_deploy.export.pattern_finder import PatternFinder
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
    try:
        with quiet_export():
            program = torch.onnx.export(
                model,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[PIXELS, IMAGE, EXCESS],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises dozens of types
        raise ExportError(f"torch.onnx could not export the lookup with its finder: {reason_of(error)}") from error
    assert program is not None
    program.model.producer_name = "spade-deploy"
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporting machine's paths and stack traces
    program.model.graph.metadata_props.clear()
    size = sum(value.numel() * value.element_size() for value in [*model.parameters(), *model.buffers()])
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
