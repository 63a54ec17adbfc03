"""A Ray cluster of small nodes on this machine: commands are run against it, and its processes can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # on a busy machine
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "spade_deploy.serving.ray_proxy:middlewares",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    "PYTHONWARNINGS": "ignore",
}
STORE_BYTES = 80 << 20


class SmallCluster:
    """A head and other nodes, of one CPU each."""

    def __init__(self, nodes: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            from ray.cluster_utils import Cluster
        # Sockets may have names of 107 bytes, which pytest's folders would fill.
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        self._cluster: Any = Cluster()
        self._add(include_dashboard=False)
        self.nodes = [self._add() for _ in range(nodes - 1)]
        self.address = str(self._cluster.address)

    def _add(self, **facts: Any) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, temp_dir=str(self.folder), **facts)

    def add(self, **environment: str) -> Any:
        """One more node, whose processes have these environment variables, too."""
        self.nodes.append(self._add(env_vars=environment))
        return self.nodes[-1]

    def kill(self, node: Any) -> None:
        """End a node at once, as when its machine loses its power."""
        children = psutil.Process(_raylet_of(node)).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.nodes.remove(node)

    def workers(self, title: str, node: Any = None) -> list[psutil.Process]:
        """The processes whose title has this text, such as ray::ServeReplica."""
        found = []
        for one in [node] if node is not None else [*self.nodes, self._cluster.head_node]:
            for child in psutil.Process(_raylet_of(one)).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if title in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def close(self) -> None:
        left = psutil.Process().children(recursive=True)
        self._cluster.shutdown()
        _, alive = psutil.wait_procs(left, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _raylet_of(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


@contextlib.contextmanager
def small_cluster(nodes: int) -> Iterator[SmallCluster]:
    """A cluster for a block, whose processes are all gone after it."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    made = None
    try:
        made = SmallCluster(nodes)
        yield made
    finally:
        if made is not None:
            made.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def environment(**more: str) -> Mapping[str, str]:
    """The environment of a command that uses the cluster."""
    return {**os.environ, **QUIET, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160", **more}


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What a function returns, once that is true; fails after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


PROGRAMS = Path(sys.executable).parent
"""Where `spade` and `serve` are."""
