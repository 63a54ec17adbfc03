"""The log survives interruptions, the plot and the grid show what they should."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.spec import LabelSpec
from spade_deploy.training.records.csv_log import CsvLog, read_columns
from spade_deploy.training.records.plots import RATES, plot_losses, plot_metrics, smoothed
from spade_deploy.training.records.sample_grid import sample_grid

COLUMNS = ("step", "l1", *RATES, "seconds")


def write(path: Path, first: int, last: int, last_step: int = 0) -> None:
    log = CsvLog(path, COLUMNS, last_step)
    for step in range(first, last + 1):
        log.write({"step": step, "l1": 1 / (3 * step), "lr_generator": 1e-4, "lr_discriminator": 4e-4, "seconds": 0.1})
    log.close()


def test_numbers_are_read_as_they_were(tmp_path: Path) -> None:
    write(tmp_path / "losses.csv", 1, 4)
    columns = read_columns(tmp_path / "losses.csv")
    assert columns["step"].tolist() == [1, 2, 3, 4]
    assert columns["l1"].tolist() == [1 / (3 * step) for step in range(1, 5)]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv", ("step", "psnr", "seconds"), 0)
    log.write({"step": 3, "psnr": np.float64(0.1), "seconds": np.float32(0.5)})
    log.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,psnr,seconds\n3,0.1,0.5\n"


def test_reopening_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path, unbroken = tmp_path / "losses.csv", tmp_path / "unbroken.csv"
    write(path, 1, 6)
    with path.open("a") as file:
        file.write("7,0.1")  # a row that was cut off
    write(path, 4, 8, last_step=3)
    write(unbroken, 1, 8)
    assert path.read_text() == unbroken.read_text()


def test_a_new_run_and_a_log_of_other_losses_start_empty(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    write(path, 1, 3)
    write(path, 1, 1)
    assert read_columns(path)["step"].tolist() == [1]
    path.write_text("step,other\n1,2\n")
    write(path, 5, 5, last_step=4)
    assert read_columns(path)["step"].tolist() == [5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not here: a full disk cannot be simulated")
def test_a_row_that_a_full_disk_does_not_take_goes_first_the_next_time(tmp_path: Path) -> None:
    row = {"l1": 0.5, "lr_generator": 1e-4, "lr_discriminator": 4e-4, "seconds": 0.1}
    log = CsvLog(tmp_path / "losses.csv", COLUMNS, 0)
    log.write({"step": 1, **row})
    real = log._file
    with Path("/dev/full").open("ab", buffering=0) as full:
        log._file = full
        for step in (2, 3):
            with pytest.raises(OSError, match="No space left"):
                log.write({"step": step, **row})
    log._file = real
    assert read_columns(tmp_path / "losses.csv")["step"].tolist() == [1]
    log.close()
    assert read_columns(tmp_path / "losses.csv")["step"].tolist() == [1, 2, 3]


def test_a_row_that_is_taken_in_part_is_finished(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "losses.csv", ("step", "l1"), 0)
    real = log._file

    class Reluctant:
        """Takes three bytes at a time, and fails at the third."""

        calls = 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls == 3:
                raise OSError(28, "No space left on device")
            return int(real.write(data[:3]))

    log._file = Reluctant()
    with pytest.raises(OSError, match="No space left"):
        log.write({"step": 10, "l1": 0.25})
    assert (tmp_path / "losses.csv").read_text() == "step,l1\n10,0.2"
    log._file = real
    log.write({"step": 11, "l1": 0.5})
    log.close()
    assert (tmp_path / "losses.csv").read_text() == "step,l1\n10,0.25\n11,0.5\n"


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


def test_the_grid_is_label_colours_generated_photo() -> None:
    labels = LabelSpec(2, palette=((10, 20, 30), (200, 100, 50)))
    label = np.stack([np.zeros((8, 6), np.uint8), np.ones((8, 6), np.uint8)])
    generated, photo = np.full((2, 8, 6, 3), 90, np.uint8), np.full((2, 8, 6, 3), 180, np.uint8)
    grid = sample_grid(labels, label, generated, photo)
    assert grid.shape == (8 + 4 + 8, 3 * 6 + 2 * 4, 3)
    assert grid[0, 0].tolist() == [10, 20, 30]
    assert grid[12, 0].tolist() == [200, 100, 50]
    assert grid[0, 10].tolist() == [90] * 3
    assert grid[0, 20].tolist() == [180] * 3
    assert grid[9, 0].tolist() == grid[0, 7].tolist() == [255] * 3
