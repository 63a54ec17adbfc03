"""How fast the residual blocks' convolutions could be: in ONNX Runtime as it is, and by this CPU's arithmetic alone.

Two figures stand beside each other. `write_convolutions` makes the graph of these convolutions alone, which ONNX
Runtime runs directly, without Winograd: a measured time. `lower_bounds` divides the multiplications by what the CPU
does at its most in a large matrix product: a time that no direct convolution goes below, and the same with Winograd's
fewer multiplications (Lavin and Gray 2015: F(2 x 2, 3 x 3) needs 2.25 times fewer, F(4 x 4, 3 x 3) 4 times), its
transforms free. Everything else that a generator does is left out. Parts of these convolutions could be spared where a
label map is uniform; the bounds do not count that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spade_deploy.bench import GEMM_SIDE, BenchResult, Kind
from spade_deploy.spec import GeneratorSpec

WINOGRAD = {"direct": 1.0, "winograd_2x2": 2.25, "winograd_4x4": 4.0}
"""How many times fewer multiplications a 3 x 3 convolution needs; a 1 x 1 convolution needs all."""


def convolutions(spec: GeneratorSpec, size: int) -> list[dict[str, Any]]:
    """The residual blocks' convolutions at size x size: name, kernel and multiply-adds of an image."""
    found, side = [], size // spec.stride
    for block in spec.blocks:
        side *= 2 if block.doubles else 1
        ends = {
            "conv_0": (3, block.in_channels, block.middle_channels),
            "conv_1": (3, block.middle_channels, block.out_channels),
        }
        if block.has_shortcut:
            ends["conv_s"] = (1, block.in_channels, block.out_channels)
        for name, (kernel, into, out) in ends.items():
            layer = f"{block.name}.{name}"
            found.append({"layer": layer, "kernel": kernel, "macs": kernel**2 * into * out * side**2})
    return found


def peaks(results: list[BenchResult]) -> dict[str, float]:
    """Operations a second by precision, of the fastest run of each matrix product; a multiply-add is two."""
    found: dict[str, float] = {}
    for result in results:
        for entry in result.measured:
            if entry.candidate.kind is Kind.GEMM:
                fastest = min(run.seconds for run in entry.runs)
                rate = 2 * GEMM_SIDE**3 / fastest
                found[str(entry.precision)] = max(rate, found.get(str(entry.precision), 0.0))
    return found


def lower_bounds(spec: GeneratorSpec, size: int, flop_per_s: dict[str, float]) -> dict[str, Any]:
    """Milliseconds an image, by precision and by way of convolving, and the layers that they are the sums of."""
    layers = convolutions(spec, size)
    flop = {
        way: sum(2 * layer["macs"] / (fewer if layer["kernel"] == 3 else 1) for layer in layers)
        for way, fewer in WINOGRAD.items()
    }
    return {
        "of": "the residual blocks' convolutions alone",
        "layers": layers,
        "flop": flop,
        "peak_flop_per_s": flop_per_s,
        "peak_is": f"the fastest product of two {GEMM_SIDE} x {GEMM_SIDE} matrices in PyTorch in these rounds",
        "ms": {
            precision: {way: 1e3 * count / rate for way, count in flop.items()}
            for precision, rate in flop_per_s.items()
        },
    }


def write_convolutions(spec: GeneratorSpec, size: int, path: Path) -> None:
    """The residual blocks' convolutions with their shortcuts and doublings, chained; no SPADE, no activation."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(name: str, x: str, channels: tuple[int, int], side: int, bias: bool = True) -> str:
        into, out = channels
        weight = rng.standard_normal((out, into, side, side), np.float32) / np.float32(np.sqrt(into * side * side))
        inputs = [x, constant(f"{name}.weight", weight)]
        inputs += [constant(f"{name}.bias", np.zeros(out, np.float32))] if bias else []
        nodes.append(helper.make_node("Conv", inputs, [name], pads=[side // 2] * 4, kernel_shape=[side, side]))
        return name

    scales = constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = "x"
    for block in spec.blocks:
        if block.doubles:
            attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            nodes.append(helper.make_node("Resize", [x, "", scales], [f"{block.name}.doubled"], **attributes))
            x = f"{block.name}.doubled"
        ends = (block.in_channels, block.out_channels)
        shortcut = conv(f"{block.name}.conv_s", x, ends, 1, bias=False) if block.has_shortcut else x
        y = conv(f"{block.name}.conv_0", x, (block.in_channels, block.middle_channels), 3)
        y = conv(f"{block.name}.conv_1", y, (block.middle_channels, block.out_channels), 3)
        nodes.append(helper.make_node("Add", [y, shortcut], [block.name]))
        x = block.name
    first, last = spec.blocks[0], spec.blocks[-1]
    latent = size // spec.stride
    graph = helper.make_graph(
        nodes,
        "residual convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, first.in_channels, latent, latent])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, last.out_channels, size, size])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
