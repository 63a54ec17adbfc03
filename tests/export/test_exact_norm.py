"""Norms that are written out: on flat regions every engine is as exact as float32 allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spade_deploy.engines.openvino.exact_norms import sum_axis_by_axis
from spade_deploy.engines.openvino.library import load_openvino
from spade_deploy.export.exact_norm import standardized
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.export.onnx_sizes import Size

CHANNELS, SIDE, EPS = 16, 128, 1e-5
LIMIT = 4e-6
"""Measured worst 5e-7 in ONNX Runtime and 4e-7 in OpenVINO; PyTorch itself is off by 2e-6."""


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros(1))  # the recorder asks a model for its parameters

    def forward(self, x: Any) -> tuple[Any]:
        return (self.function(x),)


def flat_regions() -> Any:
    """1 x C x S x S float32: squares of one value each, of which a channel has four that lie far from zero."""
    rng = np.random.default_rng(0)
    regions = rng.integers(0, 4, (SIDE // 16, SIDE // 16)).repeat(16, 0).repeat(16, 1)
    values = 0.3 * rng.standard_normal((CHANNELS, 4)) + rng.standard_normal((CHANNELS, 1))
    return values[:, regions][None].astype(np.float32)


def recorded(function: Callable[[Tensor], Tensor], path: Path) -> Path:
    height = Size(16, "h")
    shape = (Size(1, "batch"), CHANNELS, height, SIDE)
    model = Applied(function).eval()
    ir.save(Recorder(model, 18).record([GraphInput("x", torch.float32, shape)], [("y", ())], []), path)
    return path


def in_ort(path: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def in_openvino(path: Path, x: Any) -> Any:
    openvino = load_openvino()
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(x.shape))
    sum_axis_by_axis(model)
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]


def error(found: Any, x: Any, axes: tuple[int, ...]) -> float:
    exact = x.astype(np.float64) - x.astype(np.float64).mean(axes, keepdims=True)
    return float(np.abs(found - exact / np.sqrt((exact**2).mean(axes, keepdims=True) + EPS)).max())


@pytest.mark.parametrize("run", [in_ort, in_openvino])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3)])
def test_flat_regions_are_normalised_exactly(run: Any, axes: tuple[int, ...], tmp_path: Path) -> None:
    x = flat_regions()
    path = recorded(lambda x: standardized(x, axes, EPS), tmp_path / "norm.onnx")
    assert error(run(path, x), x, axes) < LIMIT


def test_a_mean_over_both_axes_at_once_is_not_exact(tmp_path: Path) -> None:
    """What the limit sees: without the care taken the error is 50 times as large."""
    x = flat_regions()

    def plain(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=[2, 3], keepdim=True)
        return centred * torch.rsqrt((centred * centred).mean(dim=[2, 3], keepdim=True) + EPS)

    assert error(in_ort(recorded(plain, tmp_path / "plain.onnx"), x), x, (2, 3)) > 5 * LIMIT


def test_half_precision_keeps_float32_statistics() -> None:
    x = 300 * torch.from_numpy(flat_regions())  # whose squares half precision cannot hold
    half = standardized(x.half(), (2, 3), EPS)
    assert half.dtype is torch.float16
    assert (half.float() - standardized(x.double(), (2, 3), EPS)).abs().max() < 4e-3
