"""The plots show the curves that are in the logs."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from spade_deploy.runs.csv_log import CsvLog
from spade_deploy.training.records.plots import RATES, _losses_figure, losses_svg, plot_losses, plot_metrics, smoothed


def test_the_running_mean_is_exact_and_keeps_to_the_data() -> None:
    values = np.array([1.0, 2.0, 6.0, 7.0, 9.0])
    assert smoothed(values, 1).tolist() == values.tolist()
    assert smoothed(values, 3).tolist() == [1.5, 3.0, 5.0, 22 / 3, 8.0]
    assert smoothed(values, 50).tolist() == [5.0] * 5


@pytest.mark.parametrize("rows", [0, 1, 60])
def test_the_plot_is_a_picture_of_the_curves(tmp_path: Path, rows: int) -> None:
    names = ("step", "adversarial", "feature_matching", "l1", "discriminator_real", "discriminator_fake")
    log = CsvLog(tmp_path / "losses.csv", (*names, *RATES, "seconds"), 0)
    for step in range(1, rows + 1):
        log.write(dict.fromkeys((*names, *RATES, "seconds"), 1.0 / step) | {"step": step, "adversarial": -0.1 * step})
    log.close()
    plot_losses(tmp_path / "losses.csv", tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 800
    blue = (np.abs(pixels - np.array([31, 119, 180])).sum(axis=2) < 40).sum()
    assert blue > (500 if rows == 60 else 20)  # the curve; with no or one row, the legend's sample and a dot


def logged(path: Path, steps: int, **columns: float) -> Path:
    path.unlink(missing_ok=True)
    log = CsvLog(path, ("step", *columns, *RATES, "seconds"), 0)
    for step in range(1, steps + 1):
        log.write({"step": step, **columns, **dict.fromkeys((*RATES, "seconds"), 1e-4)})
    log.close()
    return path


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_points_are_dots_at_whole_steps(tmp_path: Path, steps: int) -> None:
    figure = _losses_figure(logged(tmp_path / "losses.csv", steps, adversarial=0.1, l1=0.5))
    for axis in figure.axes:
        for line in axis.get_lines():
            assert len(line.get_xdata()) == steps
        assert any(line.get_marker() == "o" for line in axis.get_lines())
        ticks = [tick for tick in axis.get_xticks() if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)
    many = _losses_figure(logged(tmp_path / "losses.csv", 60, adversarial=0.1, l1=0.5))
    assert all(line.get_marker() in ("", "None") for axis in many.axes for line in axis.get_lines())


def test_every_loss_axis_has_ticks_that_are_written_and_a_legend_beside_it(tmp_path: Path) -> None:
    """A logarithmic axis from 2.1 to 4.9 would have no tick at all; one from 0.02 to 40 is worth it."""
    for small, large, scale in ((2.1, 4.9, "linear"), (0.02, 40.0, "log"), (-1.0, 40.0, "linear")):
        figure = _losses_figure(logged(tmp_path / "losses.csv", 3, adversarial=0.1, l1=small, perceptual=large))
        figure.canvas.draw()
        assert figure.axes[0].get_yscale() == scale
        for axis in figure.axes:
            low, high = axis.get_ylim()
            written = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
            assert sum(low <= tick <= high and bool(label.get_text()) for tick, label in written) >= 2
            assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1


def test_the_drawing_for_pages_has_the_pages_colours(tmp_path: Path) -> None:
    svg = losses_svg(logged(tmp_path / "losses.csv", 3, adversarial=0.1, l1=0.5))
    root = ElementTree.fromstring(svg)
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert "currentColor" in svg
    assert "#ffffff" not in svg
    assert "#000000" not in svg
    assert "Generator against discriminator" in svg
    assert svg == losses_svg(tmp_path / "losses.csv")


def test_the_style_encoder_has_a_panel_of_its_own(tmp_path: Path) -> None:
    heights = []
    for names in (("step", "adversarial", "l1"), ("step", "adversarial", "l1", "kl")):
        log = CsvLog(tmp_path / "losses.csv", (*names, *RATES, "seconds"), 0)
        log.write(dict.fromkeys((*names, *RATES, "seconds"), 1.0))
        log.close()
        plot_losses(tmp_path / "losses.csv", tmp_path / "losses.png")
        with Image.open(tmp_path / "losses.png") as image:
            heights.append(image.size[1])
    assert heights[1] == pytest.approx(heights[0] * 4 / 3, rel=0.03)


def test_metrics_have_a_panel_each_and_the_best_a_star(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv", ("step", "psnr", "miou", "seconds"), 0)
    for step, psnr in ((10, 14.0), (20, float("nan")), (30, 16.0)):
        log.write({"step": step, "psnr": psnr, "miou": 0.5, "seconds": 1.0})
    log.close()
    black = []
    for best in (None, ("psnr", 30), ("absent", 30), ("psnr", 25)):
        plot_metrics(tmp_path / "metrics.csv", tmp_path / "metrics.png", best)
        with Image.open(tmp_path / "metrics.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        black.append(int((pixels.sum(axis=2) == 0).sum()))
    assert pixels.shape[0] == pytest.approx(110 * (2 * 1.7 + 0.6), abs=2)
    assert black[1] > black[0] + 30, "the star and its title"
    assert black[2] == black[3] == black[0]
