"""The rows of patterns as one product of rows side by side, or as sums of rows of their windows, in OpenVINO f32.

The sizes are those of one COCO-Stuff map at 256 x 256 in a generator of ADE20K's size: windows, patterns, and columns
of scales and offsets. The candidates take turns; each is compared with the product in float64.

    python benchmarks/pattern_sums.py [--rounds 15] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import RESULTS
from numpy.typing import NDArray

from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.openvino.library import DEVICE, core, load_openvino
from spade_deploy.engines.openvino.models import settings_of
from spade_deploy.engines.openvino.pattern_sums import sum_window_rows
from spade_deploy.files.atomic import write_json
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import Precision

SIZES = ((598, 2786, 640), (598, 2786, 256), (469, 1793, 1280), (337, 1080, 2560), (215, 551, 2048), (123, 219, 2048))
"""Windows, patterns, columns."""
NOISE = (2786, 2786, 640)
"""As many windows as patterns, as in noise: the worst for the sums."""
HIDDEN, PLACES = 128, 9


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "pattern-sums.json")
    asked = parser.parse_args(arguments)
    rows = [measured(size, asked.rounds) for size in (*SIZES, NOISE)]
    for row in rows:
        print(row, flush=True)
    write_json(asked.out, {"rows": rows, "machine": describe_machine(), "threads": usable_cores()})
    print(f"written to {asked.out}")


def measured(size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Medians of one size in milliseconds, and the largest error of each candidate."""
    windows, patterns, columns = size
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((PLACES * HIDDEN, columns)) / np.sqrt(PLACES * HIDDEN)).astype(np.float32)
    hidden = rng.standard_normal((windows, HIDDEN)).astype(np.float32)
    numbers = rng.integers(0, windows, (patterns, PLACES)).astype(np.int32)
    right = hidden.astype(np.float64)[numbers].reshape(patterns, -1) @ matrix
    compiled = {
        name: core().compile_model(make(matrix), DEVICE, settings_of(Precision.FP32, None))
        for name, make in CANDIDATES.items()
    }
    requests = {name: one.create_infer_request() for name, one in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in requests}
    cpu: dict[str, list[float]] = {name: [] for name in requests}
    errors: dict[str, float] = {}
    for number in range(rounds + 1):
        names = list(requests)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before, began = time.process_time(), time.perf_counter()
            requests[name].infer([hidden, numbers], share_inputs=True)
            if number:  # the first one warms up
                times[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - before)
            else:
                errors[name] = float(np.abs(requests[name].get_output_tensor(0).data - right).max())
    return {
        "windows": windows,
        "patterns": patterns,
        "columns": columns,
        "ms": {name: round(1000 * statistics.median(values), 3) for name, values in times.items()},
        "cpu_ms": {name: round(1000 * statistics.median(values), 3) for name, values in cpu.items()},
        "seconds": times,
        "largest_error": errors,
    }


def product(matrix: NDArray[np.float32]) -> Any:
    """Rows side by side, times the matrix: what the exported graph says."""
    op, hidden, numbers = inputs()
    rows = op.reshape(op.gather(hidden, numbers, constant(0)), constant([-1, len(matrix)]), False)
    return load_openvino().Model([op.matmul(rows, op.constant(matrix), False, False)], [hidden, numbers])


def sums(matrix: NDArray[np.float32]) -> Any:
    """As the engine changes it."""
    model = product(matrix)
    if sum_window_rows(model) != 1:
        raise AssertionError("the engine does not see the product")
    return model


def one_gather(matrix: NDArray[np.float32]) -> Any:
    """The same table, its rows gathered at once and summed along an axis."""
    op, hidden, numbers = inputs()
    table, places = table_of(hidden, numbers, matrix)
    summed = op.reduce_sum(op.gather(table, places, constant(0)), constant([1]), False)
    return load_openvino().Model([summed], [hidden, numbers])


def nine_gathers(matrix: NDArray[np.float32]) -> Any:
    """The same table, its rows gathered place by place and added."""
    op, hidden, numbers = inputs()
    table, places = table_of(hidden, numbers, matrix)
    total = None
    for place in range(PLACES):
        rows = op.gather(table, op.gather(places, constant(place), constant(1)), constant(0))
        total = rows if total is None else op.add(total, rows)
    return load_openvino().Model([total], [hidden, numbers])


def inputs() -> tuple[Any, Any, Any]:
    """OpenVINO's operators, U x hidden rows, and P x 9 numbers of windows."""
    op = load_openvino().opset13
    return op, op.parameter([-1, HIDDEN], np.float32), op.parameter([-1, PLACES], np.int32)


def table_of(hidden: Any, numbers: Any, matrix: NDArray[np.float32]) -> tuple[Any, Any]:
    """U * 9 rows of products, and for each pattern the numbers of its nine."""
    op, columns = load_openvino().opset13, matrix.shape[1]
    by_place = matrix.reshape(PLACES, HIDDEN, columns).transpose(1, 0, 2).reshape(HIDDEN, -1)
    table = op.reshape(
        op.matmul(hidden, op.constant(np.ascontiguousarray(by_place)), False, False), constant([-1, columns]), False
    )
    scaled = op.multiply(numbers, op.constant(np.int32(PLACES)))
    return table, op.add(scaled, op.constant(np.arange(PLACES, dtype=np.int32)[None]))


def constant(values: Any) -> Any:
    """Integers as a constant."""
    return load_openvino().opset13.constant(np.array(values, np.int64))


CANDIDATES: dict[str, Callable[[NDArray[np.float32]], Any]] = {
    "product": product,
    "sums of rows": sums,
    "one gather and a sum": one_gather,
    "nine gathers": nine_gathers,
}


if __name__ == "__main__":
    main()
