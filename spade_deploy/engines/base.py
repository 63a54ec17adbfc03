"""The protocol of every runtime, the request for one, and the check of its inputs. `engines/open.py` chooses one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from numpy.typing import NDArray

from spade_deploy.artifact import (
    LABEL,
    Arrays,
    Artifact,
    Graph,
    TensorInfo,
    graph_tensors,
    input_tensors,
    mismatch,
    output_tensors,
)
from spade_deploy.errors import ArtifactError, ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.lookup.tables import check_tables, graph_inputs, lookup_tensors
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.settings import check_one_of
from spade_deploy.spec import Backend, GeneratorSpec, GraphChoice, GraphKind, Precision

__all__ = [
    "Backend",
    "ClosedByWith",
    "GraphChoice",
    "GraphRuntime",
    "KeepsRows",
    "Runtime",
    "RuntimeRequest",
    "TableRuntime",
    "check_contract",
    "check_inputs",
    "fed_tensors",
    "output_names_of",
    "parse_backend",
    "parse_graph_choice",
]


OUT_OF_MEMORY = "if memory ran out, a smaller `batch_size` or `size` helps"


@dataclass(frozen=True)
class RuntimeRequest:
    """What one engine is asked to run."""

    artifact: Artifact
    """The artifact whose graph or engine runs."""
    backend: str
    """The name of the engine, as the user calls it; never `auto`."""
    precision: Precision | None = None
    """The precision of the graph. None leaves it to the engine."""
    threads: int | None = None
    """The number of CPU threads. None leaves it to the engine."""
    graph: GraphChoice = GraphChoice.AUTO
    """The kind of graph; `auto` leaves it to the engine."""


class Runtime(Protocol):
    """An artifact that is loaded and runs. It is a context manager: whoever opened it closes it."""

    name: str
    """The engine that really runs, for people: 'ONNX Runtime 1.32.0 CPU, fp32'."""

    @property
    def spec(self) -> GeneratorSpec: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def kind(self) -> GraphKind:
        """The graph that the last run used, or the next one will begin with."""

    @property
    def patterns_s(self) -> float | None:
        """Seconds that the last run spent on finding patterns; None if the graph that ran has no patterns."""

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """Outputs by name: all, or those in `output_names`. Raises InputRefusedError before anything runs."""

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """Outputs of one batch after another, in order; on a GPU the copies of one overlap with the work of the next.

        A batch that fails raises when its turn comes, after the outputs of all batches before it.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ClosedByWith(ABC):
    """A context manager that closes itself at the end of its block, as every runtime does."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GraphRuntime(ClosedByWith):
    """What the runtimes of an artifact's ONNX graphs share: batches run one after another, each on all threads."""

    name: str
    spec: GeneratorSpec
    kind: GraphKind
    patterns_s: float | None = None
    bank: MemoryBank | None = None
    """The memory bank of a model that has one: canvases are made of it before the graph runs."""

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """See `Runtime.run`. Raises RuntimeUnavailableError where the engine fails."""
        check_inputs(self.spec, inputs)
        return self._run(self._feed(inputs), output_names)

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """See `Runtime.run_many`."""
        for batch in batches:
            yield self.run(batch, output_names)

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """See `TableRuntime.run_tables`."""
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError(f"{self.name}: pattern tables are for a lookup graph; this one takes label maps")
        if not is_checked:
            check_tables(self.spec, tables)
        return self._run(tables, output_names)

    @abstractmethod
    def _run(self, fed: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None) -> Arrays:
        """The outputs for what the graph itself is fed."""

    def _feed(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """What the graph itself is fed; `patterns_s` is taken on the way."""
        start = time.perf_counter()
        fed = graph_inputs(self.spec, self.kind, inputs, self.bank)
        self.patterns_s = time.perf_counter() - start if self.kind is GraphKind.LOOKUP else None
        return fed

    def _failed(self, fed: Mapping[str, NDArray[Any]], why: str, hint: str = OUT_OF_MEMORY) -> RuntimeUnavailableError:
        """The error of an engine that failed on what it was fed."""
        shapes = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in fed.items())
        return RuntimeUnavailableError(f"{self.name} failed on {shapes}: {why}", hint=hint)


class TableRuntime(Runtime, Protocol):
    """A runtime that also runs a lookup graph on pattern tables."""

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """Run a lookup graph on pattern tables that are already there, such as those of one map for several styles.

        tables: by name, as `lookup_tensors` has them. is_checked: they come straight from `extract_patterns`.
        Raises InputRefusedError, by tensor name, for tables that do not belong to this graph, and ConfigError where
        the graph is a dense one.
        """


@runtime_checkable
class KeepsRows(Protocol):
    """A runtime whose lookup graph can keep rows of gamma and beta from one label map to the next."""

    def keeping_rows(self, most_bytes: int) -> Runtime | None:
        """The same images, made from rows that are kept: for maps that differ little from those before.

        It is closed with this runtime, and there is one of it. most_bytes: what the rows may take; the first call
        decides. Returns None where no rows can be kept.
        """


def parse_graph_choice(text: str) -> GraphChoice:
    """The graph choice of that name. Raises ConfigError, which lists the allowed names."""
    check_one_of("graph", text, GraphChoice)
    return GraphChoice(text)


def parse_backend(text: str) -> Backend:
    """The backend of that name. Raises ConfigError, which lists the allowed names."""
    check_one_of("backend", text, Backend)
    return Backend(text)


def check_inputs(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise InputRefusedError, by tensor name, for what the graph must not be fed: names, types, shapes, ids."""
    problem = mismatch(input_tensors(spec), inputs)
    if problem:
        raise InputRefusedError(f"input {problem}")
    label = inputs[LABEL]
    for axis, size in zip(("height", "width"), label.shape[1:], strict=True):
        if not spec.takes_side(size):
            raise InputRefusedError(f"input {LABEL}: {axis} {size} is not a {spec.side_rule}")
    lowest, highest = int(label.min()), int(label.max())
    if lowest < 0 or highest >= spec.labels.num_ids:
        bad = lowest if lowest < 0 else highest
        raise InputRefusedError(f"input {LABEL}: id {bad} is out of range; allowed are 0..{spec.labels.num_ids - 1}")


def fed_tensors(spec: GeneratorSpec, kind: GraphKind) -> tuple[TensorInfo, ...]:
    """The inputs of a graph of that kind, in order."""
    return graph_tensors(spec) if kind is GraphKind.DENSE else lookup_tensors(spec)


def check_contract(
    artifact: Artifact, graph: Graph, inputs: Iterable[tuple[str, str]], outputs: Iterable[tuple[str, str]]
) -> None:
    """Raise ArtifactError for a file whose inputs or outputs are not those of the manifest's graph.

    inputs, outputs: name and type, as NumPy calls it, of each tensor that an engine found in the file.
    """
    spec = artifact.manifest.generator
    for what, tensors, found in (
        ("inputs", fed_tensors(spec, graph.kind), inputs),
        ("outputs", output_tensors(spec), outputs),
    ):
        expected, there = sorted((tensor.name, tensor.dtype) for tensor in tensors), sorted(found)
        if there != expected:
            raise ArtifactError(f"{artifact.path / graph.file}: its {what} are {there}, the manifest says {expected}")


def output_names_of(spec: GeneratorSpec, wanted: Sequence[str] | None) -> list[str]:
    """The outputs that are wanted, all of them for None. Raises ConfigError for a name that the graph does not have."""
    known = [tensor.name for tensor in output_tensors(spec)]
    names = known if wanted is None else list(wanted)
    for name in names:
        if name not in known:
            raise ConfigError(f"output {name!r} is not one of {', '.join(known)}")
    return names
