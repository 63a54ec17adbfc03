"""Errors as clients get them: a status, and a body of application/problem+json that says what to do (RFC 9457)."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from spade_deploy.errors import (
    ConfigError,
    ImageTooLargeError,
    InputRefusedError,
    LabelMapError,
    RuntimeUnavailableError,
    SpadeError,
)
from spade_deploy.serving.drawings import OtherMapError
from spade_deploy.serving.runner import DeadlineError, QueueFullError, StoppedError

MEDIA_TYPE = "application/problem+json"

TITLES = {
    400: "The request cannot be read",
    401: "A token is needed",
    403: "This page may not use the server",
    404: "There is nothing of that name",
    405: "The path takes another method",
    408: "The request came too slowly",
    409: "The edit builds on another map",
    413: "The request is too large",
    415: "The server reads other content",
    421: "The server has another name",
    422: "The request contradicts the model",
    429: "Too many requests wait",
    431: "The headers are too large",
    500: "The server failed",
    503: "The server cannot do it now",
}
"""One line for each status."""


class HttpError(SpadeError):
    """An error that has a status of its own."""

    def __init__(self, status: int, message: str, *, hint: str | None = None, retry_s: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_s = retry_s


def status_of(error: SpadeError) -> int:
    """The status that stands for an error."""
    if isinstance(error, HttpError):
        return error.status
    for kinds, status in (
        ((ImageTooLargeError,), 413),
        ((OtherMapError,), 409),
        ((QueueFullError,), 429),
        ((DeadlineError, StoppedError, RuntimeUnavailableError), 503),
        ((LabelMapError, ConfigError, InputRefusedError), 422),
    ):
        if isinstance(error, kinds):
            return status
    return 500


_FIELDS = {"`style_image`": "`style_photo`"}
"""Settings of the commands whose field in a request has another name."""


def body_of(error: SpadeError, request_id: str = "") -> dict[str, Any]:
    """The members of the problem's JSON."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(status, "The request failed"),
        "status": status,
        "detail": _in_fields(error.message),
    }
    if error.hint:
        body["hint"] = _in_fields(error.hint)
    return {**body, "request_id": request_id} if request_id else body


def _in_fields(text: str) -> str:
    for setting, field in _FIELDS.items():
        text = text.replace(setting, field)
    return text


def response_to(error: SpadeError, request_id: str = "", retry_s: int | None = None) -> JSONResponse:
    """The response that tells of an error. retry_s: seconds until it is worth to send it again."""
    body = body_of(error, request_id)
    headers = {}
    if isinstance(error, HttpError) and error.retry_s is not None:
        retry_s = error.retry_s
    if body["status"] in (429, 503):
        headers["Retry-After"] = str(max(1, retry_s or 1))
    if body["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, body["status"], headers, media_type=MEDIA_TYPE)
