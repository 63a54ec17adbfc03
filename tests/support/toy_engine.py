"""An engine of a few lines, with the face of `engines/*/open.py`: it answers as `stand_in.expected` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, Z
from spade_deploy.engines.base import Runtime, RuntimeRequest, check_inputs, output_names_of
from spade_deploy.engines.lookup import open_by_choice
from spade_deploy.errors import ConfigError, RuntimeUnavailableError
from spade_deploy.lookup.tables import level_names, modulated_channels
from spade_deploy.spec import GraphKind, Precision
from tests.support.stand_in import expected

IS_HERE = True
"""Tests set it: whether the engine can run."""
FAILS = False
"""Tests set it: whether opening it fails."""


class ToyRuntime:
    """Dense: the stand-in's own arithmetic. Lookup: the same, of label maps that are put together from the tables."""

    def __init__(self, wanted: RuntimeRequest, precision: Precision, kind: GraphKind) -> None:
        self.spec = wanted.artifact.manifest.generator
        self.precision, self.kind = precision, kind
        self.patterns_s: float | None = None
        self.name = f"Toy, {precision} {kind}"

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        check_inputs(self.spec, inputs)
        found = expected(self.spec, dict(inputs))
        return {name: found[name] for name in output_names_of(self.spec, output_names)}

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError("a dense graph takes label maps")
        codes, patterns, index = (tables[name] for name in level_names(min(modulated_channels(self.spec))))
        middle = codes.shape[1] // 2
        label = codes[patterns[:, middle], middle][index]  # the centre tap of the centre window of every pixel
        style = {Z: tables[Z]} if Z in tables else {}
        return self.run({LABEL: label.astype("uint8"), **style}, output_names)

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        return (self.run(inputs, output_names) for inputs in batches)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def can_run(wanted: RuntimeRequest) -> bool:
    return IS_HERE


def open_runtime(wanted: RuntimeRequest) -> Runtime:
    if FAILS:
        raise RuntimeUnavailableError("the toy is broken")
    precision = wanted.precision or wanted.artifact.graph().precision
    return open_by_choice(wanted, precision, lambda kind: ToyRuntime(wanted, precision, kind))
