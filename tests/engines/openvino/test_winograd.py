"""Winograd's convolutions: the same function as the direct ones, where they are used, and where not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spade_deploy.engines.openvino import models, winograd
from spade_deploy.engines.openvino.library import core, has_bf16, load_openvino
from spade_deploy.engines.openvino.models import settings_of
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.engines.openvino.winograd import Layer, tile_for, transformed, transforms_of, use_winograd
from spade_deploy.spec import GraphKind, Precision
from tests.support.stand_in import PLAIN, random_inputs, stand_in_artifact

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)
Array = NDArray[np.float32]


def constant(values: Any) -> Any:
    return load_openvino().opset13.constant(values)


def order(axes: tuple[int, ...]) -> Any:
    return constant(np.array(axes, np.int64))


def make(layer: Layer, kernel: int = 3, stride: int = 1, *, is_last: bool = True) -> tuple[Any, Array, NDArray[Any]]:
    """A model of one convolution with its bias, inputs for it, and what PyTorch says of them in float64.

    is_last: inputs and outputs have their channels last, as in a lookup graph.
    """
    op, rng = load_openvino().opset13, np.random.default_rng(0)
    inputs, outputs, pad = layer.inputs, layer.outputs, kernel // 2
    values = rng.standard_normal((layer.batch, inputs, layer.height, layer.width)).astype(np.float32)
    weights = rng.standard_normal((outputs, inputs, kernel, kernel)) / (kernel * np.sqrt(inputs))
    weights, bias = weights.astype(np.float32), rng.standard_normal(outputs).astype(np.float32)
    right = torch.nn.functional.conv2d(
        *(torch.from_numpy(one).double() for one in (values, weights, bias)), padding=pad, stride=stride
    ).numpy()
    if is_last:
        values, right = np.ascontiguousarray(values.transpose(LAST)), right.transpose(LAST)
    fed = op.parameter(list(values.shape), np.float32)
    first = op.transpose(fed, order(FIRST)) if is_last else fed
    node = op.convolution(first, constant(weights), [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])
    node = op.add(node, op.reshape(constant(bias), constant(np.array([1, -1, 1, 1])), False))
    node = op.transpose(node, order(LAST)) if is_last else node
    return load_openvino().Model([op.multiply(node, constant(np.float32(1)))], [fed]), values, right


def run(model: Any, values: Array) -> Array:
    found: Array = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))([values])[0]
    return found


def kinds_in(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("extent", [(1, 8, 12), (3, 5, 7), (2, 1, 1), (1, 33, 2)])
def test_it_is_the_convolution_for_every_size(extent: tuple[int, int, int], tile: int, is_last: bool) -> None:
    batch, height, width = extent
    model, values, right = make(Layer(batch, 24, 20, height, width), is_last=is_last)
    assert use_winograd(model, GraphKind.LOOKUP, lambda *_: tile) == 1
    assert "Convolution" not in kinds_in(model)
    # Measured: 4e-7 with tiles of 2, 1.7e-6 with tiles of 4; a direct convolution 4e-7.
    np.testing.assert_allclose(run(model, values), right, rtol=0, atol={2: 2e-6, 4: 8e-6}[tile])


def test_a_large_map_is_computed_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "BAND_BYTES", 0)
    model, values, right = make(Layer(2, 2, 2, 30, 20))
    use_winograd(model, GraphKind.LOOKUP, lambda *_: 4)
    # The weights of 576 bytes are one row of five tiles' bytes at most, so each of the 2 x 8 rows is a band.
    assert kinds_in(model).count("GroupConvolution") == 16
    np.testing.assert_allclose(run(model, values), right, rtol=0, atol=8e-6)
    monkeypatch.setattr(winograd, "MOST_BANDS", 3)
    model, values, right = make(Layer(2, 2, 2, 30, 20))
    use_winograd(model, GraphKind.LOOKUP, lambda *_: 4)
    assert kinds_in(model).count("GroupConvolution") == 3
    np.testing.assert_allclose(run(model, values), right, rtol=0, atol=8e-6)


def test_large_weights_are_cut_along_the_output_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MOST_WEIGHT_BYTES", 3000)
    model, values, right = make(Layer(2, 4, 14, 9, 10))  # 36 x 14 x 4 weights of four bytes are 8,064
    use_winograd(model, GraphKind.LOOKUP, lambda *_: 4)
    assert kinds_in(model).count("GroupConvolution") == 3, "5, 5 and 4 of the channels"
    np.testing.assert_allclose(run(model, values), right, rtol=0, atol=8e-6)


@pytest.mark.parametrize("is_last", [True, False])
def test_nothing_is_transposed_between_channels_last(is_last: bool) -> None:
    model, _, _ = make(Layer(1, 8, 8, 8, 8), is_last=is_last)
    use_winograd(model, GraphKind.LOOKUP, lambda *_: 4)
    orders = [tuple(one.input_value(1).get_node().get_data()) for one in model.get_ops() if is_transpose(one)]
    around = [] if is_last else [LAST, FIRST]  # of the whole map; the others are of the product and of the tiles
    assert sorted(orders) == sorted([FIRST, LAST, (0, 2, 1, 3, 4), *around])


def is_transpose(node: Any) -> bool:
    return str(node.get_type_name()) == "Transpose"


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("part", ["inputs", "outputs", "kernels"])
def test_a_wrong_transform_is_seen(tile: int, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right_ones = transforms_of(tile)
    for place in range(getattr(right_ones, part).size):
        changed = getattr(right_ones, part).copy()
        changed.flat[place] += 2.0**-7
        wrong = winograd.Transforms(
            **{
                name: changed if name == part else getattr(right_ones, name)
                for name in ("inputs", "kernels", "outputs")
            }
        )
        signal, kernel = np.random.default_rng(place).standard_normal((2, tile + 2))
        right = [signal[start : start + 3] @ kernel[:3] for start in range(tile)]

        def product(ones: winograd.Transforms, signal: Any = signal, kernel: Any = kernel) -> Any:
            return ones.outputs @ ((ones.kernels @ kernel[:3]) * (ones.inputs @ signal))

        np.testing.assert_allclose(product(right_ones), right, rtol=0, atol=1e-14)
        assert np.abs(product(wrong) - right).max() > 1e-6
    model, values, exact = make(Layer(1, 8, 8, 8, 8))
    monkeypatch.setattr(winograd, "transforms_of", lambda _: wrong)
    use_winograd(model, GraphKind.LOOKUP, lambda *_: tile)
    assert np.abs(run(model, values) - exact).max() > 1e-3


@pytest.mark.parametrize("tile", [2, 4])
def test_the_transforms_are_exact_in_float32(tile: int) -> None:
    """So that only weights are rounded once more, and the sums of the transforms."""
    for matrix in (transforms_of(tile).inputs, transforms_of(tile).outputs):
        for wide in (matrix, np.kron(matrix, matrix)):
            np.testing.assert_array_equal(wide.astype(np.float32), wide)


def test_the_points_leave_half_the_error_of_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        model, values, right = make(Layer(1, 128, 32, 16, 16))
        use_winograd(model, GraphKind.LOOKUP, lambda *_: 4)
        return float(np.sqrt(np.mean((run(model, values) - right) ** 2)))

    ours = error()
    monkeypatch.setitem(winograd.POINTS, 4, tuple(Fraction(point) for point in (0, 1, -1, 2, -2)))
    transforms_of.cache_clear()
    usual = error()
    transforms_of.cache_clear()
    assert ours < 0.65 * usual  # measured 0.48


def test_weights_are_rounded_once() -> None:
    weights = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    kernels = transforms_of(4).kernels
    exact = np.einsum("ia,jb,ocab->ijoc", kernels, kernels, weights.astype(np.float64)).reshape(36, 5, 3, 1, 1)
    np.testing.assert_allclose(transformed(weights, 4), exact, rtol=2.0**-24, atol=0)


def test_it_is_used_where_it_pays() -> None:
    def tile(inputs: int, outputs: int, side: int, kind: GraphKind = GraphKind.LOOKUP, batch: int = 1) -> int | None:
        return tile_for(Layer(batch, inputs, outputs, side, side), kind)

    assert [tile(1024, 1024, side) for side in (8, 14, 15, 16, 28, 29, 32)] == [None, None, 2, 2, 2, 4, 4]
    assert [tile(1024, 512, side, GraphKind.DENSE) for side in (16, 30, 31, 32, 60, 61)] == [None, None, 2, 2, 2, 4]
    assert tile(1024, 1024, 8, batch=4) == 2
    assert tile(64, 64, 256) == 4
    assert tile(63, 64, 256) is None
    assert tile(64, 3, 256) is None  # the last one, which makes the image


def test_other_convolutions_stay() -> None:
    for kernel, stride in ((1, 1), (5, 1), (3, 2)):
        model, values, right = make(Layer(1, 8, 8, 9, 9), kernel, stride)
        assert use_winograd(model, GraphKind.LOOKUP, lambda *_: 2) == 0
        assert "Convolution" in kinds_in(model)
        np.testing.assert_allclose(run(model, values), right, rtol=0, atol=2e-6)
    op = load_openvino().opset13
    fed = op.parameter([1, 8, -1, 8], np.float32)
    open_size = op.convolution(fed, constant(np.ones((8, 8, 3, 3), np.float32)), [1, 1], [1, 1], [1, 1], [1, 1])
    assert use_winograd(load_openvino().Model([open_size], [fed]), GraphKind.DENSE, lambda *_: 2) == 0


def test_a_dilated_kernel_that_keeps_the_size_stays() -> None:
    op = load_openvino().opset13
    fed = op.parameter([1, 8, 9, 9], np.float32)
    node = op.convolution(fed, constant(np.ones((8, 8, 3, 3), np.float32)), [1, 1], [1, 1], [3, 3], [2, 2])
    assert use_winograd(load_openvino().Model([node], [fed]), GraphKind.DENSE, lambda *_: 2) == 0


def test_who_reads_a_convolution_without_its_bias_gets_it_without() -> None:
    op, rng = load_openvino().opset13, np.random.default_rng(0)
    values, weights = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 8, 8), (8, 8, 3, 3)))
    right = torch.nn.functional.conv2d(torch.from_numpy(values), torch.from_numpy(weights), padding=1).numpy()
    fed = op.parameter([1, 8, 8, 8], np.float32)
    node = op.convolution(fed, constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])
    with_bias = op.add(node, constant(np.full((1, 8, 1, 1), 5, np.float32)))
    model = load_openvino().Model([with_bias, op.negative(node)], [fed])
    assert use_winograd(model, GraphKind.LOOKUP, lambda *_: 2) == 1
    found = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))([values])
    np.testing.assert_allclose(found[0], right + 5, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[1], -right, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(8,), (1, 8, 8, 8), (1, 1, 1, 8), (1, 8, 1, 1)])
def test_only_a_sum_by_channel_is_taken_as_the_bias(shape: tuple[int, ...]) -> None:
    """The width is the number of channels here, so that a sum by column has as many values as a bias."""
    op, rng = load_openvino().opset13, np.random.default_rng(0)
    values, weights = rng.standard_normal((1, 8, 8, 8)), rng.standard_normal((8, 8, 3, 3))
    added = rng.standard_normal(shape)
    right = torch.nn.functional.conv2d(torch.from_numpy(values), torch.from_numpy(weights), padding=1).numpy() + added
    fed = op.parameter([1, 8, 8, 8], np.float32)
    node = op.convolution(fed, constant(weights.astype(np.float32)), [1, 1], [1, 1], [1, 1], [1, 1])
    model = load_openvino().Model([op.add(node, constant(added.astype(np.float32)))], [fed])
    assert use_winograd(model, GraphKind.LOOKUP, lambda *_: 2) == 1
    np.testing.assert_allclose(run(model, values.astype(np.float32)), right, rtol=0, atol=2e-5)  # measured 2e-6


def test_other_precisions_keep_their_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GraphKind] = []
    monkeypatch.setattr(models, "use_winograd", lambda model, kind: seen.append(kind))
    artifact = stand_in_artifact(tmp_path / "a", precisions=(Precision.FP32, Precision.FP16))
    for precision in (Precision.FP16, *([Precision.BF16] if has_bf16() else []), Precision.FP32):
        assert not seen
        with OpenVinoRuntime(artifact, precision, 1) as runtime:
            runtime.run(random_inputs(PLAIN, 1))
    assert seen == [GraphKind.DENSE]
