"""The picture that the benchmarks of the Earth model make, and the options that they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.bench_model import load_script

SCRIPTS = ("student", "shipped_model", "baselines_earth", "earth_styles")


def test_a_sheet_has_an_image_under_each_title_and_a_row_for_each_tile() -> None:
    script = load_script("earth_sheet")
    rows = [[np.full((4, 4, 3), 40 * row + 10 * column, np.uint8) for column in range(3)] for row in range(2)]
    found = np.asarray(script.sheet(("label map", "a", "b"), rows, 8))
    step = 8 + script.GAP_PX
    assert found.shape == (script.HEAD_PX + 2 * step - script.GAP_PX, 3 * step - script.GAP_PX, 3)
    for row in range(2):
        for column in range(3):
            top, left = script.HEAD_PX + row * step, column * step
            assert (found[top : top + 8, left : left + 8] == 40 * row + 10 * column).all()


def test_only_the_first_columns_keep_their_edges() -> None:
    script = load_script("earth_sheet")
    edge = np.zeros((4, 4, 3), np.uint8)
    edge[:, 2:] = 255
    for sharp in (1, 2):
        found = np.asarray(script.sheet(("a", "b", "c"), [[edge] * 3], 16, sharp=sharp))[script.HEAD_PX :]
        step = 16 + script.GAP_PX
        values = [set(np.unique(found[:, column * step : column * step + 16])) for column in range(3)]
        assert [one == {0, 255} for one in values] == [column < sharp for column in range(3)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_benchmark_of_the_earth_has_the_shared_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script(name).main(["--help"])
    said = capsys.readouterr().out
    for flag in ("--extractor", "--samples", "--segmenter-steps", "--out", "--images", "--work"):
        assert flag in said
    parsed = load_script("earth_sheet").parser_of("about", "of the runs").parse_args([])
    assert parsed.out == Path(load_script("models").RESULTS)
