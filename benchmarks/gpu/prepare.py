"""What the other steps share, made once and kept in the work folder: the generator, and every graph in ONNX."""

from __future__ import annotations

import time

from gpu.ort_cuda import PRECISIONS, plain_cases, plain_path
from gpu.records import Book
from gpu.setting import Setting


def run_prepare(setting: Setting, book: Book) -> None:
    """Export what is not there yet. Times are facts of the book."""
    start = time.perf_counter()
    setting.generator  # noqa: B018 - it is made and kept
    book.note("generator_s", round(time.perf_counter() - start, 1))
    for precision in PRECISIONS:
        if precision in setting.precisions:
            start = time.perf_counter()
            setting.artifact(precision)
            book.note(f"{precision}_s", round(time.perf_counter() - start, 1))
    start = time.perf_counter()
    for precision, size in plain_cases(setting):
        plain_path(setting, precision, size)
    book.note("plain_exports_s", round(time.perf_counter() - start, 1))
