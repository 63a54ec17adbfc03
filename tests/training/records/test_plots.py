"""The plots show the curves that are in the logs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.training.records.csv_log import CsvLog
from spade_deploy.training.records.plots import RATES, plot_losses, plot_metrics, smoothed


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
    assert blue > (500 if rows == 60 else 20)  # the curve; with no or one row, the legend's sample alone


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
