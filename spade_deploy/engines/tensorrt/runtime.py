"""TensorRT: an engine that runs, for one caller or several, one batch or a stream of them."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from spade_deploy.artifact import LABEL, Arrays, output_tensors
from spade_deploy.engines.base import check_inputs
from spade_deploy.engines.cuda.device import Device
from spade_deploy.engines.tensorrt.engine import Engine, times
from spade_deploy.engines.tensorrt.lane import SLOTS, Lane
from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.errors import ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.lookup.tables import check_tables, graph_inputs
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision, ShapeProfile


class TrtRuntime:
    """An engine in one or more lanes, each with a context, streams and memory for the profile's largest batch.

    content: the engine's bytes, of an artifact that vouches for them. profile: what it was built for.
    contexts: runs at a time; a caller beyond waits. graphs: CUDA graphs that a lane keeps, one for each shape (and
    slot, in `run_many`) that comes again; 0 for none. owns_device: `close` closes the device too.
    patterns_s: of a lookup graph, the seconds that the last run spent on finding patterns.
    notes: what a user should know of how it runs, such as that graphs cannot be captured.
    Raises ArtifactError for an engine that does not load or is not this model's, RuntimeUnavailableError where memory
    is short.
    """

    def __init__(
        self,
        library: Library,
        content: bytes,
        spec: GeneratorSpec,
        precision: Precision,
        kind: GraphKind,
        profile: ShapeProfile,
        *,
        device: Device,
        contexts: int = 1,
        graphs: int = 8,
        owns_device: bool = False,
    ) -> None:
        if contexts < 1 or graphs < 0:
            raise ConfigError(f"contexts: {contexts} from 1 on, graphs: {graphs} from 0 on")
        self.spec = spec
        self.precision = precision
        self.kind = kind
        self.profile = profile
        self.patterns_s: float | None = None
        self.notes: list[str] = []
        which = str(precision) if kind is GraphKind.DENSE else f"{precision} {kind}"
        self.name = f"{library.title}, {which}"
        self._device = device
        self._owns_device = owns_device
        lanes: list[Lane] = []
        try:
            with device.active():
                self._engine = Engine(library, content, spec, kind, profile, graphs=graphs > 0)
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
        self._lanes = _Lanes(self.name, lanes)

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None) -> Arrays:
        """Outputs by name. Raises InputRefusedError before anything runs, RuntimeUnavailableError when it fails."""
        names = self._output_names(output_names)
        return self._run(self._prepare(inputs), names)

    def run_tables(
        self, tables: Mapping[str, NDArray[Any]], output_names: Sequence[str] | None = None, *, is_checked: bool = False
    ) -> Arrays:
        """Run a lookup engine on pattern tables that are already there, such as those of one map for several styles.

        tables: as `tables.lookup_tensors` has them. is_checked: they come straight from `extract_patterns`.
        Raises InputRefusedError, by tensor name, for tables that do not belong to this graph or its profile.
        """
        if self.kind is not GraphKind.LOOKUP:
            raise ConfigError(f"{self.name}: pattern tables are for a lookup engine; this one takes label maps")
        if not is_checked:
            check_tables(self.spec, tables)
        self._refuse_outside(tables)
        return self._run(tables, self._output_names(output_names))

    def run_many(
        self, batches: Iterable[Mapping[str, NDArray[Any]]], output_names: Sequence[str] | None = None
    ) -> Iterator[Arrays]:
        """Outputs of one batch after another, in order; copies and the finding of patterns overlap with computing.

        The batch after is taken from `batches` before a batch's outputs are given. What fails, a refused input or
        `batches` itself, raises in its place, after the outputs of all batches before it. The iterator holds a
        context until it ends or is closed.
        """
        names = self._output_names(output_names)
        return self._overlapped(batches, names)

    def layer_times(self, inputs: Mapping[str, NDArray[Any]], runs: int = 5) -> dict[str, float]:
        """Milliseconds of each layer by its name in the engine, the median over runs; a dense graph's inputs.

        Runs wait layer by layer while they are timed, so the sum is more than a run takes.
        """
        names = self._output_names(None)
        fed = self._prepare(inputs)
        lane = self._lanes.take()
        try:
            with self._device.active():
                lane.submit(0, fed, names)  # what is put off until a shape's first run is no layer's time
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
        """Wait for the runs of other threads, then free everything; again does nothing."""
        lanes = self._lanes.close()
        if lanes is None:
            return
        with self._device.active():
            for lane in lanes:
                lane.close()
            self._engine.close()
        if self._owns_device:
            self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
                if under_way and not self._lanes.is_closed:  # left before its end: copies may still be under way
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
        fed = graph_inputs(self.spec, self.kind, inputs)
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

    def _output_names(self, output_names: Sequence[str] | None) -> list[str]:
        known = [tensor.name for tensor in output_tensors(self.spec)]
        names = known if output_names is None else list(output_names)
        for name in names:
            if name not in known:
                raise ConfigError(f"output {name!r} is not one of {', '.join(known)}")
        return names

    def _note(self, note: str) -> None:
        if not self.notes:  # each lane says it once; people need it once
            self.notes.append(note)


class _Lanes:
    """The lanes that are free, handed to whoever asks first."""

    def __init__(self, name: str, lanes: Sequence[Lane]) -> None:
        self._name = name
        self._all = list(lanes)
        self._free = list(lanes)
        self._holders: dict[Lane, int] = {}
        self._changed = threading.Condition()
        self.is_closed = False

    def take(self) -> Lane:
        """A free lane, waited for where there is none. Raises RuntimeUnavailableError where none can become free."""
        me = threading.get_ident()
        with self._changed:
            while True:
                self.check_open()
                if self._free:
                    lane = self._free.pop()  # the one used last: its graphs are the warmest
                    self._holders[lane] = me
                    return lane
                if set(self._holders.values()) == {me}:
                    raise RuntimeUnavailableError(
                        f"{self._name}: its {len(self._all)} contexts are held by run_many of this very thread",
                        hint="finish or close those iterators first, or open the runtime with more contexts",
                    )
                self._changed.wait()

    def give(self, lane: Lane) -> None:
        with self._changed:
            self._holders.pop(lane, None)
            self._free.append(lane)
            self._changed.notify_all()

    def close(self) -> list[Lane] | None:
        """All lanes, once no other thread runs one; None where that was done before."""
        me = threading.get_ident()
        with self._changed:
            if self.is_closed:
                return None
            self.is_closed = True
            self._changed.notify_all()  # those who wait for a lane
            while set(self._holders.values()) - {me}:
                self._changed.wait()
            return self._all

    def check_open(self) -> None:
        if self.is_closed:
            raise RuntimeUnavailableError(f"{self._name}: it was closed")


def _extent(sizes: Iterable[int]) -> tuple[int, int, int]:
    batch, height, width = sizes
    return batch, height, width
