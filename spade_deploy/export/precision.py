"""Which parts of a half-precision graph must stay float32: those whose values half precision cannot hold.

The ranges are measured, not guessed. The float32 deploy model runs on real label maps and on stress maps
(`export/stress_maps.py`), and every input of a unit and every result inside it is watched. Inputs count because they
are cast: the unit before may stay float32, and its output may be more than half precision holds. Results inside a unit
count because a product may overflow where the sum does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spade_deploy.artifact import Arrays, one_by_one
from spade_deploy.errors import ConfigError, ExportError
from spade_deploy.export.build import ExportedModel, model_inputs, unit_names
from spade_deploy.export.dense_values import dense_values, has_all_values, one_hot_readers
from spade_deploy.export.distinct_windows import distinct_windows
from spade_deploy.export.stress_maps import StressMap, evaluations_for, hardest_map, stress_maps
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GeneratorSpec, GraphKind, NormType

FP16_MAX = 65504.0
HEADROOM = 8.0
"""A unit stays float32 if its values reach FP16_MAX / HEADROOM: other label maps may make larger ones."""


def always_fp32(spec: GeneratorSpec) -> tuple[str, ...]:
    """The steps that stay float32 in every half-precision graph, in words."""
    statistics = {NormType.INSTANCE: ("instance norm statistics",), NormType.LAYER: ("layer norm statistics",)}
    return ("tanh and the conversion to pixels", *statistics.get(spec.norm, ()))


def weight_ranges(model: ExportedModel) -> dict[str, float]:
    """The largest magnitude of the weights of each unit."""
    return {name: _largest(model.get_submodule(name).parameters()) for name in unit_names(model.spec)}


def unit_ranges(
    model: ExportedModel, inputs: Sequence[Tensor], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The largest magnitude in each unit for these inputs: of its weights, of its inputs and of its results.

    model: in float32, on any device. inputs: in the order in which `model` takes them; they are copied to its device.
    weights: its `weight_ranges`, where they are known.
    """
    device = next(model.parameters()).device
    ranges = {**(weight_ranges(model) if weights is None else weights)}
    with distinct_windows(model, inputs), _watched_units(model, ranges), torch.no_grad():
        model(*(tensor.to(device) for tensor in inputs))
    return ranges


@dataclass(frozen=True)
class MeasuredRanges:
    """The values that half precision must hold."""

    largest: Mapping[str, float]
    """The largest magnitude in each unit, over all kinds of graph and all maps."""

    hardest: StressMap
    """The map with the largest values that the search found."""


def measure_ranges(
    models: Mapping[GraphKind, ExportedModel], golden: Arrays, progress: Progress = SILENT
) -> MeasuredRanges:
    """The ranges of every kind of graph in one, so that all keep the same units.

    models: in float32, on any device. golden: the dense graph's inputs by name, N of each; stress maps and a search for
    the largest activations are added.
    """
    # The search runs on the first model: a lookup model computes a map of few distinct windows several times as fast.
    kinds = sorted(models, key=lambda one: one is not GraphKind.LOOKUP)
    first = models[kinds[0]]
    if len(kinds) == 2 and has_all_values(first, models[GraphKind.DENSE]):
        with dense_values(first, models[GraphKind.DENSE]):
            weights = [*map(weight_ranges, models.values()), dict.fromkeys(one_hot_readers(first), 1.0)]
            return _measured([_Pass("both graphs", first, reduce(_merged, weights))], golden, progress)
    passes = [_Pass(f"the {kind} graph", models[kind], weight_ranges(models[kind])) for kind in kinds]
    return _measured(passes, golden, progress)


@dataclass(frozen=True)
class _Pass:
    """A model that is run on all maps."""

    name: str
    """What is measured with it, in words."""
    model: ExportedModel
    """The model."""
    weights: Mapping[str, float]
    """The largest magnitude of each unit's weights."""

    def ranges(self, inputs: Arrays) -> dict[str, float]:
        """The ranges for the dense graph's inputs, one of each."""
        return unit_ranges(self.model, model_inputs(self.model, inputs), self.weights)


def _measured(passes: Sequence[_Pass], golden: Arrays, progress: Progress) -> MeasuredRanges:
    spec = passes[0].model.spec
    stress = list(stress_maps(spec, classes=evaluations_for(spec)))
    largest: dict[str, float] = {}
    hardest: StressMap | None = None
    for one in passes:
        maps = [*one_by_one(golden), *(each.inputs for each in stress)]
        by_map = []
        for done, inputs in enumerate(maps, start=1):
            by_map.append(one.ranges(inputs))
            largest = _merged(largest, by_map[-1])
            progress.count(f"measuring the ranges of {one.name}", done, len(maps))
        if hardest is None:
            starts = [(each.inputs, found) for each, found in zip(stress, by_map[-len(stress) :], strict=True)]
            hardest, found = _search(one, starts, units_to_keep(largest))
            largest = _merged(largest, found)
            stress.append(hardest)
    assert hardest is not None  # there is at least one pass
    return MeasuredRanges(largest, hardest)


def _search(
    measured: _Pass, starts: Sequence[tuple[Arrays, dict[str, float]]], kept: Sequence[str]
) -> tuple[StressMap, dict[str, float]]:
    """Search from the worst stress map for the largest value in any unit that is not in `kept`."""
    ranges: dict[str, float] = {}

    def worst(found: Mapping[str, float]) -> float:
        return max((value for name, value in found.items() if name not in kept), default=0.0)

    def score(inputs: Arrays) -> float:
        nonlocal ranges
        found = measured.ranges(inputs)
        ranges = _merged(ranges, found)
        return worst(found)

    spec = measured.model.spec
    start = max(starts, key=lambda each: worst(each[1]))[0]
    hardest, _ = hardest_map(spec, start, score, evaluations_for(spec))
    return hardest, ranges


def _merged(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {**first, **{name: _larger(first.get(name, 0.0), value) for name, value in second.items()}}


def kept_units(spec: GeneratorSpec, ranges: Mapping[str, float], asked: Iterable[str]) -> tuple[str, ...]:
    """The units that stay float32, by their ranges or because the user asks for it. Raises ExportError if all do."""
    units = unit_names(spec)
    wanted = {*units_to_keep(ranges), *asked}
    if wanted.issuperset(units):
        largest = max(ranges.values(), key=lambda value: (value != value, value))
        raise ExportError(
            f"`fp16`: no part of this model fits half precision: values reach {largest:.3g}, and up to"
            f" {FP16_MAX / HEADROOM:.0f} are safe ({FP16_MAX:.0f} with a headroom of {HEADROOM:g})",
            hint="export without `fp16`: the fp32 graphs run everywhere",
        )
    return tuple(name for name in units if name in wanted)


def units_to_keep(ranges: Mapping[str, float]) -> tuple[str, ...]:
    """The units that half precision cannot hold safely, in the order they run. Not-a-number counts as too large."""
    return tuple(name for name, largest in ranges.items() if not largest <= FP16_MAX / HEADROOM)


def parse_kept(spec: GeneratorSpec, names: Iterable[str]) -> tuple[str, ...]:
    """The units that a user wants in float32, each once, in the order they run. Raises ConfigError."""
    units, wanted = unit_names(spec), set(names)
    unknown = sorted(wanted.difference(units))
    if unknown:
        inside = unknown[0].split(".")[0]
        raise ConfigError(
            f"`keep_fp32`: {unknown[0]!r} is not a part with its own precision; allowed are {', '.join(units)}",
            hint=f"it lies in {inside}: `keep_fp32` {inside}" if inside in units else None,
        )
    if len(wanted) == len(units):
        raise ConfigError(
            "`keep_fp32`: all parts are named, so nothing is left for half precision", hint="leave `fp16` out"
        )
    return tuple(name for name in units if name in wanted)


@contextmanager
def _watched_units(model: ExportedModel, ranges: dict[str, float]) -> Iterator[None]:
    watcher = _Watcher(ranges)
    handles = []
    for name in ranges:
        unit = model.get_submodule(name)
        handles.append(unit.register_forward_pre_hook(lambda _, taken, name=name: watcher.enter(name, taken)))
        handles.append(unit.register_forward_hook(lambda _, __, ___: watcher.leave()))
    try:
        with watcher:
            yield
    finally:
        for handle in handles:
            handle.remove()


_NO_LARGER = frozenset(
    ["aten::cat", "aten::embedding", "aten::index_select", "aten::leaky_relu", "aten::relu", "aten::upsample_nearest2d"]
)
"""Operators whose results are no larger than the largest of what they take, which was watched already."""


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the inputs of a unit and the result of every operator in it, and keeps the unit's largest magnitude.

    A result that is a view of a watched tensor, or surely no larger than one, is not read again.
    """

    def __init__(self, ranges: dict[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ranges = ranges
        self._unit: str | None = None

    def enter(self, unit: str, taken: Any) -> None:
        self._unit = unit
        self._book(taken)

    def leave(self) -> None:
        self._unit = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func.name().split(".")[0] in _NO_LARGER):
            self._book(result)
        return result

    def _book(self, found: Any) -> None:
        if self._unit is not None:
            self._ranges[self._unit] = _larger(self._ranges[self._unit], _largest(_floats(found)))


def _floats(found: Any) -> Iterator[Tensor]:
    """The tensors of floats in nested tuples and lists."""
    if isinstance(found, Tensor) and found.is_floating_point():
        yield found
    elif isinstance(found, tuple | list):
        for part in found:
            yield from _floats(part)


def _larger(first: float, second: float) -> float:
    """The larger of two numbers; not-a-number counts as larger than any number."""
    return first if first != first or first >= second else second


def _largest(tensors: Iterator[Tensor] | Iterator[nn.Parameter]) -> float:
    largest = 0.0
    for tensor in tensors:
        if tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            largest = _larger(largest, max(float(high), -float(low)))
    return largest
