"""Which parts of a half-precision graph must stay float32: those whose values half precision cannot hold.

The ranges are measured, not guessed: the float32 deploy model runs on real label maps while every tensor that any
operator makes is watched, the ones inside a unit included (a product may overflow where the sum does not).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spade_deploy.errors import ConfigError
from spade_deploy.export.models import TracedModel, unit_names
from spade_deploy.spec import GeneratorSpec, NormType

FP16_MAX = 65504.0
HEADROOM = 8.0
"""Label maps that were not measured may reach further: a unit stays float32 from FP16_MAX / HEADROOM on."""


def always_fp32(spec: GeneratorSpec) -> tuple[str, ...]:
    """What stays float32 in every half-precision graph, for people."""
    statistics = {NormType.INSTANCE: ("instance norm statistics",), NormType.LAYER: ("layer norm statistics",)}
    return ("tanh and the conversion to pixels", *statistics.get(spec.norm, ()))


def unit_ranges(model: TracedModel, inputs: Sequence[Tensor]) -> dict[str, float]:
    """The largest magnitude of any weight or activation in each unit of a float32 model, for these inputs."""
    ranges = {name: _largest(model.get_submodule(name).parameters()) for name in unit_names(model.spec)}
    with _watched_units(model, ranges), torch.no_grad():
        model(*inputs)
    return ranges


def units_to_keep(ranges: dict[str, float]) -> tuple[str, ...]:
    """The units that half precision cannot hold safely, in the order they run. Not-a-number counts as too large."""
    return tuple(name for name, largest in ranges.items() if not largest <= FP16_MAX / HEADROOM)


def parse_kept(spec: GeneratorSpec, names: Iterable[str]) -> tuple[str, ...]:
    """The units that a user wants in float32, each once, in the order they run. Raises ConfigError."""
    units, wanted = unit_names(spec), set(names)
    unknown = sorted(wanted.difference(units))
    if unknown:
        inside = unknown[0].split(".")[0]
        raise ConfigError(
            f"--keep-fp32: {unknown[0]!r} is no part with a precision of its own; allowed are {', '.join(units)}",
            hint=f"it lies in {inside}: --keep-fp32 {inside}" if inside in units else None,
        )
    if len(wanted) == len(units):
        raise ConfigError(
            "--keep-fp32: all parts are named, and nothing is left for half precision", hint="drop --fp16"
        )
    return tuple(name for name in units if name in wanted)


@contextmanager
def _watched_units(model: TracedModel, ranges: dict[str, float]) -> Iterator[None]:
    watcher = _Watcher(ranges)
    handles = []
    for name in ranges:
        unit = model.get_submodule(name)
        handles.append(unit.register_forward_pre_hook(lambda _, __, name=name: watcher.enter(name)))
        handles.append(unit.register_forward_hook(lambda _, __, ___: watcher.enter(None)))
    try:
        with watcher:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the result of every operator and books its largest magnitude on the unit that is running."""

    def __init__(self, ranges: dict[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ranges = ranges
        self._unit: str | None = None

    def enter(self, unit: str | None) -> None:
        self._unit = unit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._unit is not None:
            tensors = result if isinstance(result, tuple | list) else [result]
            floats = (tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point())
            self._ranges[self._unit] = max(self._ranges[self._unit], _largest(floats))
        return result


def _largest(tensors: Iterator[Tensor] | Iterator[nn.Parameter]) -> float:
    largest = 0.0
    for tensor in tensors:
        value = float(tensor.detach().abs().max())
        largest = value if value != value else max(largest, value)
    return largest
