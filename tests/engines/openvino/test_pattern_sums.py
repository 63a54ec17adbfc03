"""The rows of patterns as sums of rows of their windows: the same function, where it is used, and where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spade_deploy.engines.openvino import pattern_sums
from spade_deploy.engines.openvino.library import core, load_openvino
from spade_deploy.engines.openvino.models import settings_of
from spade_deploy.engines.openvino.pattern_sums import sum_window_rows
from spade_deploy.spec import Precision

HIDDEN, PLACES, COLUMNS = 6, 9, 10


def constant(values: Any, kind: Any = np.int64) -> Any:
    return load_openvino().opset13.constant(np.array(values, kind))


def matrices(count: int = 2) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((PLACES * HIDDEN, COLUMNS)).astype(np.float32) for _ in range(count)]


def make(*, is_transposed: bool = True, axis: int = 0, kind: Any = np.int64, side_by_side: bool = True) -> Any:
    """A model as a lookup graph has it: gathered rows, side by side, times two matrices with their offsets."""
    op = load_openvino().opset13
    hidden, patterns = op.parameter([-1, HIDDEN], np.float32), op.parameter([-1, PLACES], kind)
    gathered = op.gather(hidden, patterns, constant(axis))
    rows = op.reshape(gathered, constant([-1, PLACES * HIDDEN]), False) if side_by_side else gathered
    made = []
    for number, matrix in enumerate(matrices()):
        values = matrix if side_by_side else matrix[:HIDDEN]
        weights = constant(values.T if is_transposed else values, np.float32)
        product = op.matmul(rows, weights, False, is_transposed)
        made.append(op.add(product, constant(np.full(COLUMNS, number), np.float32)))
    return load_openvino().Model(made, [hidden, patterns])


def fed(windows: int = 5, patterns: int = 12, kind: Any = np.int64) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(windows)
    rows = rng.standard_normal((windows, HIDDEN)).astype(np.float32)
    return rows, rng.integers(0, windows, (patterns, PLACES)).astype(kind)


def right_rows(hidden: NDArray[Any], patterns: NDArray[Any]) -> list[NDArray[np.float64]]:
    rows = hidden.astype(np.float64)[patterns].reshape(len(patterns), -1)
    return [rows @ matrix + number for number, matrix in enumerate(matrices())]


def kinds_in(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_it_is_the_product(is_transposed: bool, kind: Any) -> None:
    model = make(is_transposed=is_transposed, kind=kind)
    assert sum_window_rows(model) == 2
    names = kinds_in(model)
    assert names.count("EmbeddingBagPackedSum") == 2
    assert "Gather" not in names
    assert names.count("Multiply") == 1, "the numbers are made once for all products of the same patterns"
    compiled = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))
    for windows, patterns in ((5, 12), (1, 1), (40, 3), (7, 300)):
        hidden, numbers = fed(windows, patterns, kind)
        found = compiled([hidden, numbers])
        for place, right in enumerate(right_rows(hidden, numbers)):
            np.testing.assert_allclose(found[place], right, rtol=0, atol=2e-5)  # measured 4e-6


def test_a_row_of_another_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that change sides give other rows: the test above asks for the right ones."""
    real = pattern_sums._matrix_of
    monkeypatch.setattr(pattern_sums, "_matrix_of", lambda node: np.roll(real(node), HIDDEN, axis=0))
    model = make()
    sum_window_rows(model)
    hidden, numbers = fed()
    found = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))([hidden, numbers])
    assert np.abs(found[0] - right_rows(hidden, numbers)[0]).max() > 1


def test_what_is_no_product_of_rows_side_by_side_stays() -> None:
    op = load_openvino().opset13
    assert sum_window_rows(make(side_by_side=False)) == 0
    columns = op.parameter([HIDDEN, HIDDEN], np.float32)  # columns are gathered, and happen to make rows of that length
    patterns = op.parameter([-1, PLACES], np.int64)
    rows = op.reshape(op.gather(columns, patterns, constant(1)), constant([-1, PLACES * HIDDEN]), False)
    product = op.matmul(rows, constant(matrices()[0], np.float32), False, False)
    assert sum_window_rows(load_openvino().Model([product], [columns, patterns])) == 0
    hidden = op.parameter([-1, HIDDEN], np.float32)
    one_by_one = op.reshape(op.gather(hidden, patterns, constant(0)), constant([-1, 3 * HIDDEN]), False)
    product = op.matmul(one_by_one, constant(matrices()[0][: 3 * HIDDEN], np.float32), False, False)
    assert sum_window_rows(load_openvino().Model([product], [hidden, patterns])) == 0, "three windows a row, not nine"
    hidden, given = op.parameter([-1, HIDDEN], np.float32), op.parameter([PLACES * HIDDEN, COLUMNS], np.float32)
    rows = op.reshape(op.gather(hidden, patterns, constant(0)), constant([-1, PLACES * HIDDEN]), False)
    no_constant = load_openvino().Model([op.matmul(rows, given, False, False)], [hidden, patterns, given])
    assert sum_window_rows(no_constant) == 0
    halves = op.parameter([-1, HIDDEN], np.float16)
    rows = op.reshape(op.gather(halves, patterns, constant(0)), constant([-1, PLACES * HIDDEN]), False)
    half = load_openvino().Model(
        [op.matmul(rows, constant(matrices()[0], np.float16), False, False)], [halves, patterns]
    )
    assert sum_window_rows(half) == 0
