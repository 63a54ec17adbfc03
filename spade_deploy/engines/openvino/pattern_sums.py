"""The rows of a lookup graph's patterns in float32, as sums of rows of their windows.

A pattern is k x k windows, and its row of scales or offsets is the product of their hidden rows, side by side, with one
matrix:

    row = [h1 ... h9] W        P patterns, (9 * hidden) x C multiplications each

A lookup graph has two to five times fewer windows than patterns, and W is nine matrices, one for each place:

    T = h [W1 ... W9]          U windows, as many multiplications each
    row = T1[h1] + ... + T9[h9]

OpenVINO sums rows of a table by their numbers in one operator (EmbeddingBagPackedSum), without writing them side by
side. It is the same function; the sums are shorter, so it rounds a little less. Matrix products in bfloat16 are so fast
on a CPU that has them that the sums gain nothing there. A map of noise has about as many windows as patterns, and its
rows take 1.4 times as long (benchmarks/results/pattern-sums.json).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sum_window_rows(model: Any) -> int:
    """Change an OpenVINO `Model` of a lookup graph: products of gathered rows become sums. Returns how many.

    Matrices that are no float32 constant stay as they are.
    """
    changed = 0
    numbers: dict[tuple[str, int], Any] = {}
    for node in model.get_ordered_ops():
        gather = _gather_before(node)
        if gather is None:
            continue
        patterns = gather.input_value(1)
        places = patterns.get_partial_shape()[1].get_length()
        source = patterns.get_node().get_friendly_name(), patterns.get_index()
        if source not in numbers:
            numbers[source] = _numbered(patterns, places)
        sums = _sums(gather.input_value(0), numbers[source], _matrix_of(node), places)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(sums.output(0))
        changed += 1
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _gather_before(node: Any) -> Any | None:
    """The gather (U x hidden rows, P x k*k numbers) whose rows, side by side, a product takes; None for all else."""
    if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
        return None
    matrix, side_by_side = node.input_value(1), node.input_value(0).get_node()
    if matrix.get_node().get_type_name() != "Constant" or matrix.get_element_type().to_string() != "f32":
        return None
    if len(matrix.get_shape()) != 2 or side_by_side.get_type_name() != "Reshape":
        return None
    gather = side_by_side.input_value(0).get_node()
    if gather.get_type_name() != "Gather" or gather.get_attributes()["batch_dims"]:
        return None
    rows, numbers = (gather.input_value(place).get_partial_shape() for place in (0, 1))
    axis = gather.input_value(2).get_node()
    if axis.get_type_name() != "Constant" or axis.get_data().reshape(-1).tolist() != [0]:
        return None
    if len(rows) != 2 or len(numbers) != 2 or rows[1].is_dynamic or numbers[1].is_dynamic:
        return None
    length = rows[1].get_length() * numbers[1].get_length()
    shape = node.input_value(0).get_partial_shape()
    return gather if len(shape) == 2 and shape[1].is_static and shape[1].get_length() == length else None


def _matrix_of(node: Any) -> NDArray[np.float32]:
    """The matrix of a product, (k*k * hidden) x C."""
    values: NDArray[np.float32] = node.input_value(1).get_node().get_data()
    return values.T if node.get_attributes()["transpose_b"] else values


def _numbered(patterns: Any, places: int) -> Any:
    """P x k*k numbers of windows -> the numbers of their rows in a table of U * k*k rows."""
    from openvino import opset13 as op

    kind = patterns.get_element_type().to_dtype()
    scaled = op.multiply(patterns, op.constant(np.array(places, kind)))
    return op.add(scaled, op.constant(np.arange(places, dtype=kind)[None]))


def _sums(hidden: Any, numbers: Any, matrix: NDArray[np.float32], places: int) -> Any:
    """P x C: the sums of the rows with these numbers, each a hidden row times the matrix of its place."""
    from openvino import opset13 as op

    length, columns = matrix.shape[0] // places, matrix.shape[1]
    by_place = matrix.reshape(places, length, columns).transpose(1, 0, 2).reshape(length, -1)
    products = op.matmul(hidden, op.constant(np.ascontiguousarray(by_place), shared_memory=True), False, False)
    table = op.reshape(products, op.constant(np.array((-1, columns), np.int64)), False)
    return op.embedding_bag_packed_sum(table, numbers)
