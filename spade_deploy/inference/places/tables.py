"""Label maps in Parquet files: a column of ids, and a column of label maps as image files' bytes or as paths.

A column of structs with the fields bytes and path, as Hugging Face's data sets have it, is understood too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import (
    ConfigError,
    LabelMapError,
    MissingDependencyError,
    NotFoundError,
    SpadeError,
)
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.inference.jobs import failure
from spade_deploy.inference.places.found import Finder, Found
from spade_deploy.inference.places.listing import beside, expanded
from spade_deploy.inference.places.origins import file_bytes
from spade_deploy.inference.places.parquet_file import Values, opened_table
from spade_deploy.inference.places.urls import PlaceError, shown

_values = Values()


@dataclass(frozen=True)
class Columns:
    """The names of the columns."""

    label: str
    """That of the label maps."""
    id: str
    """That of the ids."""
    instance: str | None
    """That of the instance maps; None where there are none."""


@dataclass(frozen=True)
class Row:
    """A value in a row of a Parquet file."""

    file: Path | str
    """The Parquet file."""
    column: str
    """The column."""
    row: int
    """The row, counted from 0 over the whole file."""
    group: int
    """The row group that has it."""
    place: int
    """The row, counted from 0 in its group."""

    def __str__(self) -> str:
        return f"{shown(self.file)}[{self.row}].{self.column}"

    def load(self) -> ImageBytes:
        """See `Stored.load`."""
        value: Any = _values.value(self.file, self.group, self.column, self.place)
        path: Any = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, bytes):
            return ImageBytes(str(self), value)
        path = value if isinstance(value, str) else path
        if not path:
            raise LabelMapError(f"{self}: there is no image in it, neither bytes nor a path")
        return ImageBytes(f"{self}, {path}", file_bytes(beside(self.file, path)))


def find_in_tables(labels: Path | str, columns: Columns) -> Found:
    """The rows of all Parquet files that a path, a URL or a pattern names."""
    finder = Finder()
    for file in expanded(labels, "Parquet files"):
        try:
            for group, place, row, name in _ids(file, columns):
                label = Row(file, columns.label, row, group, place)
                instance = None if columns.instance is None else Row(file, columns.instance, row, group, place)
                finder.add("" if name is None else str(name), label, instance)
        except (PlaceError, ConfigError, MissingDependencyError):
            raise
        except SpadeError as error:
            finder.failures.append(failure(_Table(file, "", 0, 0, 0), error))
    found = finder.found()
    if not (found.items or found.failures):
        raise NotFoundError(f"{shown(labels)} has no rows")
    return found


class _Table(Row):
    """A whole file, as the subject of a failure."""

    def __str__(self) -> str:
        return shown(self.file)


def _ids(file: Path | str, columns: Columns) -> Iterator[tuple[int, int, int, Any]]:
    """Group, place in the group, row and id of each row."""
    row = 0
    with opened_table(file) as table:
        names = table.schema_arrow.names
        for name in filter(None, (columns.label, columns.id, columns.instance)):
            if name not in names:
                raise ConfigError(
                    f"{shown(file)} has no column {name!r}; it has {', '.join(names)}",
                    hint="`label_column`, `id_column` and `instance_column` name them",
                )
        for group in range(table.num_row_groups):
            place = 0
            for batch in table.iter_batches(batch_size=1 << 16, row_groups=[group], columns=[columns.id]):
                for name in batch.column(0).to_pylist():
                    yield group, place, row, name
                    place, row = place + 1, row + 1
