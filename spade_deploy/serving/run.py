"""The processes that listen: one, or several that share a port, each with the models in its memory."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.progress import SILENT, Progress
from spade_deploy.serving.app import DRAIN_S, make_app
from spade_deploy.serving.figures import MULTIPROCESS, forget_process
from spade_deploy.serving.guards import read_token
from spade_deploy.serving.logs import LoggedProgress, start_log
from spade_deploy.serving.models import named_paths, open_models
from spade_deploy.serving.protocol import HEADERS_S, PatientProtocol, PatientWebSocket
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.state import budget_of

_LOG = logging.getLogger(__name__)

KEEP_ALIVE_S = 15
"""Seconds that a connection may be idle between two requests."""


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
            progress.note(f"serving {', '.join(models)} on http://{shown}:{port}/  (Ctrl-C stops it)")
            uvicorn.Server(_config(make_app(models, asked, token), asked)).run([listening])
            return
        for _, path in named_paths(asked.artifacts, runs):
            Artifact.open(path)  # what is no artifact is told here, once
        folder = stack.enter_context(scratch_folder("serve"))
        os.environ[MULTIPROCESS] = str(folder)
        config = _config(WorkerApp(asked, runs.absolute(), token), asked)
        progress.note(f"serving with {asked.workers} processes on http://{shown}:{port}/  (Ctrl-C stops it)")
        Workers(config, [listening], folder).run()


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

    def __post_init__(self) -> None:
        self.budget = budget_of(self.asked)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            start_log(as_json=self.asked.json_logs)
            models = await asyncio.to_thread(open_models, self.asked, self.runs)
            self._app = make_app(models, self.asked, self.token, self.budget)
        await self._app(scope, receive, send)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_app": None}


class Workers(Multiprocess):
    """Uvicorn's supervisor of processes, which also takes out of the figures what a process that ended had in hand."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], figures: Path) -> None:
        """figures: the folder of the figures that the processes share."""
        super().__init__(config, sockets)
        self._figures, self._seen = figures, set[int]()

    def keep_subprocess_alive(self) -> None:
        before = self._pids()
        super().keep_subprocess_alive()
        now = self._pids()
        for pid in (self._seen | before) - now:
            forget_process(pid, self._figures)
        self._seen = now

    def _pids(self) -> set[int]:
        return {process.pid for process in self.processes if process.pid is not None}


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
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM)
        raise ConfigError(
            f"`{'port' if is_port else 'host'}`: {asked.host}:{asked.port} cannot be opened: {reason_of(error)}",
            hint="choose another `port`; 0 picks a free one" if is_port else "give an address of this machine",
        ) from error
    found.set_inheritable(True)
    return found


def _config(app: Any, asked: ServeRequest) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        workers=asked.workers,
        http=PatientProtocol,
        ws=PatientWebSocket,
        ws_per_message_deflate=False,  # images are compressed already
        ws_max_size=asked.max_bytes,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(DRAIN_S) + 5,
        access_log=False,
        proxy_headers=False,  # nothing here depends on a client's address
        log_config=None,
        server_header=False,
        lifespan="on",
    )
    # These reach the protocols in worker processes this way.
    config.budget = app.budget if isinstance(app, WorkerApp) else app.state.serving.budget  # type: ignore[attr-defined]
    config.headers_s = min(HEADERS_S, asked.timeout)  # type: ignore[attr-defined]
    config.most_connections = 4 * asked.queue + 256  # type: ignore[attr-defined]
    return config
