"""The processes that listen: one, or several that share a port, each with the models in its memory."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.progress import SILENT, Progress
from spade_deploy.serving.app import DRAIN_S, make_app
from spade_deploy.serving.figures import MULTIPROCESS
from spade_deploy.serving.guards import read_token
from spade_deploy.serving.logs import LoggedProgress, log_request, start_log
from spade_deploy.serving.models import named_paths, open_models
from spade_deploy.serving.problems import MEDIA_TYPE, HttpError, body_of, response_to
from spade_deploy.serving.request import ServeRequest

_LOG = logging.getLogger(__name__)

HEADERS_S = 10.0
"""Seconds in which the headers of a request must have come."""
KEEP_ALIVE_S = 15
"""Seconds that a connection may be idle between two requests."""


class PatientProtocol(H11Protocol):
    """Uvicorn's HTTP protocol, which also closes connections that send no whole request in time.

    What it answers by itself, as no request reaches the app, is application/problem+json, too.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        crowd, most = max(len(self.connections), len(self.tasks)), getattr(self.config, "most_connections", None)
        self.app = _too_many if most is not None and crowd > most else self.config.loaded_app
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; where an answer is under way already, only close the connection."""
        request_id = uuid.uuid4().hex[:16]
        log_request(_LOG, request_id, {"method": "-", "path": "-"}, 400, 0.0)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = HttpError(400, "what was sent is no HTTP/1.1 request", hint="docs/serving.md has examples")
            body = json.dumps(body_of(error, request_id)).encode()
            headers = [
                ("content-type", MEDIA_TYPE),
                ("content-length", str(len(body))),
                ("connection", "close"),
                ("x-request-id", request_id),
            ]
            for part in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
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


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    request_id = uuid.uuid4().hex[:16]
    log_request(_LOG, request_id, scope, 503, 0.0)
    problem = HttpError(503, "too many connections are open", hint="send it again a little later")
    response = response_to(problem, request_id)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def serve(asked: ServeRequest, runs: Path, progress: Progress = SILENT) -> None:
    """Serve until SIGTERM or SIGINT. What was begun is finished then, within 20 seconds.

    runs: where the newest artifact is looked for if none is named. progress: its `note` is told the address.
    Raises ConfigError for an address that cannot be listened on, and what `models.open_models` raises.
    """
    token = "" if asked.token_file is None else read_token(asked.token_file)
    start_log(as_json=asked.json_logs)
    if asked.json_logs:
        progress = LoggedProgress()
    with ExitStack() as stack:
        listening = stack.enter_context(_listening(asked))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if asked.workers == 1:
            # Uvicorn raises it again once all is finished. As the first process of a container this one would not even
            # be ended by it without a handler, so there is one while the models are opened, too.
            signal.signal(signal.SIGTERM, _end)
            models = open_models(asked, runs, progress)
            for model in models.values():
                stack.callback(model.runtime.close)
            progress.note(f"serving {', '.join(models)} on http://{shown}:{port}/  (Ctrl-C ends it)")
            uvicorn.Server(_config(make_app(models, asked, token), asked)).run([listening])
            return
        for _, path in named_paths(asked.artifacts, runs):
            Artifact.open(path)  # what is no artifact is told here, once
        folder = stack.enter_context(scratch_folder("serve"))
        os.environ[MULTIPROCESS] = str(folder)
        config = _config(WorkerApp(asked, runs.absolute(), token), asked)
        progress.note(f"serving with {asked.workers} processes on http://{shown}:{port}/  (Ctrl-C ends it)")
        Multiprocess(config, sockets=[listening]).run()


@dataclass
class WorkerApp:
    """The app of one of several processes: the models are opened in it when it starts."""

    asked: ServeRequest
    """What is served."""
    runs: Path
    """Where the newest artifact is looked for."""
    token: str
    """What requests must bring."""
    _app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            start_log(as_json=self.asked.json_logs)
            models = await asyncio.to_thread(open_models, self.asked, self.runs)
            self._app = make_app(models, self.asked, self.token)
        await self._app(scope, receive, send)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_app": None}


def _end(*_: object) -> None:
    raise SystemExit(0)


def _listening(asked: ServeRequest) -> socket.socket:
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    # asyncio sends an answer at once only where the protocol is named: else its second part waits 40 ms for the client.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((asked.host, asked.port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"`port`: {asked.host}:{asked.port} cannot be listened on: {reason_of(error)}",
            hint="`port` 0 takes a free one",
        ) from error
    found.set_inheritable(True)
    return found


def _config(app: Any, asked: ServeRequest) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        workers=asked.workers,
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=asked.max_bytes,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(DRAIN_S) + 5,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
    )
    # These reach the protocol in worker processes this way.
    config.headers_s = min(HEADERS_S, asked.timeout)  # type: ignore[attr-defined]
    config.most_connections = 4 * asked.queue + 256  # type: ignore[attr-defined]
    return config
