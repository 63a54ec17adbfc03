"""What runs on the nodes for `spade infer --ray`: workers that make images, and the gate that lets them begin."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spade_deploy.artifact import MANIFEST
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    NotFoundError,
    RuntimeUnavailableError,
    SpadeError,
    reason_of,
    system_error,
)
from spade_deploy.files.reading import sha256_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.maker import Maker
from spade_deploy.inference.work import JobRunner, Work


@dataclass(frozen=True)
class Shared:
    """What all workers are given."""

    work: Work
    """What they make images with."""
    sha256: str
    """The SHA-256 of the artifact's manifest, which holds those of all its files."""
    seen: tuple[Path, ...]
    """Paths that every node must see: a file in the folder of the images, and a label map."""
    files: Mapping[str, Any] | None
    """The artifact's files by their names, in Ray's object store, for nodes without it; None where all have it."""


@dataclass(frozen=True)
class Stop:
    """An error that ends the run, as a worker hands it over."""

    kind: type[SpadeError]
    """Its class."""
    message: str
    """What happened, and on which node."""
    hint: str | None
    """What to do."""

    def error(self) -> SpadeError:
        """The error again."""
        return self.kind(self.message, hint=self.hint)


class Gate:
    """Where workers wait, with the model loaded, until the process that plans lets them begin. A Ray actor."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Maker, str]] = []
        self._opened: dict[int, asyncio.Event] = {}
        self._count = 0
        self._begun: dict[str, tuple[str, list[str]]] = {}

    async def enter(self, maker: Maker, name: str) -> None:
        """Wait until `let_in` is called for this worker."""
        self._count += 1
        opened = self._opened[self._count] = asyncio.Event()
        self._waiting.append((self._count, maker, name))
        await opened.wait()

    async def waiting(self) -> list[tuple[int, Maker, str]]:
        """Who came since the last call: a number, what makes the images there, and the engine's name."""
        found, self._waiting = self._waiting, []
        return found

    async def let_in(self, number: int) -> None:
        """Let a worker begin."""
        self._opened.pop(number).set()

    async def begun(self, worker: str, node: str, ids: list[str]) -> None:
        """A worker on a node has begun these jobs, so it is done with those before."""
        self._begun[worker] = (node, ids)

    async def begun_on(self, node: str) -> list[str]:
        """The jobs that the workers of a node have begun last."""
        return [one for where, ids in self._begun.values() if where == node for one in ids]


class Worker:
    """Makes images in a process of the cluster: it loads the artifact once, and does jobs as long as any come.

    An error that stops the run is an answer, too: Ray would wrap an exception, or try again.
    """

    def __init__(self, shared: Shared, gate: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        self._gate, self._id, self._node = gate, context.get_actor_id(), context.get_node_id()
        self._stop: Stop | None = None
        self._runner: JobRunner | None = None
        self._answer(lambda: self._open(shared))

    def __call__(self, batch: Any) -> Any:
        """Do the jobs of a table with the column `job`; the answer has one row for each, in the column `outcome`."""
        import pyarrow

        jobs: list[Job] = [pickle.loads(one) for one in batch["job"].to_pylist()]
        outcomes: list[Outcome | Stop] = []
        if self._runner is not None:
            runner = self._runner
            self._gate.begun.remote(self._id, self._node, [job.id for job in jobs])
            self._answer(lambda: runner.run(jobs, outcomes.append))
        if self._stop is not None:
            outcomes.append(self._stop)
        return pyarrow.table({"outcome": pyarrow.array([pickle.dumps(one) for one in outcomes], pyarrow.binary())})

    def _answer(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (SpadeError, OSError, ImportError) as error:
            told = (system_error(error) if isinstance(error, OSError) else None) or error
            kind = type(told) if isinstance(told, SpadeError) else RuntimeUnavailableError
            message = told.message if isinstance(told, SpadeError) else reason_of(told)
            self._stop = Stop(kind, f"on the node {socket.gethostname()}: {message}", getattr(told, "hint", None))

    def _open(self, shared: Shared) -> None:
        import ray

        for path in shared.seen:
            if not path.exists():
                raise ConfigError(
                    f"{path} does not exist",
                    hint="label maps and images lie where all nodes see them at the same place",
                )
        work = shared.work
        if shared.files is not None and not (work.artifact / MANIFEST).is_file():
            # It is removed when this process ends.
            folder = self._scratch = scratch_folder("ray")
            place = folder.__enter__()
            for name, content in shared.files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(ray.get(content))
            work = replace(work, artifact=place)
        if not (work.artifact / MANIFEST).is_file():
            raise NotFoundError(
                f"the artifact {work.artifact} is not there", hint="copy it to every node, or begin the run again"
            )
        found = sha256_of(work.artifact / MANIFEST)
        if found != shared.sha256:
            raise ArtifactError(
                f"{work.artifact} is another artifact than the one that this run began with: the SHA-256 of its"
                f" manifest is {found[:12]}, not {shared.sha256[:12]}",
                hint="copy the same artifact to every node, or name one on a shared file system",
            )
        runner = JobRunner(work)
        ray.get(self._gate.enter.remote(runner.maker, runner.name))
        self._runner = runner
