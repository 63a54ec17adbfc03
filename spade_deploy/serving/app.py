"""The HTTP interface of served models, as an ASGI app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from spade_deploy.errors import SpadeError
from spade_deploy.serving.edits import DRAWING, VERSION, add_edits
from spade_deploy.serving.figures import Figures
from spade_deploy.serving.guards import GuardMiddleware, Guards
from spade_deploy.serving.live import add_live
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.page_routes import add_page
from spade_deploy.serving.problems import HttpError, response_to
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.routes import add_routes
from spade_deploy.serving.runner import Runner
from spade_deploy.serving.state import Serving, problems
from spade_deploy.version import __version__

_LOG = logging.getLogger(__name__)

HEALTH, READY, METRICS = "/healthz", "/readyz", "/metrics"
DRAIN_S = 20.0
"""Seconds that requests get to end when the server is told to stop."""


def make_app(models: Mapping[str, ServedModel], asked: ServeRequest, token: str = "") -> FastAPI:
    """The app that serves these models. token: what requests must bring; empty if nothing."""
    runner = Runner(asked.queue)
    serving = Serving(models, asked, runner, Figures(runner))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        serving.is_ready = False
        await asyncio.to_thread(runner.close, drain_s=DRAIN_S)

    app = FastAPI(
        title="spade-deploy",
        version=__version__,
        description="A label map goes in, a photo comes out.",
        lifespan=lifespan,
        redoc_url=None,
        docs_url=None,
    )
    app.state.serving = serving
    _add_errors(app, serving)
    _add_health(app, serving)
    add_routes(app, serving)
    add_edits(app, serving)
    add_live(app, serving)
    add_page(app, serving)
    if asked.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(asked.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Server-Timing", "X-Request-Id", "Retry-After", DRAWING, VERSION],
        )
    local = ("localhost", "127.0.0.1", "[::1]", asked.host) if asked.is_local else ()
    app.add_middleware(GuardMiddleware, guards=Guards(token, local, asked.cors), json_logs=asked.json_logs)
    return app


def _add_errors(app: FastAPI, serving: Serving) -> None:
    @app.exception_handler(SpadeError)
    async def told(request: Request, error: SpadeError) -> Response:
        return response_to(error, request.state.request_id, serving.retry_s)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        hint = {404: "GET /openapi.json lists what there is", 405: "GET /openapi.json lists the methods"}
        problem = HttpError(
            error.status_code, f"{request.method} {request.url.path[:100]}", hint=hint.get(error.status_code)
        )
        response = response_to(problem, request.state.request_id)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _LOG.error("request %s failed", request.state.request_id, exc_info=error)
        problem = HttpError(500, "an error that nobody foresaw; the log has it under the request's id")
        return response_to(problem, request.state.request_id)

    @app.middleware("http")
    async def counted(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        route = request.scope.get("route")
        serving.figures.requests.labels(getattr(route, "path", "other"), str(response.status_code)).inc()
        return response


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get(HEALTH, tags=["state"], summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get(READY, tags=["state"], summary="Whether it takes requests", responses=problems(503))
    async def ready() -> Response:
        if not serving.is_ready:
            raise HttpError(503, "the server is going down")
        if serving.runner.is_full:
            raise HttpError(503, "the queue is full", retry_s=serving.retry_s)
        return JSONResponse({"status": "ready", "waiting": serving.runner.waiting, "models": list(serving.models)})

    @app.get(METRICS, tags=["state"], summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        content, media_type = serving.figures.text()
        return Response(content, media_type=media_type)
