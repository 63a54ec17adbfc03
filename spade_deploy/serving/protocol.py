"""HTTP and WebSockets on one connection, with limits for clients that are slow, endless or no HTTP at all.

What it answers by itself, as no request reaches the app, is application/problem+json, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from spade_deploy.serving.guards import HEALTH_PATHS
from spade_deploy.serving.logs import log_request
from spade_deploy.serving.memory import FULL, TRY_LATER, Share
from spade_deploy.serving.problems import MEDIA_TYPE, HttpError, body_of, response_to

_LOG = logging.getLogger(__name__)

HEADERS_S = 10.0
"""Seconds in which the headers of a request must have come."""
MOST_HEADER_BYTES = 1 << 16
"""Bytes of a request's first line and headers; as many may stand behind its body."""
MOST_PIPELINED = 16
"""Requests that a client may send on one connection before it has read the answer to the first."""
_NO_HTTP_HINT = "docs/serving.md has examples; the address begins with http://, since TLS is a matter of a proxy"
CLOSING_S = 1.0
"""Seconds in which a client may read why its WebSocket is closed, while what it sends is dropped."""


class PatientProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol, which also closes connections that send no whole request in time, or no end of one."""

    _overdue: asyncio.TimerHandle | None = None
    _is_broken = False  # what came is no HTTP, and nothing of what follows is read
    _problem: HttpError | None = None  # why a request that can be read is refused all the same
    _bytes_beside_bodies = 0  # since a request, or a part of its body, began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        crowd, most = max(len(self.connections), len(self.tasks)), getattr(self.config, "most_connections", None)
        app = self.config.loaded_app
        self.app = partial(_too_many, app) if most is not None and crowd > most else app
        self._bytes_beside_bodies += len(data)
        super().data_received(data)
        if self._bytes_beside_bodies > MOST_HEADER_BYTES and not self._is_broken:
            self._problem = _headers_too_long()
            self.send_400_response("")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        self._bytes_beside_bodies = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        # What is raised here, the parser makes an error of the request.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEADER_BYTES:
            self._problem = _headers_too_long()
            raise self._problem
        if len(self.pipeline) >= MOST_PIPELINED:
            self._problem = HttpError(400, f"more than {MOST_PIPELINED} requests were sent ahead on one connection")
            raise self._problem
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_beside_bodies = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too long. A whole request before it on the connection gets its own answer."""
        self._is_broken = True
        request_id = uuid.uuid4().hex[:16]
        error = self._problem or HttpError(400, "what was sent is no HTTP/1.1 request", hint=_NO_HTTP_HINT)
        log_request(_LOG, request_id, {"method": "-", "path": "-"}, error.status, 0.0)
        if not self._is_between_requests() and not self.cycle.more_body:
            self.cycle.keep_alive = False  # the connection is closed after its answer
            return
        if self._is_between_requests() or not (self.pipeline or self.cycle.response_started):
            body = json.dumps(body_of(error, request_id)).encode()
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
                f"connection: close\r\nx-request-id: {request_id}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if not self._is_between_requests() or self.transport.get_protocol() is not self:
            self._stop_waiting()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(getattr(self.config, "headers_s", HEADERS_S), self._give_up)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        self._overdue = None
        if self._is_between_requests() and not self.transport.is_closing():
            self.transport.close()


class PatientWebSocket(WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket protocol, where what has come of messages counts in the budget until the app takes them."""

    _partial = 0  # bytes of the message that is not whole yet
    _queued = 0  # bytes of whole messages that the app has not taken
    _is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._share: Share = self.config.budget.share()  # type: ignore[attr-defined]
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return  # what else comes until the client closes is dropped
        if self.handshake_complete:
            if not self._share.take(len(data)):
                self._give_up()
                return
            self._partial += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._share.close()
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        self._queued += sum(map(len, self.frames))
        self._partial = 0
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message: Any = await super().receive()
        self._queued -= len(message.get("bytes") or (message.get("text") or "").encode())
        self._share.give(max(0, self._share.held - self._queued - self._partial))
        return message

    def _give_up(self) -> None:
        self._is_over = True
        self.frames = []
        self._share.close()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": TRY_LATER, "reason": FULL})
        self.conn.send_close(TRY_LATER, FULL)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSING_S, self.transport.close)


def _headers_too_long() -> HttpError:
    return HttpError(
        431, f"first line, headers and trailers have more than {MOST_HEADER_BYTES:,} bytes", hint="send less in headers"
    )


async def _too_many(app: Any, scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] in HEALTH_PATHS:  # a crowd of idle connections is no reason to end the process
        await app(scope, receive, send)
        return
    request_id = uuid.uuid4().hex[:16]
    log_request(_LOG, request_id, scope, 503, 0.0)
    problem = HttpError(503, "too many connections are open", hint="send it again a little later")
    response = response_to(problem, request_id)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
