"""A table of numbers with a row for each logged step: losses.csv and metrics.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import reason_of
from spade_deploy.files.atomic import write_text
from spade_deploy.files.reading import read_regular

Columns = dict[str, NDArray[np.float64]]

_MAX_CSV_BYTES = 1 << 30


class CsvLog:
    """A header, then a row of numbers for each logged step; a row is in the file as soon as it is written.

    Opening an existing file keeps its rows up to `last_step`, since the steps after an interrupted run's last
    checkpoint are computed again. Rows that cannot be written to a full disk are kept, and the next call writes them
    first, so that no row is lost or cut in half.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], last_step: int) -> None:
        self.columns = columns
        kept = _rows_until(path, columns, last_step) if last_step else []
        write_text(path, "".join(",".join(row) + "\n" for row in [list(columns), *kept]))
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, values: dict[str, float]) -> None:
        """Append a row. Numbers are written so that reading gives the same float again. Raises OSError."""
        # NumPy's own numbers have a repr with their type in it, so they become floats.
        numbers = (values[name] for name in self.columns)
        cells = (repr(number if isinstance(number, int) else float(number)) for number in numbers)
        self._pending += (",".join(cells) + "\n").encode()
        self._write_pending()

    def close(self) -> None:
        """Write the rows that are left. Raises OSError if the disk is still full."""
        with self._file:
            self._write_pending()

    def _write_pending(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]


def read_columns(path: Path) -> Columns:
    """The columns of a log; a last row that was cut off is left out. Raises OSError and ValueError."""
    rows = read_rows(path)
    header = rows[0] if rows else []
    numbers = [row for row in map(_numbers, rows[1:]) if row is not None and len(row) == len(header)]
    table = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(header))
    return {name: table[:, index] for index, name in enumerate(header)}


def read_rows(path: Path) -> list[list[str]]:
    """The cells of a log, row by row. Raises OSError, and ValueError where it is no CSV."""
    text = read_regular(path, _MAX_CSV_BYTES).decode("utf-8")
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: is no CSV ({reason_of(error)})") from error


def _rows_until(path: Path, columns: tuple[str, ...], last_step: int) -> list[list[str]]:
    """The rows of an existing log up to a step; empty if there is no log, or it has other columns.

    Raises OSError for a file that exists and cannot be read, as it must not be overwritten.
    """
    try:
        rows = read_rows(path)
    except (FileNotFoundError, ValueError):
        return []
    if not rows or tuple(rows[0]) != columns:
        return []
    whole = [(row, numbers) for row in rows[1:] if (numbers := _numbers(row)) and len(numbers) == len(columns)]
    return [row for row, numbers in whole if numbers[0] <= last_step]


def _numbers(row: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        return None
