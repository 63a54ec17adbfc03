"""Three stages that overlap: threads decode label maps, one thread runs the model, threads encode images.

NumPy, Pillow and the runtimes let go of the interpreter lock while they work. Both queues are bounded, so memory does
not grow with the folder.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, PIXELS, Arrays, Z, joined, region_means, with_features
from spade_deploy.engines.base import Runtime, check_inputs
from spade_deploy.errors import InputRefusedError, LabelMapError, RuntimeUnavailableError, SpadeError
from spade_deploy.images.image_file import Size
from spade_deploy.inference.jobs import Job, Outcome, failed, loaded
from spade_deploy.inference.places.target import Kept, Target
from spade_deploy.inference.places.urls import PlaceError
from spade_deploy.inference.png import encode_png
from spade_deploy.labels.files import jpeg_bytes, read_instance_map, read_label_map, resize_nearest
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import GeneratorSpec

# Threads that decode, and as many that encode; never more than half the cores, as a CPU session needs them, too.
_MAX_WORKERS = 4
_REMOTE_WORKERS = 16
"""Threads that read from an object store, and as many that write there: they mostly wait for its answers."""

_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL)
"""Errors that keep only one result from being written; a full disk, for example, concerns all results."""


@dataclass(frozen=True)
class Maps:
    """The network's inputs from one label file."""

    job: Job
    """The file, and where its image goes."""

    inputs: Arrays
    """The network's inputs by name, of batch 1."""

    was_resized: bool
    """Whether the file has another size."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs[LABEL].shape


@dataclass(frozen=True)
class Reader:
    """Makes network inputs of label files."""

    spec: GeneratorSpec
    """How the generator is built."""

    size: Size | None
    """Height and width that maps are resized to; None keeps each file's own."""

    style: NDArray[np.float32] | None
    """The style vector of a VAE model, 1 x z_dim."""

    features: NDArray[np.float32] | None = None
    """The features of each pixel of a photo, C x H x W, of the size of the maps; None takes the default."""

    def read(self, job: Job) -> Maps:
        """Decode, resize and check one label map and its instance map. Runs in the decoding threads."""
        own = read_label_map(loaded(job.label), self.spec.labels)
        label = own if self.size is None else resize_nearest(own, self.size)
        inputs: dict[str, NDArray[Any]] = {LABEL: label[None]}
        if self.spec.labels.has_edges:
            inputs[INSTANCE] = self._instance(job, own.shape, label.shape)[None]
        if self.style is not None:
            inputs[Z] = self.style
        if self.features is not None:  # a map without an instance map has an instance for each class
            regions = label if job.instance is None else inputs[INSTANCE][0]
            inputs[FEATURES] = region_means(self.features, regions)[None]
        inputs = with_features(self.spec, inputs)
        try:
            check_inputs(self.spec, inputs)
        except SpadeError as error:
            way_out = "" if self.size else "; `resize` model resizes it"
            raise LabelMapError(f"{job.label}: {error}{way_out}") from error
        return Maps(job, inputs, was_resized=label.shape != own.shape)

    def _instance(self, job: Job, own: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.int32]:
        if job.instance is None:
            return np.zeros(shape, np.int32)  # one instance everywhere: no edges
        instance = read_instance_map(loaded(job.instance))
        if instance.shape != own:
            height, width = instance.shape
            raise LabelMapError(
                f"{job.instance} has {height} x {width} pixels, its label map {own[0]} x {own[1]}",
                hint="an instance map has the size of its label map: check that the names belong together",
            )
        return instance if self.size is None else resize_nearest(instance, self.size)


@dataclass(frozen=True)
class _Writing:
    """A result that is being written. The maps that it was made from are not kept."""

    job: Job
    """What was made."""

    was_resized: bool
    """Whether the label map had another size."""

    seconds: float
    """The time that the model took."""

    future: Future[Kept]
    """The writing; its result raises the error if it fails."""


class TargetError(SpadeError):
    """A result cannot be written, and no other could be: the disk is full, for example."""


class Pipeline:
    """Decodes, runs and encodes at the same time. Each job's outcome goes to `tell`, written images in their order."""

    def __init__(
        self,
        reader: Reader,
        runtime: Runtime,
        batch_size: int,
        target: Target,
        tell: Callable[[Outcome], None],
        *,
        reads_remote: bool = False,
    ) -> None:
        """reads_remote: whether label maps come from an object store."""
        self._reader = reader
        self._runtime = runtime
        self._batch_size = batch_size
        self._target = target
        self._tell = tell
        cores = min(os.cpu_count() or 2, usable_cores())
        workers = max(1, min(_MAX_WORKERS, cores // 2))
        decoders = _REMOTE_WORKERS if reads_remote else workers
        encoders = _REMOTE_WORKERS if target.is_remote else workers
        self._ahead, self._unwritten = 2 * batch_size + decoders, 2 * batch_size + encoders
        self._decoders = ThreadPoolExecutor(decoders, "decode")
        self._encoders = ThreadPoolExecutor(encoders, "encode")
        self._writes: deque[_Writing] = deque()

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs. Raises the error of the runtime or of the place if no other job could be done either."""
        try:
            for batch, found, seconds in self._results(self._batches(self._decoded(jobs))):
                if isinstance(found, SpadeError):
                    if self._reader.size is not None:
                        raise found  # with one size for all files, all would fail alike
                    for maps in batch:
                        self._tell(failed(maps.job, found))
                    continue
                for maps, image in zip(batch, found, strict=True):
                    future = self._encoders.submit(_put, self._target, maps.job.result, image)
                    self._writes.append(_Writing(maps.job, maps.was_resized, seconds / len(batch), future))
                self._collect(at_most_open=self._unwritten)
            self._collect(at_most_open=0)
        finally:
            # After an error or Ctrl-C, waiting work of both pools is dropped first; work that has begun is finished.
            for pool in (self._decoders, self._encoders):
                pool.shutdown(wait=False, cancel_futures=True)
            for pool in (self._decoders, self._encoders):
                pool.shutdown(wait=True)

    def _results(
        self, batches: Iterator[list[Maps]]
    ) -> Iterator[tuple[list[Maps], NDArray[np.uint8] | SpadeError, float]]:
        """Each batch with its pixels N x H x W x 3, or with the error if it failed, and its seconds."""
        waiting: deque[list[Maps]] = deque()  # batches that the runtime has taken and not answered yet
        again: deque[list[Maps]] = deque()
        began = time.perf_counter()  # when the runtime took the last batch, or gave the one before it

        def feed() -> Iterator[Arrays]:
            nonlocal began
            while (batch := again.popleft() if again else next(batches, None)) is not None:
                waiting.append(batch)
                fed = joined([maps.inputs for maps in batch])
                began = began if len(waiting) > 1 else time.perf_counter()
                yield fed

        while True:
            try:
                for outputs in self._runtime.run_many(feed(), [PIXELS]):
                    now = time.perf_counter()
                    seconds, began = now - began, now
                    yield waiting.popleft(), outputs[PIXELS], seconds
                return
            except (RuntimeUnavailableError, InputRefusedError) as error:
                if not waiting:
                    raise
                refused = waiting.popleft()
                again.extendleft(reversed(waiting))  # other batches that the runtime had taken are run again
                waiting.clear()
                yield refused, error, 0.0

    def _decoded(self, jobs: Iterable[Job]) -> Iterator[Maps]:
        coming = iter(jobs)
        is_ready = getattr(coming, "is_ready", lambda: True)
        waiting: deque[tuple[Job, Future[Maps]]] = deque()
        while True:
            while len(waiting) < self._ahead:
                if not is_ready():
                    if waiting:
                        break
                    self._collect(at_most_open=0)  # whoever gives the jobs may wait for these
                if (coming_job := next(coming, None)) is None:
                    break
                waiting.append((coming_job, self._decoders.submit(self._reader.read, coming_job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                maps = future.result()
            except PlaceError:
                raise  # the others lie in the same place
            except (SpadeError, OSError, MemoryError) as error:
                self._tell(failed(job, error))
            else:
                yield maps

    def _batches(self, decoded: Iterable[Maps]) -> Iterator[list[Maps]]:
        """Neighbours of equal size, up to the batch size."""
        batch: list[Maps] = []
        for maps in decoded:
            if batch and maps.shape != batch[0].shape:
                yield batch
                batch = []
            batch.append(maps)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _collect(self, at_most_open: int) -> None:
        """Count the finished writes; wait until at most `at_most_open` are unfinished."""
        while self._writes and (len(self._writes) > at_most_open or self._writes[0].future.done()):
            writing = self._writes.popleft()
            job = writing.job
            try:
                kept = writing.future.result()
            except (SpadeError, OSError) as error:
                if isinstance(error, PlaceError):
                    raise TargetError(error.message, hint=error.next_step) from error
                cause = error if isinstance(error, OSError) else error.__cause__
                where = self._target.where(job.result)
                if isinstance(cause, OSError) and _concerns_one_name(cause, job.result):
                    reason = LabelMapError(
                        f"its result cannot be written: {cause.strerror}: {where}",
                        hint="give the label map another name, or choose another folder",
                    )
                    self._tell(failed(job, reason))
                    continue
                raise TargetError(
                    f"the result {where} cannot be written: {error.__cause__ or error}",
                    hint="free some space or choose another folder; the same command continues where this one stopped",
                ) from error
            self._tell(
                Outcome(
                    job.id,
                    job.label,
                    job.result,
                    sha256=kept.sha256,
                    was_resized=writing.was_resized,
                    seconds=writing.seconds,
                    content=kept.content,
                )
            )


def _concerns_one_name(error: OSError, name: str) -> bool:
    # EEXIST: a file of the user has the name of a folder that the result needs.
    return error.errno in _OF_ONE_NAME or (error.errno == errno.EEXIST and "/" in name)


def _put(target: Target, name: str, pixels: NDArray[np.uint8]) -> Kept:
    return target.put(name, encode_png(pixels) if name.lower().endswith(".png") else jpeg_bytes(pixels))
