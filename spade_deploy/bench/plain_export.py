"""The baseline that everybody has: `torch.onnx.export` of the untouched module, nothing folded or merged."""

from __future__ import annotations

from pathlib import Path

from spade_deploy.artifact import IMAGE, Z
from spade_deploy.bench.inputs import SEGMAP
from spade_deploy.errors import ExportError
from spade_deploy.files.onnx_data import EXTERNAL_DATA_BYTES
from spade_deploy.spec import FEATURE_CHANNELS


def write_plain_export(checkpoint: Path, path: Path) -> None:
    """segmap (and style) -> image, with a dynamic batch, and a dynamic size without a VAE. Needs PyTorch."""
    import torch
    from torch.export import Dim

    from spade_deploy.export.onnx_file import quiet_export
    from spade_deploy.runs.checkpoint import load_generator

    loaded = load_generator(checkpoint)
    spec, stride = loaded.spec, loaded.spec.stride
    if spec.has_positions:
        raise ExportError("a network with positions has no plain export: ONNX has no operator that finds regions")
    if spec.has_bank:
        raise ExportError("SIMS has no plain export: ONNX has no operator that finds segments in a memory bank")
    batch = Dim("batch", min=1)
    height, width = (2 * stride, 3 * stride) if spec.is_dynamic else (spec.height, spec.width)
    shape = {0: batch}
    if spec.is_dynamic:
        least = spec.least_side // stride
        shape |= {2: stride * Dim("h", min=least), 3: stride * Dim("w", min=least)}
    channels = spec.labels.num_channels + (FEATURE_CHANNELS if spec.has_features else 0)
    inputs = [torch.zeros(2, channels, height, width)]
    names, shapes = [SEGMAP], [shape]
    if spec.z_dim is not None:
        inputs.append(torch.zeros(2, spec.z_dim))
        names.append(Z)
        shapes.append({0: batch})
    with quiet_export():
        program = torch.onnx.export(
            loaded.module,
            tuple(inputs),
            dynamo=True,
            input_names=names,
            output_names=[IMAGE],
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
    assert program is not None
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.module.parameters())
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
