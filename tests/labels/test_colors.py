"""Colour-coded label maps: a colour that no class has is never taken for another class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.labels.colors import Foreign, match_colors
from spade_deploy.labels.fix import FixAction, fix_labels
from spade_deploy.labels.lint import lint_folder
from spade_deploy.spec import LabelSpec

SKY, ROAD, VOID = (0, 128, 255), (128, 64, 128), (0, 0, 0)
LABELS = LabelSpec(2, names=("sky", "road"), palette=(SKY, ROAD))


def painted(*colors: tuple[int, int, int], side: int = 8) -> np.ndarray:
    """Stripes of these colours, 8 pixels wide."""
    return np.repeat(np.array([colors], np.uint8), side, axis=1).repeat(4 * side, axis=0)


@pytest.mark.parametrize("side", [3, 8])
def test_an_area_of_a_colour_that_no_class_has_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(painted(SKY, ROAD, SKY, VOID, side=side)).save(tmp_path / "labels" / "a.png")
    report = lint_folder(tmp_path / "labels", LABELS)
    (finding,) = report.findings
    assert (finding.code, finding.fixable) == ("rgb", False)
    assert "the colour 0 0 0 fills areas (25.0% of the pixels), and no class has it" in finding.message
    (result,) = fix_labels(report, tmp_path / "out", LABELS)
    assert (result.action, result.target) == (FixAction.REFUSED, None)


def test_the_most_frequent_foreign_colour_comes_first() -> None:
    match = match_colors(painted(SKY, ROAD, VOID, (255, 255, 255), VOID), LABELS)
    assert match.foreign == (Foreign(VOID, 0.4), Foreign((255, 255, 255), 0.2))
    assert not match.is_usable


def test_a_colour_slightly_off_and_thin_lines_still_take_the_nearest_class() -> None:
    near = (SKY[0] + 9, SKY[1], SKY[2])
    match = match_colors(painted(SKY, near, ROAD), LABELS)
    assert (match.foreign, match.is_usable) == ((), True)
    assert match.ids[0, :14].tolist() == [0] * 14
    smooth = np.asarray(Image.fromarray(painted(SKY, ROAD)).resize((64, 128), Image.Resampling.BICUBIC))
    assert match_colors(smooth, LABELS).foreign == ()
    lined = painted(SKY, ROAD)
    lined[:, 7:9] = 255  # a border two pixels wide
    assert match_colors(lined, LABELS).is_usable
