"""What every runtime can do, what it may be fed, and how one is chosen.

Nothing is chosen silently: a runtime's name says what really runs, and a backend that was asked for by name either
runs or is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, input_tensors, mismatch
from spade_deploy.errors import ConfigError, InputRefusedError
from spade_deploy.spec import Backend, GeneratorSpec, GraphChoice, GraphKind, Precision

__all__ = ["Backend", "GraphChoice", "Runtime", "check_inputs", "parse_backend", "parse_graph_choice"]


class Runtime(Protocol):
    """An artifact that is loaded and runs; a context manager, to be closed by the one who opened it."""

    @property
    def name(self) -> str:
        """What really runs, for people: 'ONNX Runtime 1.32.0 CPU, fp32'."""

    @property
    def spec(self) -> GeneratorSpec: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def kind(self) -> GraphKind:
        """The graph that the last run used, or the next one will begin with."""

    @property
    def patterns_s(self) -> float | None:
        """Seconds that the last run spent on finding patterns; None where there was no need to."""

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """Outputs by name: all, or those in `output_names`. Raises InputRefusedError before anything runs."""

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """Outputs of one batch after another, in order; on a GPU the copies of one overlap with the work of the next.

        What fails raises in its place; the batches before it have their outputs.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def parse_graph_choice(text: str) -> GraphChoice:
    """Raises ConfigError, with what is allowed."""
    if text not in list(GraphChoice):
        raise ConfigError(f"`graph`: {text!r} is not one of {', '.join(GraphChoice)}")
    return GraphChoice(text)


def parse_backend(text: str) -> Backend:
    """Raises ConfigError, with what is allowed."""
    if text not in list(Backend):
        raise ConfigError(f"`backend`: {text!r} is not one of {', '.join(Backend)}")
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
