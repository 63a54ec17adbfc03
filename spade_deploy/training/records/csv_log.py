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

    Opening an existing file keeps its rows up to `last_step`: what an interrupted run logged after its last checkpoint
    will be computed again. Rows that a full disk does not take are kept, and the next call writes them first: no row is
    lost, and none is left cut in half.
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
        """Raises OSError where rows are left that the disk does not take."""
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
    """The rows of an existing log up to a step; none of a log with other columns, or where there is no log.

    Raises OSError for a file that is there and cannot be read: it must not be written over.
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
