"""Winograd's convolutions in float32: 2.25 or 4 times fewer multiplications for the 3 x 3 convolutions where that pays.

OpenVINO has no such convolution on x86, and its direct one already runs at the speed of the CPU's arithmetic. So large
convolutions are made of other operators here. F(m x m, 3 x 3) computes a tile of m x m outputs from (m + 2) x (m + 2)
inputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; Toom and Cook's algorithm behind it):

    V = B' d B     of each tile d and channel         a matrix product with the Kronecker product of B' and B'
    M = V U        for each of the (m + 2)^2 places   a 1 x 1 convolution with a group for each place, U = G w G'
    Y = A' M A     the m x m outputs                  a matrix product with the Kronecker product of A' and A'

It computes the same function with other roundings: tiles of 2 round about as a direct convolution does, tiles of 4
about four times as much. The points of the polynomials decide that: 0, 3/4, -3/4, 3/2, -3/2 leave half of the error of
the usual 0, 1, -1, 2, -2, and B and A are exact in float32. U is computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.spec import GraphKind

TAPS = 3
"""The height and width of the kernels."""
POINTS = {2: (0, 1, -1), 4: (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}
"""By the size of a tile, the points at which the polynomials are multiplied; infinity is one more."""

BAND_BYTES = 4 << 20
"""About how large the tiles may be that are computed at once: of more, some rows after others, so that they stay in the
CPU's caches."""
MOST_WEIGHT_BYTES = 20 << 20
"""How large a constant of transformed weights may be: of more, the output channels are computed in parts, so that less
is copied when a compiled model is stored, which is when a process needs the most memory."""
MOST_BANDS = 64
"""Into how many parts a convolution is cut at most: each has operators of its own, which are compiled one by one."""
LEAST_CHANNELS = 64
LEAST_TILES = {GraphKind.LOOKUP: 64, GraphKind.DENSE: 256}
"""A convolution becomes Winograd's from so many channels, in and out, and so many tiles in a batch on. The more
channels, the more it wins: 2.3 times with 1024, about as much as before with 64, and less with 32
(benchmarks/results/winograd-layers.json). With fewer tiles most of the time is that of reading the weights, which are
4 times as large (1.8 times with tiles of 2). A dense graph has so many convolutions of few pixels that with 64 tiles it
would need more memory than a plain export."""
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Transpositions between channels last and channels first."""


@dataclass(frozen=True)
class Layer:
    """The sizes of a 3 x 3 convolution that keeps height and width."""

    batch: int
    inputs: int
    """The number of input channels."""
    outputs: int
    """The number of output channels."""
    height: int
    width: int


def tile_for(layer: Layer, kind: GraphKind) -> int | None:
    """The size of the tiles for a layer of such a graph: the largest that pays, or None where none does."""
    if min(layer.inputs, layer.outputs) < LEAST_CHANNELS:
        return None
    for tile in sorted(POINTS, reverse=True):
        if layer.batch * -(-layer.height // tile) * -(-layer.width // tile) >= LEAST_TILES[kind]:
            return tile
    return None


@dataclass(frozen=True)
class Transforms:
    """The three matrices of one dimension, for tiles of m outputs: n = m + 2."""

    inputs: NDArray[np.float64]
    """B', n x n."""
    kernels: NDArray[np.float64]
    """G, n x 3."""
    outputs: NDArray[np.float64]
    """A', m x n."""


@cache
def transforms_of(tile: int) -> Transforms:
    """Toom and Cook's matrices, made of the points in exact fractions.

    Each row of B' and column of A' is scaled by a power of two to a length of about one, and G takes the inverse: no
    value is rounded by it, and U is neither large nor small.
    """
    points = [Fraction(point) for point in POINTS[tile]]
    size = tile + TAPS - 1
    inputs, kernels, outputs = np.zeros((size, size)), np.zeros((size, TAPS)), np.zeros((tile, size))
    for number, point in enumerate(points):
        others = [other for other in points if other != point]
        divisor = math.prod((point - other for other in others), start=Fraction(1))
        inputs[number, :-1] = _polynomial(others)
        kernels[number] = [float(point**power / divisor) for power in range(TAPS)]
        outputs[:, number] = [float(point**power) for power in range(tile)]
    inputs[-1], kernels[-1, -1], outputs[-1, -1] = _polynomial(points), 1, 1  # the point at infinity
    for number in range(size):
        for part in (inputs[number], outputs[:, number]):
            scale = 2.0 ** np.round(np.log2(np.linalg.norm(part)))
            part /= scale
            kernels[number] *= scale
    return Transforms(inputs, kernels, outputs)


def _polynomial(roots: list[Fraction]) -> list[float]:
    """The coefficients of the product of (x - root), from the constant one on."""
    found = [Fraction(1)]
    for root in roots:
        found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return [float(one) for one in found]


def use_winograd(model: Any, kind: GraphKind, choose: Callable[[Layer, GraphKind], int | None] = tile_for) -> int:
    """Change an OpenVINO `Model` with fixed sizes: the convolutions where it pays become Winograd's. Returns how many.

    choose: the size of the tiles for a layer of such a graph, or None to leave its convolution as it is.
    """
    changed = 0
    for node in model.get_ordered_ops():
        layer = _layer_of(node)
        tile = None if layer is None else choose(layer, kind)
        if layer is not None and tile is not None:
            _replace(node, layer, tile)
            changed += 1
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _layer_of(node: Any) -> Layer | None:
    """What is known of a float32 convolution, 3 x 3, that keeps height and width; None for all else."""
    if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    before, after = node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()
    if before.is_dynamic or after.is_dynamic or node.output(0).get_element_type().to_string() != "f32":
        return None
    told, kernel = node.get_attributes(), list(node.input_value(1).get_shape())
    batch, inputs, *extent = before.to_shape()
    is_plain = all(list(told[name]) == [1, 1] for name in ("strides", "dilations"))
    if not is_plain or kernel[2:] != [TAPS, TAPS] or list(told["pads_begin"]) != [1, 1] or list(after)[2:] != extent:
        return None
    return Layer(batch, inputs, kernel[0], *extent)


def _replace(node: Any, layer: Layer, tile: int) -> None:
    """Put Winograd's operators in the place of a convolution. Where its neighbours only transpose, none is left."""
    from openvino import opset13 as op

    fed, weights = node.input_value(0), node.input_value(1).get_node().get_data()
    is_last = _transposes(fed.get_node(), _TO_FIRST)
    values = fed.get_node().input_value(0) if is_last else op.transpose(fed, _to(_TO_LAST))
    result = _convolution(values, weights, layer, tile)
    last, readers = node, [one for one in _readers(node) if one.get_type_name() != "ShapeOf"]
    bias = _bias(readers[0], node, layer) if len(readers) == 1 else None
    if bias is not None:
        last, result = readers[0], op.add(result, op.constant(bias))
    first = op.transpose(result, _to(_TO_FIRST))
    for one in {id(node): node, id(last): last}.values():
        for target in one.output(0).get_target_inputs():
            reader = target.get_node()
            if one is last and _transposes(reader, _TO_LAST):
                for further in reader.output(0).get_target_inputs():
                    further.replace_source_output(result.output(0))
            elif reader is not last:
                target.replace_source_output(first.output(0))


def _convolution(values: Any, weights: NDArray[np.float32], layer: Layer, tile: int) -> Any:
    """N x H x W x inputs -> N x H x W x outputs, without the bias."""
    from openvino import opset13 as op

    matrices, kernels = transforms_of(tile), transformed(weights, tile)
    forth, back = (op.constant(np.kron(one, one).astype(np.float32)) for one in (matrices.inputs, matrices.outputs))
    parts = -(-kernels.nbytes // MOST_WEIGHT_BYTES)
    products = [op.constant(np.ascontiguousarray(part)) for part in np.array_split(kernels, parts, axis=1)]
    pixels = _with_zeros(op.reshape(values, _to((-1, layer.inputs)), False))
    places = _places(layer, tile)
    rows, columns = places.shape[1:3]
    lines = places.reshape(-1, *places.shape[2:])  # N * rows x columns x places
    most = max(BAND_BYTES, kernels.nbytes) // (4 * lines[0].size * layer.inputs)
    step = max(1, most, -(-len(lines) // MOST_BANDS))
    bands = []
    for start in range(0, len(lines), step):
        band = lines[start : start + step]
        taken = op.gather(pixels, op.constant(band.reshape(-1, band.shape[-1])), _to(0))
        taken = op.reshape(op.matmul(forth, taken, False, False), _to((1, len(band), columns, -1)), False)
        made = _multiplied(op.transpose(taken, _to(_TO_FIRST)), products)
        made = op.matmul(back, made, False, False)
        made = op.reshape(made, _to((len(band), columns, tile, tile, layer.outputs)), False)
        made = op.transpose(made, _to((0, 2, 1, 3, 4)))
        bands.append(op.reshape(made, _to((-1, columns * tile, layer.outputs)), False))
    whole = op.concat(bands, 0) if len(bands) > 1 else bands[0]
    whole = op.reshape(whole, _to((layer.batch, rows * tile, columns * tile, layer.outputs)), False)
    if rows * tile == layer.height and columns * tile == layer.width:
        return whole
    return op.slice(whole, _to((0, 0)), _to((layer.height, layer.width)), _to((1, 1)), _to((1, 2)))


def _multiplied(taken: Any, products: list[Any]) -> Any:
    """1 x places * inputs x rows x columns of tiles -> tiles x places x outputs. products: parts of the outputs."""
    from openvino import opset13 as op

    made = []
    for part in products:
        places, outputs = list(part.shape)[:2]
        product = op.group_convolution(taken, part, [1, 1], [0, 0], [0, 0], [1, 1])
        made.append(op.reshape(op.transpose(product, _to(_TO_LAST)), _to((-1, places, outputs)), False))
    return op.concat(made, 2) if len(made) > 1 else made[0]


def _with_zeros(rows: Any) -> Any:
    """A row of zeros below the others. It is no constant: OpenVINO would copy all rows to put one below them."""
    from openvino import opset13 as op

    return op.concat([rows, op.clamp(op.slice(rows, _to([0]), _to([1]), _to([1]), _to([0])), 0.0, 0.0)], 0)


def transformed(weights: NDArray[np.float32], tile: int) -> NDArray[np.float32]:
    """U: outputs x inputs x 3 x 3 -> (m + 2)^2 x outputs x inputs x 1 x 1, computed in float64 and rounded once."""
    kernels = transforms_of(tile).kernels
    found = np.empty((len(kernels) ** 2, *weights.shape[:2], 1, 1), np.float32)
    flat = weights.reshape(*weights.shape[:2], TAPS * TAPS).astype(np.float64)
    for place, factors in enumerate(np.kron(kernels, kernels)):  # one at a time: all of them in float64 would be large
        found[place, ..., 0, 0] = flat @ factors
    return found


def _places(layer: Layer, tile: int) -> NDArray[np.int32]:
    """N x rows of tiles x columns of tiles x (m + 2)^2: for each input of a tile its number among all pixels.

    What is outside the image has the number after the last.
    """

    def along(length: int) -> NDArray[np.int64]:
        return tile * np.arange(-(-length // tile))[:, None] + np.arange(tile + TAPS - 1) - 1  # tiles x inputs

    y, x = along(layer.height)[:, None, :, None], along(layer.width)[None, :, None, :]
    is_inside = (y >= 0) & (y < layer.height) & (x >= 0) & (x < layer.width)
    pixels = layer.height * layer.width
    images = pixels * np.arange(layer.batch)[:, None, None, None, None]
    found = np.where(is_inside, y * layer.width + x + images, pixels * layer.batch)
    return found.reshape(*found.shape[:3], -1).astype(np.int32)


def _bias(add: Any, node: Any, layer: Layer) -> NDArray[np.float32] | None:
    """The constant that is added to a convolution, one value a channel; None for all else."""
    if add.get_type_name() != "Add":
        return None
    others = [value for value in add.input_values() if value.get_node() is not node]
    shapes = [value.get_partial_shape() for value in others]
    if [shape.is_static and list(shape.to_shape()) for shape in shapes] != [[1, layer.outputs, 1, 1]]:
        return None
    constant = others[0].get_node()
    if constant.get_type_name() == "Reshape":  # as the reader of ONNX leaves it
        constant = constant.input_value(0).get_node()
    bias: NDArray[np.float32] | None = None
    if constant.get_type_name() == "Constant":
        bias = constant.get_data().reshape(-1)
    return bias


def _transposes(node: Any, order: tuple[int, ...]) -> bool:
    if node.get_type_name() != "Transpose" or node.input_value(1).get_node().get_type_name() != "Constant":
        return False
    return tuple(node.input_value(1).get_node().get_data()) == order


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def _to(numbers: Any) -> Any:
    """Integers as a constant: a shape, an order, axes."""
    from openvino import opset13 as op

    return op.constant(np.array(numbers, np.int64))
