"""The runtime of TensorRT: it runs an engine for one or several threads, on one batch or on a stream of batches."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.engines.base import ClosedByWith, check_inputs, output_names_of
from spade_deploy.engines.cuda.device import Device
from spade_deploy.engines.tensorrt.engine import Engine, EngineModel, times
from spade_deploy.engines.tensorrt.lane import SLOTS, Lane
from spade_deploy.engines.tensorrt.lanes import Lanes
from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.errors import ConfigError, InputRefusedError
from spade_deploy.lookup.tables import check_tables, graph_inputs
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.spec import GraphKind, ShapeProfile


class TrtRuntime(ClosedByWith):
    """An engine in one or more lanes, each with a context, streams and memory for the profile's largest batch.

    content: the engine's bytes, which were checked against the artifact. model: what it was built from.
    contexts: how many runs may be under way; further callers wait. graphs: how many CUDA graphs a lane keeps, one for
    each shape (and slot, in `run_many`) that comes again; 0 for none. owns_device: `close` closes the device too. bank:
    the memory bank of a model that has one.
    Raises ArtifactError for an engine that does not load or is not this model's, RuntimeUnavailableError where memory
    is short.
    """

    def __init__(
        self,
        library: Library,
        content: bytes,
        model: EngineModel,
        *,
        device: Device,
        contexts: int = 1,
        graphs: int = 8,
        owns_device: bool = False,
        bank: MemoryBank | None = None,
    ) -> None:
        if contexts < 1 or graphs < 0:
            raise ConfigError(f"`contexts`: {contexts} from 1 on, `graphs`: {graphs} from 0 on")
        self.spec = model.spec
        self.precision = model.precision
        self.kind = model.kind
        self.profile = model.profile
        self.patterns_s: float | None = None
        self._bank = bank
        self.notes: list[str] = []
        """What a user should know of how it runs, such as that graphs cannot be captured."""
        which = str(model.precision) if model.kind is GraphKind.DENSE else f"{model.precision} {model.kind}"
        self.name = f"{library.title}, {which}"
        self._device = device
        self._owns_device = owns_device
        lanes: list[Lane] = []
        try:
            with device.active():
                self._engine = Engine(library, content, model, graphs=graphs > 0)
                try:
                    for _ in range(contexts):
                        lanes.append(Lane(self._engine, device, graphs, self._note))
                except BaseException:
                    for lane in lanes:
                        lane.close()
                    self._engine.close()
                    raise
        except BaseException:
            if owns_device:
                device.close()
            raise
        self._lanes = Lanes(self.name, lanes)

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """See `Runtime.run`. Raises RuntimeUnavailableError where the engine fails."""
        names = output_names_of(self.spec, output_names)
        return self._run(self._prepare(inputs), names)

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """See `TableRuntime.run_tables`; tables beyond the engine's profile are refused too."""
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError(f"{self.name}: pattern tables are for a lookup engine; this one takes label maps")
        if not is_checked:
            check_tables(self.spec, tables)
        self._refuse_outside(tables)
        return self._run(tables, output_names_of(self.spec, output_names))

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """Outputs of one batch after another, in order; copies and the finding of patterns overlap with computing.

        A batch's outputs are yielded after the next batch was taken from `batches`. If an input is refused, or
        `batches` itself raises, the error comes after the outputs of all batches before it. The iterator holds a
        context until it ends or is closed.
        """
        names = output_names_of(self.spec, output_names)
        return self._overlapped(batches, names)

    def layer_times(self, inputs: Mapping[str, NDArray[Any]], runs: int = 5) -> dict[str, float]:
        """Milliseconds of each layer by its name in the engine, the median over runs; a dense graph's inputs.

        Runs wait layer by layer while they are timed, so the sum is more than a run takes.
        """
        names = output_names_of(self.spec, None)
        fed = self._prepare(inputs)
        lane = self._lanes.take()
        try:
            with self._device.active():
                lane.submit(0, fed, names)  # a shape's first run does extra work, which is not timed
                lane.collect(0)
                seen: list[dict[str, float]] = []
                for _ in range(runs):
                    found: dict[str, float] = {}
                    lane.report_to(self._engine.make_profiler(found))
                    lane.submit(0, fed, names)
                    lane.collect(0)
                    seen.append(found)
        finally:
            self._lanes.give(lane)
        return {name: statistics.median(found[name] for found in seen if name in found) for name in seen[-1]}

    def close(self) -> None:
        """Wait for the runs of other threads, then free everything. A second call does nothing."""
        lanes = self._lanes.close()
        if lanes is None:
            return
        with self._device.active():
            for lane in lanes:
                lane.close()
            self._engine.close()
        if self._owns_device:
            self._device.close()

    def _run(self, fed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Arrays:
        lane = self._lanes.take()
        try:
            with self._device.active():
                lane.submit(0, fed, names)
                return lane.collect(0)
        finally:
            self._lanes.give(lane)

    def _overlapped(self, batches: Iterable[Mapping[str, NDArray[Any]]], names: Sequence[str]) -> Iterator[Arrays]:
        lane = self._lanes.take()
        under_way: deque[int] = deque()
        failure: Exception | None = None
        try:
            upcoming = iter(batches)
            for number in count():
                slot = number % SLOTS
                try:
                    self._submit(lane, slot, self._prepare(next(upcoming)), names)
                except StopIteration:
                    break
                except Exception as error:  # whatever it is, the outputs of the batches before it come first
                    failure = error
                    break
                under_way.append(slot)
                if len(under_way) == SLOTS:
                    yield self._collect(lane, under_way.popleft())
            while under_way:
                yield self._collect(lane, under_way.popleft())
            if failure is not None:
                raise failure
        finally:
            try:
                if under_way and not self._lanes.is_closed:  # the caller left early: copies may still be under way
                    with self._device.active():
                        lane.drain()
            finally:
                self._lanes.give(lane)

    def _submit(self, lane: Lane, slot: int, fed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> None:
        self._lanes.check_open()
        with self._device.active():
            lane.submit(slot, fed, names)

    def _collect(self, lane: Lane, slot: int) -> Arrays:
        self._lanes.check_open()
        with self._device.active():
            return lane.collect(slot)

    def _prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """A dense graph's inputs -> the engine's. Raises InputRefusedError."""
        check_inputs(self.spec, inputs)
        batch, height, width = inputs[LABEL].shape
        if not self.profile.contains(batch, height, width):
            least, most = times(self.profile.least), times(self.profile.most)
            raise InputRefusedError(
                f"input {LABEL}: shape {batch} x {height} x {width} is outside {least} to {most}, for which the engine"
                " was built",
                hint=f"spade build --profile {self._widened((batch, height, width))}",
            )
        start = time.perf_counter()
        fed = graph_inputs(self.spec, self.kind, inputs, self._bank)
        if self.kind is GraphKind.LOOKUP:
            self.patterns_s = time.perf_counter() - start
        self._refuse_outside(fed)
        return fed

    def _refuse_outside(self, fed: Mapping[str, NDArray[Any]]) -> None:
        for name, (least, _, most) in self._engine.inputs.items():
            shape = fed[name].shape
            if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                raise InputRefusedError(
                    f"input {name}: shape {times(shape)} is outside {times(least)} to {times(most)}, for which the"
                    " engine was built",
                    hint="spade build --profile MIN:OPT:MAX makes an engine for more, or the dense graph takes it",
                )

    def _widened(self, extent: tuple[int, int, int]) -> ShapeProfile:
        low = (min(pair) for pair in zip(self.profile.least, extent, strict=True))
        high = (max(pair) for pair in zip(self.profile.most, extent, strict=True))
        return ShapeProfile(_extent(low), self.profile.best, _extent(high))

    def _note(self, note: str) -> None:
        if not self.notes:  # each lane says it once; people need it once
            self.notes.append(note)


def _extent(sizes: Iterable[int]) -> tuple[int, int, int]:
    batch, height, width = sizes
    return batch, height, width
