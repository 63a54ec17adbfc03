"""`spade infer --ray`: Ray Data hands the label maps to a pool of workers, each of which loads the artifact once.

The process that plans is that of `inference.infer`: it skips what is there, and owns the record and the report. Ray
Data streams jobs to the workers and their outcomes back, keeps few of them in memory, adds workers up to the limit, and
gives the jobs of a lost worker or node to others. A worker that was lost may have written images of which nothing was
heard: these are written again, whole and with the same pixels, and counted once.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from spade_deploy.artifact import MANIFEST
from spade_deploy.cluster.nodes import Node, connected, look_at
from spade_deploy.cluster.request import ANY, GROUP, RayRequest
from spade_deploy.cluster.worker import Gate, Shared, Stop, Worker
from spade_deploy.errors import ConfigError, RuntimeUnavailableError, reason_of
from spade_deploy.files.reading import sha256_of
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.work import Crew, Desk, Work
from spade_deploy.settings import setting

MOST_JOBS = 64
"""Label maps that a worker is given at a time; enough that decoding, running and encoding overlap."""
MOST_RETRIES = 4
"""How often label maps are given to another worker when one is lost with them; then they may be the reason."""
POLL_S = 0.1
NODES_S = 1.0
"""Seconds between two looks at which nodes are left."""


@dataclass(frozen=True, kw_only=True)
class RayInference(RayRequest):
    """Whether Ray makes the images, with how many workers, and what each of them takes of the cluster."""

    gpus_per_worker: float | None = setting(
        None, help="GPUs of each worker, such as 0.5; default: 1 where the cluster has GPUs.", least=0, group=GROUP
    )
    cpus_per_worker: float = setting(
        1.0, help="CPUs of each worker; also its threads, unless `threads` is given.", least=0, group=GROUP
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cpus_per_worker and not self.gpus_per_worker:
            raise ConfigError("`cpus_per_worker`: a worker takes a CPU or a part of a GPU", hint="such as 1 or 0.5")


class RayCrew(Crew):
    """A Ray cluster makes the images."""

    def __init__(self, asked: RayInference) -> None:
        self._asked = asked

    def make(self, work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        """See `Crew.make`.

        Raises RuntimeUnavailableError where no cluster answers or it has no room, ConfigError where a node lacks
        spade-deploy or does not see the folders, ArtifactError where it has another artifact.
        """
        with connected(self._asked.ray or ANY, desk.progress) as nodes, _token(work) as token:
            found = look_at(nodes, work.artifact / MANIFEST)
            gpus, most = self._room([one.node for one in found])
            shared = Shared(
                _everywhere(work, self._asked.cpus_per_worker),
                sha256_of(work.artifact / MANIFEST),
                tuple(place for place in (token, _first_path(jobs)) if place is not None),
                _stored(work.artifact) if any(not one.has_file for one in found) else None,
            )
            desk.progress.note(f"up to {most} workers on a Ray cluster of {len(nodes)} nodes")
            self._until_all_are_done(shared, jobs, desk, gpus=gpus, most=most)

    def _room(self, nodes: list[Node]) -> tuple[float, int]:
        """The GPUs of each worker, and how many workers the nodes have room for now, at most `ray_workers`."""
        asked = self._asked
        has_gpus = any(node.gpus for node in nodes)
        gpus = float(has_gpus) if asked.gpus_per_worker is None else asked.gpus_per_worker
        room = 0
        for node in nodes:
            parts = [int(node.cpus / asked.cpus_per_worker)] if asked.cpus_per_worker else []
            if gpus >= 1:
                parts.append(int(node.gpus / gpus))
            elif gpus:
                parts.append(int(node.gpus) * int(1 / gpus))  # a worker has its part of one GPU
            room += min(parts)
        if not room:
            raise RuntimeUnavailableError(
                f"`ray`: no node has room for a worker with {asked.cpus_per_worker:g} CPUs and {gpus:g} GPUs",
                hint="give `cpus_per_worker` and `gpus_per_worker`, or add nodes with `ray start`",
            )
        return gpus, room if asked.ray_workers is None else asked.ray_workers

    def _until_all_are_done(self, shared: Shared, jobs: Sequence[Job], desk: Desk, *, gpus: float, most: int) -> None:
        """Stream the jobs, and those that are left again where Ray gives up because it lost a worker."""
        import ray

        left, failures = {job.id: job for job in jobs}, 0
        while left:
            before = len(left)
            try:
                self._stream(shared, left, desk, gpus=gpus, most=most)
            except ray.exceptions.RayError as error:
                failures = 1 if len(left) < before else failures + 1
                if failures > MOST_RETRIES:
                    raise RuntimeUnavailableError(
                        f"`ray`: the cluster gave up {failures} times with {len(left)} label maps left, such as"
                        f" {min(left)}: {reason_of(error)}",
                        hint="the same command continues where this one stopped",
                    ) from error
                desk.lost("a worker or its node is gone", len(left))
                time.sleep(NODES_S)  # until the cluster knows, too
            else:
                if left:
                    raise RuntimeUnavailableError(
                        f"`ray`: nothing was heard of {len(left)} label maps, such as {min(left)}",
                        hint="the same command continues where this one stopped",
                    )

    def _stream(self, shared: Shared, jobs: dict[str, Job], desk: Desk, *, gpus: float, most: int) -> None:
        """Let Ray Data do jobs. Those that are done are taken out of `jobs`. Raises RayError."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        gate = ray.remote(num_cpus=0, scheduling_strategy=here)(Gate).remote()
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours shows what is done
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it tells of lost workers, we tell
        blocks = -(-len(jobs) // max(shared.work.batch_size, min(MOST_JOBS, -(-len(jobs) // (4 * most)))))
        most = min(most, blocks)
        rows = [{"job": pickle.dumps(_absolute(job))} for job in jobs.values()]
        data = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            Worker,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=2
            ),
            fn_constructor_args=(shared, gate),
            num_cpus=self._asked.cpus_per_worker,
            num_gpus=gpus,
            max_task_retries=MOST_RETRIES,
        )
        reader = _Reader(data)
        try:
            _listen(reader, gate, desk, jobs)
        finally:
            reader.over.set()


class _Reader:
    """A thread that waits for Ray Data. `next` never waits for long, so that workers at the gate are answered."""

    def __init__(self, data: Any) -> None:
        self.over = threading.Event()
        self._data = data
        self._came: queue.Queue[list[Outcome | Stop] | BaseException | None] = queue.Queue(maxsize=4)
        threading.Thread(target=self._read, name="ray outcomes", daemon=True).start()

    def next(self) -> list[Outcome | Stop] | None:
        """What came, an empty list if nothing did; None at the end. Raises what Ray raised."""
        try:
            found = self._came.get(timeout=POLL_S)
        except queue.Empty:
            return []
        if isinstance(found, BaseException):
            raise found
        return found

    def _read(self) -> None:
        try:
            for batch in self._data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                self._put([pickle.loads(one) for one in batch["outcome"].to_pylist()])
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, found: list[Outcome | Stop] | BaseException | None) -> None:
        while not self.over.is_set():
            try:
                self._came.put(found, timeout=1)
                return
            except queue.Full:
                continue


def _listen(reader: _Reader, gate: Any, desk: Desk, left: dict[str, Job]) -> None:
    """Let workers begin that have loaded the model, and tell the desk of outcomes, until Ray Data ends.

    left: the jobs by their ids; those that are done are taken out. Raises RayError.
    """
    import ray

    nodes = {one["NodeID"]: one["NodeManagerAddress"] for one in ray.nodes() if one["Alive"]}
    looked = time.monotonic()
    while True:
        for number, maker, name in ray.get(gate.waiting.remote()):
            desk.admit(maker, name)
            ray.get(gate.let_in.remote(number))
        found = reader.next()
        if found is None:
            return
        for outcome in found:
            if isinstance(outcome, Stop):
                raise outcome.error()
            left.pop(outcome.id, None)
            desk.done(outcome)
        if time.monotonic() < looked + NODES_S:
            continue
        looked = time.monotonic()
        for gone in [one["NodeID"] for one in ray.nodes() if not one["Alive"] and one["NodeID"] in nodes]:
            begun = ray.get(gate.begun_on.remote(gone))
            desk.lost(f"the node {nodes.pop(gone)} is gone", sum(one in left for one in begun))


@contextmanager
def _token(work: Work) -> Iterator[Path | None]:
    """A file in the folder of the images by which nodes see that it is theirs, too; None for another place."""
    if not isinstance(work.target, Folder):
        yield None
        return
    with NamedTemporaryFile(prefix=".ray-", dir=work.target.path) as file:
        yield Path(file.name).absolute()


def _first_path(jobs: Sequence[Job]) -> Path | None:
    return next((job.label.absolute() for job in jobs[:1] if isinstance(job.label, Path)), None)


def _everywhere(work: Work, cpus: float) -> Work:
    """The work with paths that do not depend on the current folder, and threads for the CPUs of a worker."""
    target = Folder(work.target.path.absolute()) if isinstance(work.target, Folder) else work.target
    engine = {**work.engine, "threads": work.engine["threads"] or max(1, int(cpus))}
    return replace(work, artifact=work.artifact.absolute(), target=target, engine=engine)


def _absolute(job: Job) -> Job:
    label = job.label.absolute() if isinstance(job.label, Path) else job.label
    instance = job.instance.absolute() if isinstance(job.instance, Path) else job.instance
    return replace(job, label=label, instance=instance)


def _stored(artifact: Path) -> dict[str, Any]:
    """The files of an artifact in Ray's object store."""
    import ray

    files = (path for path in sorted(artifact.rglob("*")) if path.is_file())
    return {path.relative_to(artifact).as_posix(): ray.put(path.read_bytes()) for path in files}
