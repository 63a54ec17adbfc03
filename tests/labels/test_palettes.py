"""Palettes of label files: which ones speak against their indices, and which are nobody's business."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spade_deploy.errors import LabelMapError
from spade_deploy.labels.files import read_instance_map, read_label_map
from spade_deploy.labels.fix import fix_labels
from spade_deploy.labels.lint import lint_folder
from spade_deploy.labels.lint_file import check_label_file
from spade_deploy.labels.palettes import moved_palette, voc_palette
from spade_deploy.labels.sets import label_set
from spade_deploy.spec import LabelSpec
from tests.support.png_writer import PALETTE, png

TWENTY = LabelSpec(20)
FACADES = label_set("facades")
CITYSCAPES = label_set("cityscapes")
COCO = label_set("coco")
Rgb = tuple[int, int, int]


def greys(*values: int) -> list[Rgb]:
    return [(value, value, value) for value in values]


def write(path: Path, indices: np.ndarray, palette: list[Rgb]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png(indices[..., None].astype(np.int64), PALETTE, 8, palette=palette))
    return path


def squares(count: int) -> np.ndarray:
    """Every index below `count`, in squares of two pixels."""
    places = np.random.default_rng(1).permutation(np.arange(32) % count)
    return places.reshape(4, 8).repeat(2, axis=0).repeat(2, axis=1)


OPTIMISED = greys(0, 3, 7, 9, 15)


@pytest.mark.parametrize(
    ("palette", "labels", "meant"),
    [
        (OPTIMISED, TWENTY, [0, 3, 7, 9, 15]),
        (OPTIMISED, COCO, [0, 3, 7, 9, 15]),
        (OPTIMISED, FACADES, None),  # 15 is no id there
        (greys(0, 255), LabelSpec(20, has_dontcare=True), [0, 255]),
        (greys(0, 255), TWENTY, None),  # a mask: 255 is no id, so the indices are
        (greys(7), TWENTY, [7]),
        (greys(4, 3, 2, 1, 0), TWENTY, [4, 3, 2, 1, 0]),
        (greys(0, 0, 0), TWENTY, None),  # no colours at all
        (greys(0, 50, 100, 150), TWENTY, None),  # for looking at
    ],
)
def test_greys_other_than_their_index_are_found_and_refused_where_they_are_ids(
    tmp_path: Path, palette: list[Rgb], labels: LabelSpec, meant: list[int] | None
) -> None:
    indices = squares(len(palette))
    path = write(tmp_path / "in" / "a.png", indices, palette)
    found = [finding for finding in check_label_file(path, labels) if finding.code == "palette-order"]
    assert [(finding.severity, finding.fixable) for finding in found] == [
        ("warning", False) if meant is None else ("error", True)
    ]
    np.testing.assert_array_equal(read_instance_map(path), indices)  # of objects only the borders matter
    report = lint_folder(path.parent, labels)
    (result,) = fix_labels(report, tmp_path / "out", labels)
    assert result.target is not None
    if meant is None:
        np.testing.assert_array_equal(read_label_map(path, labels), indices)
        return
    with pytest.raises(LabelMapError, match=r"a\.png: the palette is of greys other than their index") as caught:
        read_label_map(path, labels)
    assert "--fix OUT" in (caught.value.hint or "")
    file_values = np.array(meant)[indices]
    expected = np.where(file_values == 255, labels.unknown_id or 0, file_values)
    np.testing.assert_array_equal(read_label_map(result.target, labels), expected)


def test_where_the_indices_are_meant_the_fixed_copy_has_them(tmp_path: Path) -> None:
    indices = squares(5)
    path = write(tmp_path / "in" / "a.png", indices, OPTIMISED)
    report = lint_folder(path.parent, TWENTY).without(["palette-order"])
    assert not report.findings
    (result,) = fix_labels(report, tmp_path / "out", TWENTY)
    assert result.target is not None
    np.testing.assert_array_equal(read_label_map(result.target, TWENTY), indices)
    assert not lint_folder(tmp_path / "out", TWENTY).findings


@pytest.mark.parametrize("order", [np.random.default_rng(1).permutation(13), np.array([0, 5])], ids=["all", "one"])
def test_the_label_sets_colours_in_another_order_are_refused(tmp_path: Path, order: NDArray[np.int64]) -> None:
    indices = squares(len(order))
    path = write(tmp_path / "in" / "a.png", indices, [FACADES.palette[n] for n in order])
    with pytest.raises(LabelMapError, match="label set's colours at other indices"):
        read_label_map(path, FACADES)
    (result,) = fix_labels(lint_folder(path.parent, FACADES), tmp_path / "out", FACADES)
    assert result.target is not None
    np.testing.assert_array_equal(read_label_map(result.target, FACADES), order[indices])


def test_some_of_the_label_sets_colours_at_other_indices_are_a_warning(tmp_path: Path) -> None:
    palette = [*FACADES.palette[::-1][:6], (1, 2, 3)]
    path = write(tmp_path / "a.png", squares(7), palette)
    found = list(check_label_file(path, FACADES))
    assert [(finding.code, finding.severity) for finding in found] == [("palette-order", "warning")]
    np.testing.assert_array_equal(read_label_map(path, FACADES), squares(7))


@pytest.mark.parametrize(
    ("palette", "labels"),
    [
        ([(255 - n, n, 7) for n in range(20)], TWENTY),
        (greys(*range(20)), TWENTY),
        (list(CITYSCAPES.palette), CITYSCAPES),  # ids 0 to 4 are all black
        (list(voc_palette(256)), COCO),  # id 7 is the grey 128
        (list(voc_palette(256)), CITYSCAPES),
        ([(0, 0, 0), *[(128 - n, 64, n) for n in range(1, 20)]], TWENTY),
    ],
)
def test_ordinary_palettes_are_read_by_index(tmp_path: Path, palette: list[Rgb], labels: LabelSpec) -> None:
    for indices in (squares(min(20, len(palette))), np.full((4, 4), 7), np.full((4, 4), 0)):
        path = write(tmp_path / "a.png", indices, palette)
        np.testing.assert_array_equal(read_label_map(path, labels), indices)
        assert not [finding for finding in check_label_file(path, labels) if finding.code == "palette-order"]


def test_one_grey_among_colours_is_how_one_class_is_drawn() -> None:
    palette = [(n, 255 - n, 9) for n in range(100)]
    palette[90] = (50, 50, 50)
    moved = moved_palette(np.full((4, 4), 90), palette, COCO)
    assert moved is not None
    assert not moved.is_certain
    assert moved_palette(np.array([[0, 90]]), palette, COCO) is None
    assert moved_palette(np.array([[0, 120]]), palette, COCO) is None  # beyond the palette
