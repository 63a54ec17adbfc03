"""An engine of a few lines, with the face of `engines/*/open.py`: it answers as `stand_in.expected` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays, Z
from spade_deploy.engines.base import Runtime, RuntimeRequest, check_inputs, output_names_of
from spade_deploy.engines.lookup import open_by_choice
from spade_deploy.errors import ConfigError, RuntimeUnavailableError
from spade_deploy.lookup.tables import level_names, modulated_channels, unique_share
from spade_deploy.spec import GraphKind, Precision
from tests.support.stand_in import expected

IS_HERE = True
"""Tests set it: whether the engine can run."""
FAILS = False
"""Tests set it: whether opening it fails."""


@dataclass
class ToyMachine:
    """A machine on which time passes only while a toy runs. Tests set how fast and how right each toy is."""

    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    """The time for an image by backend and precision; a lookup graph takes half of it, more for many patterns."""
    errors: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """What is added to every value of the image, by backend, precision and kind of graph."""
    missing: set[tuple[str, str]] = field(default_factory=set)
    """What cannot run here, by backend and precision."""
    broken: set[tuple[str, str]] = field(default_factory=set)
    """What cannot be opened, though it says that it can run."""
    clock_s: float = 0.0
    """The time."""
    opened: list[tuple[str, str, str]] = field(default_factory=list)
    """What was opened, in order."""
    is_open: list[tuple[str, str, str]] = field(default_factory=list)
    """What is open now."""

    def now(self) -> float:
        return self.clock_s


MACHINE = ToyMachine()
"""Tests put another in its place."""


class ToyRuntime:
    """Dense: the stand-in's own arithmetic. Lookup: the same, of label maps that are put together from the tables."""

    def __init__(self, wanted: RuntimeRequest, precision: Precision, kind: GraphKind) -> None:
        self.spec = wanted.artifact.manifest.generator
        self.precision, self.kind = precision, kind
        self.patterns_s: float | None = None
        self.name = f"Toy, {precision} {kind}"
        self.backend = wanted.backend
        MACHINE.opened.append((wanted.backend, str(precision), str(kind)))
        MACHINE.is_open.append(MACHINE.opened[-1])

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        check_inputs(self.spec, inputs)
        share = unique_share(self.spec, inputs) if self.kind is GraphKind.LOOKUP else 0.5
        MACHINE.clock_s += MACHINE.seconds.get((self.backend, str(self.precision)), 0.001) * (0.5 + share)
        found = expected(self.spec, dict(inputs))
        error = MACHINE.errors.get((self.backend, str(self.precision), str(self.kind)))
        if error is not None:
            found[IMAGE] = found[IMAGE] + np.float32(error)
            found[PIXELS] = ((found[IMAGE] + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
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

    def close(self) -> None:
        here = (self.backend, str(self.precision), str(self.kind))
        if here in MACHINE.is_open:
            MACHINE.is_open.remove(here)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def can_run(wanted: RuntimeRequest) -> bool:
    return IS_HERE and (wanted.backend, str(wanted.precision)) not in MACHINE.missing


def open_runtime(wanted: RuntimeRequest) -> Runtime:
    if FAILS:
        raise RuntimeUnavailableError("the toy is broken")
    precision = wanted.precision or wanted.artifact.graph().precision
    if (wanted.backend, str(precision)) in MACHINE.broken:
        raise RuntimeUnavailableError(f"{wanted.backend} is broken")
    return open_by_choice(wanted, precision, lambda kind: ToyRuntime(wanted, precision, kind))
