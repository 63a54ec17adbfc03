"""What Ray Serve's proxies put around the application: an answer where a replica died.

Ray starts a proxy on every node and gives it a few seconds, so little is imported here.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LostReplicaMiddleware:
    """Makes a problem with status 503 of an answer that never came, because its replica died.

    Without it Ray answers with status 500 and no word on whether it is worth to ask again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def told(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        await self._app(scope, receive, told)
        if scope["type"] == "http" and not has_begun:
            from spade_deploy.serving.problems import HttpError, response_to

            problem = HttpError(503, "the replica that had this request died", hint="send it again", retry_s=1)
            await response_to(problem)(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray's proxies put around every application, where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names this."""
    return [Middleware(LostReplicaMiddleware)]
