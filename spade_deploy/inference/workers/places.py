"""Where workers run: on a share of the cores each, or on a GPU each."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

from spade_deploy.artifact import Artifact
from spade_deploy.engines import open as engines
from spade_deploy.engines.base import RuntimeRequest, parse_graph_choice
from spade_deploy.engines.cuda.driver import find_gpus
from spade_deploy.errors import SpadeError
from spade_deploy.inference.request import InferRequest
from spade_deploy.machine.cores import at_most_cores, core_shares
from spade_deploy.spec import Backend, Precision
from spade_deploy.tuning.wish import parse_precision

_LOG = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """Where one worker runs."""

    cores: tuple[int, ...]
    """The cores that it keeps to; empty where the system has no such order, or for a GPU."""

    share: int | None = None
    """How many threads these are; None for a GPU, whose engine needs none."""

    environment: dict[str, str] = field(default_factory=dict)
    """What its environment has beside ours."""

    def threads(self, asked: int | None) -> int | None:
        """How many threads the engine gets. asked: what the user wants."""
        return self.share if asked is None else asked


def places_for(artifact: Artifact, request: InferRequest, workers: int) -> list[Place]:
    """The places of at most `workers` workers: one a card where GPUs run the model, else a share of the cores each.

    More workers than cards or cores would only wait; a warning says so. Raises RuntimeUnavailableError for a GPU that
    is asked for by name and cannot be used.
    """
    if not _runs_on_gpu(artifact, request):
        shares = core_shares(at_most_cores(workers, "workers"))
        is_pinned = hasattr(os, "sched_setaffinity")
        return [Place(share if is_pinned else (), len(share)) for share in shares]
    found = find_gpus()
    names = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    cards = (names or [str(gpu.index) for gpu in found])[: len(found)]
    if workers > len(cards):
        _LOG.warning("`workers` %d: only %d GPUs are here, so %d are taken", workers, len(cards), len(cards))
    return [Place((), None, {_VISIBLE: card}) for card in cards[:workers]]


def _runs_on_gpu(artifact: Artifact, request: InferRequest) -> bool:
    name = str(request.backend)
    precision, _ = parse_precision(request.precision, request.min_psnr_db)
    if name != Backend.AUTO:
        return any(engine.backend == name and not engine.on_cpu for engine in engines.ENGINES)
    if precision is Precision.BF16:
        return False
    try:
        if not find_gpus():
            return False
    except SpadeError:
        return False
    wanted = RuntimeRequest(artifact, name, precision, None, parse_graph_choice(str(request.graph)))
    return any(
        engine.load().can_run(RuntimeRequest(artifact, engine.backend, precision, None, wanted.graph))
        for engine in engines.on_gpu()
    )
