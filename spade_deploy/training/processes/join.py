"""How a process that torchrun started finds its peers, and how it leaves them.

torchrun gives each process its place in environment variables. Tensors on GPUs are averaged by nccl, tensors on a CPU
by gloo. Both are set up, whichever device trains, so that messages between the processes (signals, errors) never wait
for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from spade_deploy.errors import ConfigError, SpadeError, TrainingError, reason_of
from spade_deploy.training.processes import peers
from spade_deploy.training.processes.launcher import watched_launcher
from spade_deploy.training.processes.timeout import timeout_s
from spade_deploy.training.processes.world import ALONE, World


@contextmanager
def join_world() -> Iterator[World]:
    """A block in which this process trains with its peers, which torchrun started; without torchrun it is alone.

    Processes other than 0 print nothing to stdout. An error that all processes know ends them with its exit code and
    without a message. Raises ConfigError if the environment makes no sense, TrainingError if a peer does not arrive
    in time.
    """
    with watched_launcher(os.environ) as launcher:
        place = place_in_world(os.environ)
        place = place if launcher is None else replace(place, launcher=launcher)
        if place.size == 1:
            yield place
            return
        with _joined(place) as world:
            yield world


def place_in_world(environment: Mapping[str, str]) -> World:
    """The place that torchrun gives in RANK, WORLD_SIZE and LOCAL_RANK; without them the process is alone.

    Raises ConfigError.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    size = _number(environment, "WORLD_SIZE", 1, 1 << 20)
    if size == 1:
        return ALONE
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size} says that there are {size} processes, but {missing[0]} does not say where they meet",
            hint="start them with `torchrun --nproc-per-node N -m spade_deploy train ...`, or unset WORLD_SIZE",
        )
    rank = _number(environment, "RANK", 0, size - 1)
    return World(rank, size, _number(environment, "LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in environment else rank)


@contextmanager
def _joined(place: World) -> Iterator[World]:
    """Meet the peers, and leave them at the end of the block; if this process fails, tell them the reason."""
    world, watch = _met(place)
    failure = "it was stopped"
    try:
        with ExitStack() as stack:
            if not world.is_main:
                stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield world
        failure = ""
    except SpadeError as error:
        failure = "" if watch.all_are_stopping else error.message
        if world.is_main:
            raise
        if watch.all_are_stopping:
            raise SystemExit(error.exit_code) from error
        error.message = f"process {world.rank} of {world.size}: {error.message}"
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        watch.close(failure)
        if not failure:  # a group that lost a process may wait for it forever
            distributed.destroy_process_group()


def _met(place: World) -> tuple[World, peers.PeerWatch]:
    """Wait until all processes have met. Returns the world, and this process's watch over its peers."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    seconds = timeout_s()
    if not distributed.is_available():
        raise ConfigError(
            f"WORLD_SIZE={place.size}: this PyTorch {torch.__version__} has no torch.distributed",
            hint="install a build that has it, or start one process, without torchrun",
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        distributed.init_process_group(
            backend, timeout=timedelta(seconds=seconds), rank=place.rank, world_size=place.size
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"process {place.rank} of {place.size} cannot connect to the others at {host}:{port}"
            f" within {seconds:.0f} s ({reason_of(error)})",
            hint="start all of them with torchrun; every host must reach that port",
        ) from error
    peers.remember_peers()
    watch = peers.connect(place.rank, place.size, host, seconds, place.from_main)
    return replace(place, peers=watch), watch


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ConfigError(
            f"{name}={text!r} in the environment is not in {low}..{high}",
            hint="start the processes with torchrun, which sets it, or unset RANK and WORLD_SIZE",
        )
    return int(text)
