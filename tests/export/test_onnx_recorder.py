"""What is recorded computes what PyTorch computes, and what cannot be recorded is refused."""

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
from torch.nn import functional

from spade_deploy.errors import ExportError
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.export.onnx_sizes import Size, product, times

N, H = Size(1, "batch"), Size(4, "h")


class Applied(nn.Module):
    """A function of x, N x 6 x 4h x 8, with weights that stay apart though they are equal."""

    def __init__(self, function: Callable[[Any, nn.Module], Any]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(6, eps=0.1)
        for values in (self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias):
            nn.init.uniform_(values, 0.5, 2.0)
        for layer in (self.first, self.second):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Any) -> tuple[Any]:
        return (self.function(x, self),)


def recorded(function: Callable[[Any, Any], Any], dtype: torch.dtype = torch.float32) -> tuple[Applied, ir.Model]:
    torch.manual_seed(0)
    model = Applied(function).eval()
    return model, Recorder(model, 18).record([GraphInput("x", dtype, (N, 6, H, 8))], [("y", ())], [])


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "picked rows": lambda x, _: x.index_select(3, torch.tensor([7, 0, 3])) * x[:, :, :, :3],
    "resizing to a size": lambda x, _: functional.interpolate(x[:, :, :4], size=(7, 3), mode="nearest"),
    "batch norm": lambda x, m: functional.max_pool2d(m.norm(x), 2) * 3,
    "numbers of windows": lambda x, _: torch.where(
        x >= 0, torch.cumsum((x != x[:, :1]), 3, dtype=torch.int32).clamp(max=3).float(), -x[:, 1:2]
    ).masked_fill(~(x >= -1), 7.0),
    "maxima of one map": lambda x, _: functional.max_pool2d(functional.pad(x[:, 0], (1, 1, 1, 1), value=2.0), 3, 1),
    "stacked": lambda x, _: torch.stack([x[:, 1], x[:, -1]], dim=3) @ torch.ones(2, 3).triu(),
    "slices": lambda x, _: x[:, None, 1:5, ::4, :-1],
    "view": lambda x, _: x.view(-1, 4, 2).permute(0, 2, 1).flatten(1),
    "flatten in the middle": lambda x, _: x.permute(0, 2, 3, 1).flatten(2, 3),
    "chunks": lambda x, _: torch.cat(x.chunk(3, dim=1)[::-1], dim=1) - x.split(2, dim=1)[0][:, :1],
    "statistics": lambda x, _: torch.rsqrt((x * x).mean(dim=[2, 3], keepdim=True) + 1e-5) * x.sum(dim=1, keepdim=True),
    "convolutions": lambda x, m: m.up(m.second(functional.pad(m.first(x), (1, 1, 1, 1), mode="reflect")[:, :, 1:-1])),
    "resizing": lambda x, _: functional.interpolate(
        functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False
    ),
    "averages of what is inside": lambda x, _: (
        functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        + functional.avg_pool2d(x, 3, stride=2, padding=1)
    ),
    "pixels": lambda x, _: ((torch.tanh(x) + 1) / 2 * 255).clamp(0, 255).floor().to(torch.uint8),
    "doubled and leaking": lambda x, _: functional.leaky_relu(
        functional.interpolate(x, scale_factor=2, mode="nearest"), 0.2
    ),
    "comparison": lambda x, _: torch.maximum((x != x[:, :1]).float(), x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_recorded_graph_computes_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    model, graph = recorded(FUNCTIONS[name])
    graph.graph.outputs[0].shape = None
    path = tmp_path / "graph.onnx"
    ir.save(graph, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, rows in ((1, 8), (3, 4)):
        x = torch.randn(batch, 6, rows, 8)
        with torch.no_grad():
            (expected,) = model(x)
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == tuple(expected.shape)
        assert np.abs(found.astype(float) - expected.double().numpy()).max() < 1e-5  # sums of up to 54 values near 1


def test_parameters_stay_apart_and_equal_operations_are_one() -> None:
    _, graph = recorded(lambda x, m: m.first(x) + m.second(x)[:, :, :1, :1] + torch.tanh(x) * torch.tanh(x))
    assert {"first.bias", "second.bias"} <= set(graph.graph.initializers)
    assert sum(node.op_type == "Tanh" for node in graph.graph) == 1


def test_halves_are_summed_in_float32() -> None:
    _, graph = recorded(lambda x, _: x.sum(dim=1), torch.float16)
    kinds = [(node.op_type, node.attributes["to"].value if node.op_type == "Cast" else None) for node in graph.graph]
    assert kinds == [("Cast", ir.DataType.FLOAT), ("ReduceSum", None), ("Cast", ir.DataType.FLOAT16)]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, _: torch.sigmoid(x), "sigmoid"),
        (lambda x, _: x.cumprod(1), "cumprod"),
        (lambda x, _: x + torch.zeros(1, dtype=torch.float16), "one has to be cast"),
        (lambda x, _: x.chunk(4, dim=1), "4 equal parts"),
        (lambda x, _: functional.interpolate(x, scale_factor=3, mode="nearest"), "resizing"),
        (lambda x, _: functional.interpolate(x, scale_factor=2, mode="bilinear", antialias=True), "resizing"),
        (lambda x, _: functional.embedding(x.to(torch.int64), torch.ones(2, 3), max_norm=1.0), "largest norm"),
        (lambda x, _: functional.pad(x, (1, 1), mode="replicate"), "padding"),
        (lambda x, _: functional.avg_pool2d(x, 3, ceil_mode=True), "average pooling with a ceiling"),
        (lambda x, _: functional.avg_pool2d(x, 2, divisor_override=3), "average pooling with a ceiling or another"),
        (lambda x, _: functional.max_pool2d(x, 2, padding=1), "leave the map"),
        (lambda x, m: m.norm.train()(x), "train mode"),
        (lambda x, _: x[..., 0], "index"),
    ],
)
def test_what_is_not_known_is_refused(function: Callable[[Any, Tensor], Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        recorded(function)


def test_sizes_are_multiplied_as_far_as_they_are_known() -> None:
    assert times(H, 2) == Size(8, "h")
    assert product([2, H, 3]) == Size(24, "h")
    assert product([N, H]) is None
