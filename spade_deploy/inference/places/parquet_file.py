"""Open Parquet files here or behind a URL, and read single values of them without holding a row group in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spade_deploy.errors import LabelMapError, MissingDependencyError, SpadeError, reason_of
from spade_deploy.files.reading import open_regular
from spade_deploy.inference.places.urls import filesystem, shown, url_error

_ROWS = 16
"""Rows that are decoded at once."""
_MOST_BATCHES = 8
"""Batches that are kept, since several threads read neighbours in any order."""
_MOST_CURSORS = 4


def pyarrow() -> Any:
    """The module pyarrow.parquet. Raises MissingDependencyError."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Parquet files are read and written by pyarrow, which is not installed",
            hint="pip install 'spade-deploy[parquet]'",
        ) from error
    return pyarrow.parquet


@contextmanager
def opened_table(file: Path | str) -> Iterator[Any]:
    """A pyarrow ParquetFile. Errors inside the block become LabelMapError, or PlaceError if the place fails."""
    module = pyarrow()
    if isinstance(file, Path):
        try:
            with open_regular(file) as stream, module.ParquetFile(stream, pre_buffer=False) as table:
                yield table
        except (SpadeError, GeneratorExit):
            raise
        except Exception as error:  # pyarrow's errors are ValueErrors and OSErrors of many kinds
            raise _damaged(shown(file), error) from error
        return
    fs, path = filesystem(file)
    try:
        with fs.open(path, "rb") as stream, module.ParquetFile(stream, pre_buffer=False) as table:
            yield table
    except (SpadeError, GeneratorExit):
        raise
    except Exception as error:
        if type(error).__module__.startswith("pyarrow"):
            raise _damaged(shown(file), error) from error
        raise url_error(error, file, "read") from error


def _damaged(file: str, error: Exception) -> LabelMapError:
    return LabelMapError(
        f"{file}: it is not a complete Parquet file: {reason_of(error)}",
        hint="copy the file again, or make it anew; the same command goes on",
    )


class _Cursor:
    """Reads one column of one row group from its beginning on."""

    def __init__(self, file: Path | str, group: int, column: str) -> None:
        self._values = self._read(file, group, column)
        self._recent: OrderedDict[int, list[Any]] = OrderedDict()
        self._next = 0

    def value(self, place: int) -> Any:
        """The value of a row; LookupError if it was passed long ago."""
        start = place - place % _ROWS
        while start not in self._recent:
            if start < self._next:
                raise LookupError
            self._recent[self._next] = next(self._values)
            self._next += _ROWS
            if len(self._recent) > _MOST_BATCHES:
                self._recent.popitem(last=False)
        return self._recent[start][place % _ROWS]

    def close(self) -> None:
        self._values.close()

    @staticmethod
    def _read(file: Path | str, group: int, column: str) -> Any:
        """The values in lists of `_ROWS`; pyarrow's batches may be shorter."""
        ahead: list[Any] = []
        with opened_table(file) as table:
            for batch in table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column]):
                ahead += batch.column(0).to_pylist()
                while len(ahead) >= _ROWS:
                    yield ahead[:_ROWS]
                    ahead = ahead[_ROWS:]
        yield ahead


class Values:
    """Values of Parquet files, by their places. Safe to be used by several threads."""

    def __init__(self) -> None:
        self._cursors: OrderedDict[tuple[Path | str, int, str], _Cursor] = OrderedDict()
        self._lock = threading.Lock()

    def value(self, file: Path | str, group: int, column: str, place: int) -> Any:
        """One value as Python's own type. Raises LabelMapError, PlaceError."""
        key = (file, group, column)
        with self._lock:
            try:
                if key not in self._cursors:
                    self._cursors[key] = _Cursor(*key)
                self._cursors.move_to_end(key)
                while len(self._cursors) > _MOST_CURSORS:
                    self._cursors.popitem(last=False)[1].close()
                try:
                    return self._cursors[key].value(place)
                except LookupError:
                    self._cursors[key].close()
                    self._cursors[key] = _Cursor(*key)
                    return self._cursors[key].value(place)
            except BaseException:
                self._cursors.pop(key, None)
                raise
