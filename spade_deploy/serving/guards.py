"""What stands before the endpoints: the token, the host's name, the page's origin, request ids and the log."""

from __future__ import annotations

import hmac
import json
import logging
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.serving.problems import HttpError, response_to

_LOG = logging.getLogger("spade_deploy.serving.access")

HEALTH_PATHS = ("/healthz", "/readyz")
PAGE_PATHS = ("/", "/page/")
"""The paint page and the folder of its files."""
TOKEN_PROTOCOL = "spade.token."
"""A page cannot send headers with a WebSocket: it names this subprotocol, with the token behind it."""
_MOST_TOKEN_BYTES = 4096


def is_open(path: str) -> bool:
    """Whether it is told without a token: the state, and the page, which asks for the token itself."""
    return path in HEALTH_PATHS or path == PAGE_PATHS[0] or path.startswith(PAGE_PATHS[1])


def read_token(path: Path) -> str:
    """The first line of a file. Raises ConfigError where there is none, or a short one."""
    make = f'python -c "import secrets; print(secrets.token_urlsafe(32))" > {path}'
    try:
        lines = read_regular(path, _MOST_TOKEN_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`token_file`: {path} cannot be read: {reason_of(error)}", hint=make) from error
    token = lines[0].strip() if lines else ""
    if len(token) < 16 or not token.isascii() or " " in token:
        raise ConfigError(
            f"`token_file`: the first line of {path} is no token of at least 16 letters and digits",
            hint=make,
        )
    return token


@dataclass(frozen=True)
class Guards:
    """Who may use the server."""

    token: str = ""
    """What requests must bring; empty if nothing."""
    hosts: Collection[str] = ()
    """The names under which it answers; empty for any. It keeps pages of other names from using a local server."""
    origins: Collection[str] = ()
    """The origins of other pages that may use it."""

    def refusal(self, scope: Scope) -> HttpError | None:
        """Why a request is refused; None if it may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and _name_of(host) not in self.hosts:
            return HttpError(421, f"the server is not called {host[:100]!r}", hint="use the address that it printed")
        origin = headers.get("origin")
        if origin and "*" not in self.origins and origin not in self.origins and urlsplit(origin).netloc != host:
            return HttpError(
                403, f"pages of {origin[:100]} may not use it", hint="`spade serve --cors ORIGIN` allows it"
            )
        if self.token and not is_open(scope["path"]) and not self._has_token(scope, headers):
            return HttpError(401, "the request has no valid token", hint="send it as Authorization: Bearer TOKEN")
        return None

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            sent = ""
        if scope["type"] == "websocket" and not sent:
            named = [name for name in scope.get("subprotocols", ()) if name.startswith(TOKEN_PROTOCOL)]
            sent = named[0].removeprefix(TOKEN_PROTOCOL) if named else ""
        return hmac.compare_digest(sent.strip().encode("utf-8", "replace"), self.token.encode())


class GuardMiddleware:
    """Refuses what the guards refuse, and gives each request an id that its answer and the log name."""

    def __init__(self, app: ASGIApp, guards: Guards, *, json_logs: bool = False) -> None:
        self._app, self._guards, self._json = app, guards, json_logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        refusal = self._guards.refusal(scope)
        if scope["type"] == "websocket":
            if refusal is not None:
                await receive()  # websocket.connect
                await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
                return
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            if refusal is not None:
                await response_to(refusal, request_id)(scope, receive, told)
            else:
                await self._app(scope, receive, told)
        finally:
            self._log(scope, status, time.perf_counter() - start, request_id)

    def _log(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        if self._json:
            facts = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            _LOG.info("%s", json.dumps(facts))
        elif not is_open(scope["path"]) or status >= 400:
            _LOG.info("%s %s %d %.1f ms", scope["method"], scope["path"][:200], status, seconds * 1000)


def _name_of(host: str) -> str:
    """A header Host without the port: '[::1]:8000' -> '[::1]'."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
