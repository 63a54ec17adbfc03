"""How many bytes of a graph's inner values are alive at once, from their shapes and the order of the nodes.

An engine's peak memory also depends on its allocator and on what it fuses; this is what the graph itself asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from spade_deploy.engines.ort.session import Optimization, SessionSetup, open_session

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Operators whose output shares the memory of their first input."""
ORDERS = ("file", "depth first")
"""In which order the nodes run: as the file has them, or each one's inputs from first to last before itself."""


@dataclass(frozen=True)
class LiveValue:
    """A value that an engine must hold."""

    name: str
    """Its name in the graph."""
    shape: tuple[int, ...]
    """Its shape, for the inputs that were fed."""
    size_bytes: int
    """Its size."""


def live_values(path: Path, inputs: Mapping[str, NDArray[Any]], order: str = "file") -> Iterator[list[LiveValue]]:
    """After each node the values that are alive: made, and still needed by this node or a later one; no weights."""
    model = onnx.load(str(path))
    nodes = list(model.graph.node)
    found = _run_all(model, inputs)
    producer = {name: number for number, node in enumerate(nodes) for name in node.output}
    sequence = range(len(nodes)) if order == "file" else _depth_first(model, producer)
    owner = {name: name for name in producer}
    for node in nodes:  # files have nodes after their inputs
        if node.op_type in _VIEWS and node.input[0] in owner:
            owner[node.output[0]] = owner[node.input[0]]
    last = {owner[name]: len(nodes) for name in (output.name for output in model.graph.output)}
    for step, number in enumerate(sequence):
        for name in nodes[number].input:
            if name in owner:
                last[owner[name]] = max(last.get(owner[name], 0), step)
    alive: dict[str, LiveValue] = {}
    for step, number in enumerate(sequence):
        for name in nodes[number].output:
            if owner[name] == name:
                alive[name] = LiveValue(name, found[name].shape, found[name].nbytes)
        yield list(alive.values())
        alive = {name: value for name, value in alive.items() if last.get(name, 0) > step}


def peak_live_bytes(path: Path, inputs: Mapping[str, NDArray[Any]], order: str = "file") -> int:
    """The most bytes that are alive at once."""
    return max(sum(value.size_bytes for value in values) for values in live_values(path, inputs, order))


def _run_all(model: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every value of the graph. `inputs` may hold more than the graph takes."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(shown.SerializeToString(), SessionSetup(threads=1, optimization=Optimization.NONE))
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, dict(inputs)), strict=True)}


def _depth_first(model: Any, producer: Mapping[str, int]) -> list[int]:
    sequence: list[int] = []
    seen: set[int] = set()
    # A node is put off until its inputs are done; there are too many for a function that calls itself.
    todo = [(producer[output.name], False) for output in reversed(model.graph.output)]
    while todo:
        number, is_ready = todo.pop()
        if is_ready:
            sequence.append(number)
        elif number not in seen:
            seen.add(number)
            todo.append((number, True))
            todo += [(producer[name], False) for name in reversed(model.graph.node[number].input) if name in producer]
    return sequence
