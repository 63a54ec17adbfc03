"""What stands before the endpoints: the token, the host's name, the page's origin, request ids and the log."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.serving.logs import log_request
from spade_deploy.serving.problems import HttpError, response_to

_LOG = logging.getLogger("spade_deploy.serving.access")

HEALTH_PATHS = ("/healthz", "/readyz")
PAGE_PATHS = ("/", "/page/")
"""The paint page and the folder of its files."""
TOKEN_PROTOCOL = "spade.token."
"""A page cannot send headers with a WebSocket: it names this subprotocol, with the token behind it."""
REFUSED = 1008
"""The code with which a WebSocket is closed that may not be opened: a violated policy."""
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
            f"`token_file`: the first line of {path} is not a token of at least 16 letters and digits",
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
        """Why a request from this host or page is refused; None if it may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and _name_of(host) not in self.hosts:
            return HttpError(
                421,
                f"this server does not answer to the name {host[:100]!r}",
                hint="use the address that `spade serve` printed",
            )
        origin = headers.get("origin")
        if origin and "*" not in self.origins and origin not in self.origins and _netloc_of(origin) != host:
            return HttpError(
                403, f"pages of {origin[:100]} may not use this server", hint="`spade serve --cors ORIGIN` allows it"
            )
        return None

    def without_token(self, scope: Scope) -> HttpError | None:
        """Why a request without the right token is refused; None if it has it, or needs none."""
        if not self.token or is_open(scope["path"]) or self._has_token(scope, Headers(scope=scope)):
            return None
        return HttpError(401, "the request has no valid token", hint="send it as Authorization: Bearer TOKEN")

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            sent = ""
        if scope["type"] == "websocket" and not sent:
            named = [name for name in scope.get("subprotocols", ()) if name.startswith(TOKEN_PROTOCOL)]
            sent = named[0].removeprefix(TOKEN_PROTOCOL) if named else ""
        return hmac.compare_digest(sent.strip().encode("utf-8", "replace"), self.token.encode())


class GuardMiddleware:
    """Refuses other hosts and pages, and gives each request an id that its answer and the log name."""

    def __init__(self, app: ASGIApp, guards: Guards, answered: Callable[[Scope, int], None]) -> None:
        """answered: is told of each request and its status, whatever came of it."""
        self._app, self._guards, self._answered = app, guards, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        start, status, has_begun = time.perf_counter(), 500 if scope["type"] == "http" else 101, False

        async def told(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            elif message["type"] == "websocket.close" and message["code"] == REFUSED:
                status = 403
            await send(message)

        try:
            refusal = self._guards.refusal(scope)
            if refusal is None:
                await self._app(scope, receive, told)
            else:
                await refuse(refusal, scope, receive, told)
        except Exception as error:
            _LOG.error("request %s failed", request_id, exc_info=error, extra={"request_id": request_id})
            if has_begun or scope["type"] == "websocket":
                raise  # the server breaks the connection off
            problem = HttpError(500, "unexpected error; find it in the server's log by the request id")
            await response_to(problem, request_id)(scope, receive, told)
        finally:
            self._answered(scope, status)
            if status >= 400 or not is_open(scope["path"]):
                log_request(_LOG, request_id, scope, status, time.perf_counter() - start)


class TokenMiddleware:
    """Refuses requests without the token. It stands behind CORS, so that a page may read why it was refused."""

    def __init__(self, app: ASGIApp, guards: Guards) -> None:
        self._app, self._guards = app, guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._guards.without_token(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refuse(refusal, scope, receive, send)


class HeadMiddleware:
    """Answers HEAD as GET, as load balancers and monitors ask for it; the server sends the headers alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


async def refuse(refusal: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or close a WebSocket, with a refusal."""
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": REFUSED, "reason": refusal.message[:120]})
    else:
        await response_to(refusal, scope["state"]["request_id"])(scope, receive, send)


def _netloc_of(origin: str) -> str:
    """Host and port of an origin; empty where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # http://[
        return ""


def _name_of(host: str) -> str:
    """A header Host without the port: '[::1]:8000' -> '[::1]'."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
