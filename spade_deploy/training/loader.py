"""Processes that load batches ahead of the training process, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from spade_deploy.machine.cores import usable_cores


def loaded(fetcher: Dataset[Any], keys: Iterator[list[Any]], *, seed: int, workers: int) -> Iterator[Any]:
    """The results of `fetcher.__getitems__` for each list of keys, in their order.

    workers: processes that load ahead, at most one a core; 0 loads in this process.
    """
    workers = min(workers, usable_cores())  # more would only wait for each other
    if workers == 0:
        return map(fetcher.__getitems__, keys)  # type: ignore[attr-defined]
    loader: DataLoader[Any] = DataLoader(
        fetcher,
        batch_sampler=_Keys(keys),
        num_workers=workers,
        collate_fn=_unchanged,
        multiprocessing_context=worker_context(),
        worker_init_fn=_begin_worker,
        # Its own generator: the default would draw from the global one, and a resumed run would then differ.
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(loader)


@dataclass(frozen=True)
class _Keys:
    keys: Iterator[list[Any]]

    def __iter__(self) -> Iterator[list[Any]]:
        return self.keys


def worker_context() -> BaseContext:
    """The way in which workers start: from a fork server if the system has one, else spawned.

    They are never forked from the training process. That has threads (torch's, CUDA's, a progress bar's), and a fork
    would copy their locks in any state. Python 3.12 warns of it, and 3.14 made the fork server its default.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The server and the workers that it forks inherit
    # the signals that are blocked here, so they never get them, not even while they still import; see _begin_worker.
    with _safe_path():
        resource_tracker.ensure_running()  # first: it unblocks signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


@contextmanager
def _safe_path() -> Iterator[None]:
    """Python processes that are started in the block do not import from the current folder (as with -P)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _begin_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group, and so does the end that torchrun or a scheduler asks for with SIGTERM;
    # the training process alone decides to save and stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """End this worker when the training process is killed: otherwise workers and fork server wait for each other."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _unchanged(batch: Any) -> Any:
    return batch
