"""Segmenters: classes by name, sizes, and what counts as wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError
from spade_deploy.metrics import ConfusionMatrix, OnnxSegmenter
from spade_deploy.spec import LabelSpec
from tests.support.onnx_judges import segmenter_file

COLORS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
LABELS = LabelSpec(3, has_dontcare=True, names=("Roof", "tree", "water", "unknown"))


def painted(ids: NDArray[Any]) -> NDArray[np.uint8]:
    return np.array([*COLORS, (0, 0, 0)], np.uint8)[ids]


def some_ids(count: int = 2, size: tuple[int, int] = (8, 12)) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 3, (count, *size))


@pytest.mark.parametrize("as_ids", [False, True])
def test_what_was_painted_is_found(tmp_path: Path, as_ids: bool) -> None:
    ids = some_ids()
    found = OnnxSegmenter(segmenter_file(tmp_path / "s.onnx", COLORS, as_ids=as_ids), LABELS)
    np.testing.assert_array_equal(found.predict(painted(ids)), ids)
    assert found.output == ("ids" if as_ids else "logits")
    matrix = ConfusionMatrix(3)
    matrix.add(ids, found.predict(painted((ids + 1) % 3)))  # painted as another class
    assert matrix.miou == 0


def test_classes_are_matched_by_name_and_not_by_number(tmp_path: Path) -> None:
    ids = some_ids()
    path = segmenter_file(tmp_path / "s.onnx", COLORS, names=["WATER", "sky", "roof"])
    found = OnnxSegmenter(path, LABELS)
    expected = np.array([2, -1, 0])[ids]  # red is told as water, green as a class that the label set does not have
    np.testing.assert_array_equal(found.predict(painted(ids)), expected)
    assert found.describe()["classes_without_label"] == 1


def test_size_of_the_answer(tmp_path: Path) -> None:
    blocks = np.kron(some_ids(size=(4, 6)), np.ones((4, 4), int))  # areas larger than the stride
    logits = OnnxSegmenter(segmenter_file(tmp_path / "s.onnx", COLORS, stride=2), LABELS)
    np.testing.assert_array_equal(logits.predict(painted(blocks)), blocks)
    ids = OnnxSegmenter(segmenter_file(tmp_path / "i.onnx", COLORS, stride=2, as_ids=True), LABELS)
    np.testing.assert_array_equal(ids.predict(painted(blocks)), blocks)
    smaller = ids.predict(painted(blocks), (8, 12))
    np.testing.assert_array_equal(smaller, np.kron(some_ids(size=(4, 6)), np.ones((2, 2), int)))


def test_logits_are_resized_bilinearly(tmp_path: Path) -> None:
    image = painted(some_ids(1, (4, 4)))
    small = OnnxSegmenter(segmenter_file(tmp_path / "s.onnx", COLORS), LABELS)
    values = (image[0].astype(np.float32) - 127.5) / 127.5
    centres = (np.array(COLORS, np.float32) - 127.5) / 127.5
    logits = 2 * values @ centres.T - (centres**2).sum(1)
    planes = [
        Image.fromarray(logits[..., n].astype(np.float32)).resize((10, 10), Image.Resampling.BILINEAR) for n in range(3)
    ]
    expected = np.stack([np.asarray(plane) for plane in planes]).argmax(0)
    np.testing.assert_array_equal(small.predict(image, (10, 10))[0], expected)
    nearest = np.asarray(Image.fromarray(some_ids(1, (4, 4))[0].astype(np.int32)).resize((10, 10), 0))
    assert (nearest != expected).any()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of its classes"):
        OnnxSegmenter(segmenter_file(tmp_path / "a.onnx", COLORS, names=["a", "b", "c"]), LABELS)
    with pytest.raises(ConfigError, match="not a list of names"):
        OnnxSegmenter(segmenter_file(tmp_path / "b.onnx", COLORS, facts={"labels": "roof"}), LABELS)
    pixels = painted(some_ids())
    more = OnnxSegmenter(segmenter_file(tmp_path / "c.onnx", COLORS), LabelSpec(2))
    with pytest.raises(ConfigError, match="has 3 classes, the label set has 2"):
        more.predict(pixels)
    for names in (["roof", "tree"], ["roof", "tree", "water", "sky"]):
        with pytest.raises(ConfigError, match=f"has 3 classes, but names {len(names)}"):
            OnnxSegmenter(segmenter_file(tmp_path / "d.onnx", COLORS, names=names), LABELS).predict(pixels)
