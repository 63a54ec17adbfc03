"""A connection to a Ray cluster, and what its nodes have installed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.cluster.request import ANY
from spade_deploy.errors import ConfigError, RuntimeUnavailableError, reason_of
from spade_deploy.progress import SILENT, Progress
from spade_deploy.version import __version__

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    id: str
    """Ray's name for it."""
    host: str
    """Its address."""
    cpus: float
    """The CPUs that Ray may give away there."""
    gpus: float
    """The GPUs that Ray may give away there."""


@contextmanager
def connected(address: str, progress: Progress = SILENT, *, shows_workers: bool = False) -> Iterator[list[Node]]:
    """A block with a connection to the cluster of that address (ANY, HOST:PORT, ray://...); yields its nodes.

    What Ray prints inside the block goes to stderr. shows_workers: whether what workers print is printed there, too.
    Raises RuntimeUnavailableError where no cluster answers, ModuleNotFoundError where Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a command sends nothing to anybody unless it is told to
    import ray

    settings: dict[str, Any] = {"log_to_driver": shows_workers, "logging_level": logging.WARNING}
    if address == ANY and not os.environ.get("RAY_ADDRESS"):
        settings["include_dashboard"] = False
    progress.step("connecting to Ray")
    # Ray's threads print to sys.stdout what they hear of lost nodes; that is for a document in JSON alone.
    with redirect_stdout(sys.stderr):
        try:
            context = ray.init(None if address == ANY else address, **settings)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise RuntimeUnavailableError(
                f"`ray`: no Ray cluster answers at {address}: {reason_of(error)}",
                hint="start Ray on the first machine, as docs/ray.md tells: it prints its address",
            ) from error
        try:
            nodes = [
                Node(one["NodeID"], one["NodeManagerAddress"], found.get("CPU", 0.0), found.get("GPU", 0.0))
                for one in ray.nodes()
                if one["Alive"]
                for found in [one["Resources"]]
            ]
            _LOG.info("connected to Ray at %s with %d nodes", context.address_info.get("address", address), len(nodes))
            yield nodes
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class Found:
    """What one node has."""

    node: Node
    """The node."""
    version: str | None
    """The version of spade-deploy there; None where it is not installed."""
    has_file: bool
    """Whether the file that was asked for is there."""
    sha256: str | None
    """The SHA-256 of that file."""


def look_at(nodes: list[Node], file: Path | None = None) -> list[Found]:
    """Ask every node that has CPUs or GPUs for the version of spade-deploy and for a file.

    Raises ConfigError where a node lacks spade-deploy or has another version of it. A node that goes meanwhile is left
    out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(path: str) -> tuple[str | None, str | None]:
        # This runs on nodes that may lack spade-deploy: it needs nothing but Python.
        import hashlib
        import pathlib

        try:
            from spade_deploy.version import __version__ as found
        except ImportError:
            found = None  # type: ignore[assignment]
        try:
            return found, hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if path else None
        except OSError:
            return found, None

    remote = ray.remote(num_cpus=0, max_retries=0)(ask)
    asked = [
        (
            node,
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                str(file or "")
            ),
        )
        for node in nodes
        if node.cpus or node.gpus
    ]
    found = []
    for node, answer in asked:
        try:
            version, sha256 = ray.get(answer)
        except ray.exceptions.RayError as error:
            _LOG.warning("the node %s does not answer: %s", node.host, reason_of(error))
            continue
        found.append(Found(node, version, sha256 is not None, sha256))
    if not found:
        raise RuntimeUnavailableError("no node of the cluster has a CPU or a GPU", hint="`ray start` adds one")
    _require_installed(found)
    return found


def _require_installed(found: list[Found]) -> None:
    without = [one.node.host for one in found if one.version is None]
    if without:
        raise ConfigError(
            f"{_counted(without)} of the cluster without spade-deploy: {', '.join(without[:5])}",
            hint="pip install 'spade-deploy[cpu,ray]' there (gpu or trt in place of cpu on GPUs; train to train)",
        )
    others = [f"{one.version} on {one.node.host}" for one in found if one.version != __version__]
    if others:
        raise ConfigError(
            f"{_counted(others)} with another spade-deploy than {__version__} here: {', '.join(others[:5])}",
            hint=f"pip install spade-deploy=={__version__} there",
        )


def _counted(nodes: list[str]) -> str:
    return "there is 1 node" if len(nodes) == 1 else f"there are {len(nodes)} nodes"
