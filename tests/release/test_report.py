"""The report's page: its verdict in words, and which differences are drawn."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import Graph
from spade_deploy.metrics.differences import DiffAccumulator
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.release.report import _columns, _compared, verdict
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision, RoundingError
from spade_deploy.validation.report import GraphResult, SampleImages, ValidationReport

GREY: NDArray[np.uint8] = np.full((32, 32, 3), 100, np.uint8)
GOOD = "This can be deployed: it makes the images that the trained model makes; "
SPEC = GeneratorSpec(LabelSpec(3), height=32, width=32)


def changed(by: int, pixels: int) -> NDArray[np.uint8]:
    found = GREY.copy()
    found.reshape(-1, 3)[:pixels, 0] += np.uint8(by)
    return found


@pytest.mark.parametrize(
    ("candidate", "remark"),
    [
        (GREY, "the same pixels as PyTorch's"),
        (changed(1, 1), "differs by 1 of 255 in 0.10 % of the pixels"),
        (changed(2, 1024), "differs by 2 of 255 in 100.00 % of the pixels"),
    ],
)
def test_what_nobody_sees_is_told_and_not_drawn(candidate: NDArray[np.uint8], remark: str) -> None:
    column = _compared("fp32", candidate, GREY)
    assert (column.difference, column.remark) == (None, remark)


@pytest.mark.parametrize(("by", "factor"), [(3, 64), (50, 5), (150, 1)])
def test_a_visible_difference_is_drawn_as_strong_as_it_can_be(by: int, factor: int) -> None:
    column = _compared("fp16", changed(by, 10), GREY)
    assert column.difference is not None
    assert column.difference.caption == ("difference" if factor == 1 else f"difference, {factor} times as strong")
    png = base64.b64decode(column.difference.uri.partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(png))).reshape(-1, 3)
    assert drawn[:10].tolist() == [[by * factor, 0, 0]] * 10
    assert not drawn[10:].any()


def test_the_real_photo_stands_beside_the_label_map() -> None:
    sample = SampleImages(np.zeros((32, 32), np.uint8), GREY, {"fp32": GREY})
    assert [column.picture.caption for column in _columns(sample, SPEC)] == ["label map", "PyTorch", "fp32"]
    columns = _columns(replace(sample, photo=changed(9, 9)), SPEC)
    assert [column.picture.caption for column in columns] == ["label map", "real photo", "PyTorch", "fp32"]


def judged(precision: Precision, by: int, *failures: str) -> GraphResult:
    found = DiffAccumulator(("a", "b", "c"))
    image = (changed(by, 1) / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)[None]
    reference = (GREY / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)[None]
    found.add(np.zeros((1, 32, 32), int), (reference, GREY[None]), (image, changed(by, 1)[None]))
    graph = Graph(GraphKind.DENSE, precision, "g.onnx", 17)
    return GraphResult(graph, "ONNX Runtime", found.result(), Tolerance(), failures)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (
            [judged(Precision.FP32, 0)],
            GOOD + "in float32 it makes the very same pixels.",
        ),
        (
            [judged(Precision.FP32, 1), judged(Precision.FP16, 9)],
            GOOD
            + "in float32 it makes the same images, to 1 of 255 in 0.10 % of the pixels; fp16 stays within its limits"
            + " (63.9 dB).",
        ),
        (
            [judged(Precision.FP32, 0), judged(Precision.FP16, 99, "PSNR is under")],
            "Do not deploy this: fp16 does not make the images that the trained model makes.",
        ),
    ],
)
def test_the_verdict_in_plain_words(results: list[GraphResult], words: str) -> None:
    report = ValidationReport(Path("a"), "PyTorch", "maps", RoundingError(0, 0, 0, 0), tuple(results), ())
    assert verdict(report) == words
