"""The export that everybody has: `torch.onnx.export` of the untouched module, nothing folded, merged or looked up."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim

from spade_deploy.artifact import IMAGE
from spade_deploy.bench.inputs import SEGMAP
from spade_deploy.errors import ConfigError
from spade_deploy.export.onnx_file import quiet_export
from spade_deploy.networks.spade import SpadeGenerator


def write_plain(generator: SpadeGenerator, path: Path, *, half: bool, size: tuple[int, int] | None = None) -> None:
    """segmap N x L x H x W -> image, with a dynamic batch.

    half: all of it in half precision. size: (height, width) in pixels; None is the model's size.
    """
    spec = generator.spec
    if spec.z_dim is not None:
        raise ConfigError("the plain export of a model with a style vector is not measured")
    dtype = torch.float16 if half else torch.float32
    module = SpadeGenerator(spec)
    module.load_state_dict(generator.state_dict())
    module.to(dtype).eval()
    segmap = torch.zeros(2, spec.labels.num_channels, *(size or (spec.height, spec.width)), dtype=dtype)
    with quiet_export():
        program = torch.onnx.export(
            module,
            (segmap,),
            dynamo=True,
            input_names=[SEGMAP],
            output_names=[IMAGE],
            dynamic_shapes=({0: Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None  # of dynamo=True
    program.save(str(path), external_data=False)
