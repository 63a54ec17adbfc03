"""`/v1/live`: a WebSocket for a page that draws. The newest map of a drawing wins, older ones are dropped.

A page sends binary messages: a line of JSON (`id`, and the fields of `POST /v1/synthesize` but `label`), a line feed,
and the bytes of a PNG label map. For each it gets either a binary message, a line of JSON (`id`, `timing`,
`media_type`), a line feed and the image, or a text message with a problem (`id` and the members of problem+json). A map
that a newer one overtook is answered by a text message {"id": ..., "overtaken": true}.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from spade_deploy.errors import SpadeError
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.serving.maps import Asked, inputs_of, live_asked, text_field
from spade_deploy.serving.pictures import MEDIA_TYPES, encode, parse_format, parse_quality
from spade_deploy.serving.problems import HttpError, body_of
from spade_deploy.serving.routes import timing, work_of
from spade_deploy.serving.runner import OvertakenError, Work
from spade_deploy.serving.state import Serving

_LOG = logging.getLogger(__name__)

LIVE = "/v1/live"
SUBPROTOCOL = "spade.v1"
_MOST_HEADER_BYTES = 1 << 20
"""It may hold an instance map in base64."""


def add_live(app: FastAPI, serving: Serving) -> None:
    """Add the endpoint."""

    @app.websocket(LIVE)
    async def live(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        await Drawing(socket, serving).run()


class Drawing:
    """One open page: it remembers the newest map that came, and the one that waits or runs."""

    def __init__(self, socket: WebSocket, serving: Serving) -> None:
        self._socket, self._serving = socket, serving
        self._newest: bytes | None = None
        self._came = asyncio.Event()
        self._current: Work | None = None
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the page goes."""
        worker = asyncio.create_task(self._work())
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                content = message.get("bytes")
                if content is None:
                    await self._tell({"id": None, **body_of(HttpError(400, "a message is not binary"))})
                    continue
                overtaken, self._newest = self._newest, content
                self._came.set()
                if overtaken is not None:
                    await self._tell({"id": _id_of(overtaken), "overtaken": True})
        except WebSocketDisconnect:
            return
        finally:
            worker.cancel()
            for task in self._tasks:
                task.cancel()
            if self._current is not None:
                self._current.result.cancel()

    async def _work(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            content, self._newest = self._newest, None
            if content is None:
                continue
            number = _id_of(content)
            try:
                await self._begin(number, content)
            except Exception as error:  # the page draws on, whatever one map does
                await self._tell({"id": number, **body_of(_told(error))})

    async def _begin(self, number: Any, content: bytes) -> None:
        """Decode a map and queue it in the place of the one before; its image is sent when it is there."""
        start = time.perf_counter()
        header, _, png = content.partition(b"\n")
        if len(header) > _MOST_HEADER_BYTES:
            raise HttpError(413, f"the line of JSON has more than {_MOST_HEADER_BYTES} bytes")
        try:
            fields = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, "the message does not begin with a line of JSON") from error
        if not isinstance(fields, dict):
            raise HttpError(400, "the line of JSON is no object")
        fields.pop("id", None)
        picture = parse_format(text_field(fields, "format"), "image/webp")
        quality = parse_quality(fields.get("quality"))
        model = self._serving.model(text_field(fields, "model"))
        limit = self._serving.asked.max_pixels
        asked: Asked = live_asked(fields, ImageBytes("the label map", png, limit), limit)
        inputs = await self._serving.in_thread(inputs_of, model, asked, limit)
        decode_s = time.perf_counter() - start
        work = work_of(model, inputs, time.monotonic() + self._serving.asked.timeout)
        self._serving.runner.submit(work, instead_of=self._current)
        self._current = work
        task = asyncio.create_task(self._finish(number, work, model.name, picture, quality, decode_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, number: Any, work: Work, model: str, picture: str, quality: int, decode_s: float) -> None:
        try:
            made = await asyncio.wrap_future(work.result)
        except OvertakenError:
            await self._tell({"id": number, "overtaken": True})
            return
        except Exception as error:  # an engine may raise anything
            await self._tell({"id": number, **body_of(_told(error))})
            return
        start = time.perf_counter()
        content = await self._serving.in_thread(encode, made.pixels, picture, quality)
        encode_s = time.perf_counter() - start
        self._serving.figures.made(model, made, decode_s, encode_s)
        head = {"id": number, "timing": timing(made, decode_s, encode_s), "media_type": MEDIA_TYPES[picture]}
        with suppress(RuntimeError, WebSocketDisconnect):  # the page went
            async with self._sending:
                await self._socket.send_bytes(json.dumps(head).encode() + b"\n" + content)

    async def _tell(self, body: dict[str, Any]) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):
            async with self._sending:
                await self._socket.send_text(json.dumps(body))


def _id_of(content: bytes) -> Any:
    """The id in a message's line of JSON; None where there is none."""
    try:
        found = json.loads(content.partition(b"\n")[0][:_MOST_HEADER_BYTES])["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int | str) else None


def _told(error: Exception) -> SpadeError:
    """The error as a page is told of it; what nobody foresaw goes to the log."""
    if isinstance(error, SpadeError):
        return error
    _LOG.error("a map of the live preview failed", exc_info=error)
    return HttpError(500, "an error that nobody foresaw; the server's log has it")
