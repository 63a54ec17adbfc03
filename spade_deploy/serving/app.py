"""The HTTP interface of served models, as an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.printable import one_line
from spade_deploy.serving.drawings import Drawings
from spade_deploy.serving.edits import DRAWING, VERSION, add_edits
from spade_deploy.serving.figures import Figures
from spade_deploy.serving.guards import GuardMiddleware, Guards, HeadMiddleware, TokenMiddleware
from spade_deploy.serving.live import add_live
from spade_deploy.serving.maps import shown_name
from spade_deploy.serving.memory import Budget
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.openapi import ready_answer
from spade_deploy.serving.page_routes import add_page
from spade_deploy.serving.problems import HttpError, response_to
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.routes import add_routes
from spade_deploy.serving.runner import Runner
from spade_deploy.serving.state import Serving, budget_of, problems
from spade_deploy.version import __version__

HEALTH, READY, METRICS = "/healthz", "/readyz", "/metrics"
GONE = 499
"""The status by which the log and the figures tell of a client that went before it had its answer."""
DRAIN_S = 20.0
"""Seconds that requests get to end when the server is told to stop."""


def make_app(
    models: Mapping[str, ServedModel], asked: ServeRequest, token: str = "", budget: Budget | None = None
) -> FastAPI:
    """The app that serves these models.

    token: what requests must bring; empty if nothing. budget: the memory for clients, where others share it.
    """
    runner = Runner(asked.queue)
    serving = Serving(models, asked, runner, Figures(runner), budget or budget_of(asked))
    serving.drawings = Drawings(most_row_bytes=asked.max_row_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        serving.is_ready = False
        await asyncio.to_thread(runner.close, drain_s=DRAIN_S)
        serving.threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="spade-deploy",
        version=__version__,
        description="A label map goes in, a photo comes out.",
        lifespan=lifespan,
        redoc_url=None,
        docs_url=None,
        responses=problems(400, 403, 421, 500, 503),
    )
    app.state.serving = serving
    _add_errors(app, serving)
    _add_health(app, serving)
    add_routes(app, serving)
    add_edits(app, serving)
    add_live(app, serving)
    add_page(app, serving)
    local = ("localhost", "127.0.0.1", "[::1]", asked.host) if asked.is_local else ()
    guards = Guards(token, local, asked.cors)
    app.add_middleware(HeadMiddleware)  # the one that is added last comes first
    app.add_middleware(TokenMiddleware, guards=guards)
    if asked.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(asked.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Server-Timing", "X-Request-Id", "Retry-After", DRAWING, VERSION],
        )
    app.add_middleware(GuardMiddleware, guards=guards, answered=serving.answered)
    return app


def _add_errors(app: FastAPI, serving: Serving) -> None:
    @app.exception_handler(SpadeError)
    async def told(request: Request, error: SpadeError) -> Response:
        return response_to(error, request.state.request_id, serving.retry_s)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        hint = {404: "GET /openapi.json lists what there is", 405: "GET /openapi.json lists the methods"}
        shown = one_line(request.scope["path"][:100])  # not request.url: a strange header Host makes that fail
        problem = HttpError(error.status_code, f"{request.method} {shown}", hint=hint.get(error.status_code))
        response = response_to(problem, request.state.request_id)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def misfits(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        problem = ConfigError(f"`{shown_name(str(first['loc'][-1]))}`: {first['msg']}", hint="see GET /openapi.json")
        return response_to(problem, request.state.request_id)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # nobody reads it; the log has the status


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get(HEALTH, tags=["state"], summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get(READY, tags=["state"], summary="Whether it takes requests", responses={200: ready_answer()})
    async def ready() -> Response:
        if not serving.is_ready:
            raise HttpError(503, "the server is shutting down")
        if serving.runner.is_full:
            raise HttpError(503, "the queue is full", retry_s=serving.retry_s)
        return JSONResponse({"status": "ready", "waiting": serving.runner.waiting, "models": list(serving.models)})

    @app.get(
        METRICS,
        tags=["state"],
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"description": "The figures", "content": {"text/plain": {}}}, **problems(401)},
    )
    async def metrics() -> Response:
        content, media_type = serving.figures.text()
        return Response(content, media_type=media_type)
