"""A log survives interruptions and full disks: no row is lost, none stays cut in half."""

from pathlib import Path

import numpy as np
import pytest

from spade_deploy.runs.csv_log import CsvLog, read_columns
from spade_deploy.training.records.plots import RATES

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
