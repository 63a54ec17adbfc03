"""What the endpoints of one app share, and what its description says of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spade_deploy.serving.drawings import Drawings
from spade_deploy.serving.figures import Figures
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.problems import MEDIA_TYPE, TITLES, HttpError
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import Runner


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
    drawings: Drawings = field(default_factory=Drawings)
    """The maps that edits build on."""
    is_ready: bool = True
    """Whether new requests should come here."""

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
