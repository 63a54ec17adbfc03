"""What the endpoints of one app share, and what its description says of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import Scope

from spade_deploy.machine.cores import usable_cores
from spade_deploy.serving.drawings import Drawings
from spade_deploy.serving.figures import Figures
from spade_deploy.serving.memory import BODIES, FULL, HINT, Budget, Share
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.problems import MEDIA_TYPE, TITLES, HttpError
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import Runner

Result = TypeVar("Result")


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, min(4, usable_cores())), "spade-pictures")


def budget_of(asked: ServeRequest) -> Budget:
    """The memory that the clients of one process may fill."""
    return Budget(BODIES * asked.max_bytes)


@dataclass
class Serving:
    """What the endpoints share."""

    models: Mapping[str, ServedModel]
    """By name, in the order in which they were named."""
    asked: ServeRequest
    """The limits."""
    runner: Runner
    """The queue."""
    figures: Figures
    """The counters."""
    budget: Budget
    """The memory that clients may fill together."""
    drawings: Drawings = field(default_factory=Drawings)
    """The maps that edits build on."""
    is_ready: bool = True
    """Whether new requests should come here."""
    threads: ThreadPoolExecutor = field(default_factory=_threads)
    """Where images are decoded and encoded: few threads, so that many large maps are not decoded at once."""

    async def in_thread(self, function: Callable[..., Result], *values: Any) -> Result:
        """The result of a function that would keep other requests waiting for too long."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *values)

    def hold(self, scope: Scope, count: int) -> None:
        """Note that a request holds more bytes, until `answered`. Raises HttpError where all together hold too many."""
        share: Share = scope["state"].setdefault("share", self.budget.share())
        if not share.take(count):
            raise HttpError(503, FULL, hint=HINT, retry_s=self.retry_s)

    def answered(self, scope: Scope, status: int) -> None:
        """A request was answered, or its client went."""
        if (share := scope["state"].pop("share", None)) is not None:
            share.close()
        route = scope.get("route")
        self.figures.answered(getattr(route, "path", "other"), status)

    def model(self, name: str | None) -> ServedModel:
        """The model of that name; the first one for None. Raises HttpError."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HttpError(404, f"there is no model {name[:80]!r}", hint=f"there are {', '.join(self.models)}")
        return self.models[name]

    @property
    def retry_s(self) -> int:
        """Seconds until the queue is expected to have room."""
        return max(1, min(60, round(self.runner.waiting * self.runner.image_s / 2)))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of errors with these statuses."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what happened"},
            "hint": {"type": "string", "description": "what to do next"},
            "request_id": {"type": "string", "description": "the id of the request in the log"},
        },
    }
    return {code: {"description": TITLES[code], "content": {MEDIA_TYPE: {"schema": schema}}} for code in statuses}
