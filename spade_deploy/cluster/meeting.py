"""Where the training processes of a Ray cluster meet: the variables that torchrun would set, and nothing more.

TorchTrainer's own backend would load PyTorch and open a process group in Ray's workers. Ours is opened by the training
processes themselves (`training/processes/join.py`), which are children of the workers.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig


class _Meeting(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # so process k of a node has GPU k, as under torchrun

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        host, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_place, host, port)


class MeetingConfig(BackendConfig):  # type: ignore[misc]
    """The configuration that Ray Train is given."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Meeting


def _free_address() -> tuple[str, int]:
    with socket.socket() as found:
        found.bind(("", 0))
        return ray.util.get_node_ip_address(), int(found.getsockname()[1])


def _set_place(host: str, port: int) -> None:
    context = ray.train.get_context()
    os.environ.update(
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        RANK=str(context.get_world_rank()),
        WORLD_SIZE=str(context.get_world_size()),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
    )
