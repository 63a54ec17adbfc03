"""`/v1/live`: a WebSocket for a page that draws. The newest map of a drawing wins, older ones are dropped.

A page sends binary messages: a line of JSON (`id`, and the fields of `POST /v1/synthesize` but `label`), a line feed,
and the bytes of a PNG label map. An edit has `base`, the `id` of the message whose map it builds on, and `patches` in
place of the PNG. For each message a page gets either a binary one, a line of JSON (`id`, `timing`, `media_type`), a
line feed and the image, or a text with a problem (`id` and the members of problem+json). A map that a newer one
overtook is answered by a text {"id": ..., "overtaken": true}; edits build on it all the same. Where all clients
together fill the memory for what they send, the WebSocket is closed with code 1013, try again later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.serving.drawings import Drawing
from spade_deploy.serving.edits import EDIT_FIELDS, beside_edit, model_of_edit, work_of_drawing
from spade_deploy.serving.maps import Asked, Maps, asked_beside, inputs_of_maps, maps_of, text_field
from spade_deploy.serving.memory import FULL, TRY_LATER
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.patches import PATCHES, edited
from spade_deploy.serving.pictures import MEDIA_TYPES, encode, parse_format, parse_quality
from spade_deploy.serving.problems import HttpError, body_of
from spade_deploy.serving.routes import timing
from spade_deploy.serving.run_lengths import is_int
from spade_deploy.serving.runner import OvertakenError, Work
from spade_deploy.serving.state import Serving

_LOG = logging.getLogger(__name__)

LIVE = "/v1/live"
SUBPROTOCOL = "spade.v1"
_MOST_HEADER_BYTES = 1 << 20
"""It may hold an instance map in base64."""
_MOST_WAITING = 16
"""Messages of one page that wait to be decoded. A page that sends more loses them, and edits of them are refused."""
_MOST_UNSENT = 4
"""Images of one page that are made, encoded or sent. A page that takes none gets no more."""


def add_live(app: FastAPI, serving: Serving) -> None:
    """Add the endpoint."""

    @app.websocket(LIVE)
    async def live(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        await Page(socket, serving).run()


@dataclass(frozen=True)
class _Message:
    """What a page has sent."""

    number: int | str | None
    """Its `id`."""
    fields: dict[str, Any]
    """The rest of its line of JSON."""
    png: bytes
    """What stands behind the line."""
    num_bytes: int
    """What the message takes in memory."""

    @property
    def is_edit(self) -> bool:
        return bool(EDIT_FIELDS & set(self.fields))


class Page:
    """One open page: it remembers the newest map that came, and the one that waits or runs."""

    def __init__(self, socket: WebSocket, serving: Serving) -> None:
        self._socket, self._serving = socket, serving
        self._waiting: list[_Message] = []
        self._came = asyncio.Event()
        self._current: Work | None = None
        self._held: Drawing | None = None
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._share = serving.budget.share()

    async def run(self) -> None:
        """Until the page goes."""
        worker = asyncio.create_task(self._work())
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    came = _read(message.get("bytes"))
                    if not self._share.take(came.num_bytes):
                        await self._give_up()
                        return
                except HttpError as error:
                    await self._tell({"id": None, **body_of(error)})
                    continue
                overtaken: list[_Message] = []
                # An edit needs the map before it; a whole map needs none.
                if not came.is_edit or len(self._waiting) >= _MOST_WAITING:
                    overtaken, self._waiting = self._waiting, []
                self._waiting.append(came)
                self._came.set()
                for one in overtaken:
                    self._share.give(one.num_bytes)
                    await self._tell({"id": one.number, "overtaken": True})
        except WebSocketDisconnect:
            return
        finally:
            worker.cancel()
            for task in self._tasks:
                task.cancel()
            if self._current is not None:
                self._current.result.cancel()
            if self._held is not None:
                self._serving.drawings.drop(self._held.key)
            self._share.close()

    async def _work(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while len(self._tasks) >= _MOST_UNSENT:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            came, self._waiting = self._waiting, []
            for message in came:
                try:
                    if message is came[-1]:
                        await self._begin(message)
                    else:
                        await self._maps_of(message)
                        await self._tell({"id": message.number, "overtaken": True})
                except Exception as error:  # the page draws on, whatever one map does
                    await self._tell({"id": message.number, **body_of(_told(error))})
                finally:
                    self._share.give(message.num_bytes)

    async def _maps_of(self, message: _Message) -> tuple[ServedModel, Asked, Maps]:
        """Decode a message's map, or what it changes, and hold the map for the edits to come."""
        limit, drawings = self._serving.asked.max_pixels, self._serving.drawings
        rest = beside_edit(message.fields)
        asked = asked_beside(rest, ImageBytes("the label map", message.png, limit), limit)
        name = text_field(rest, "model")
        if not message.is_edit:
            model = self._serving.model(name)
            maps = await self._serving.in_thread(maps_of, model, asked, limit)
            number, old = message.number, self._held
            if isinstance(number, int):
                self._held = drawings.begin(model.name, maps, number, "" if old is None else old.key)
            elif old is not None:  # edits name their base by its number
                drawings.drop(old.key)
            return model, asked, maps
        base = self._base_of(message)
        model = model_of_edit(self._serving, base, name)
        maps = await self._serving.in_thread(edited, model, base.maps, message.fields, limit)
        self._held = drawings.go_on(base, maps, int(str(message.number)))
        return model, asked, maps

    def _base_of(self, message: _Message) -> Drawing:
        """The map that an edit builds on. Raises OtherMapError where it is not held, ConfigError for no edit."""
        fields, base = message.fields, message.fields.get("base")
        is_whole = "instance" in fields or "drawing" in fields or message.png
        if not is_int(base) or not isinstance(message.number, int) or PATCHES not in fields or is_whole:
            raise ConfigError(
                f"an edit has a number as its `id`, `{PATCHES}`, `base` (the `id` of the map before), and nothing"
                " behind the line of JSON"
            )
        return self._serving.drawings.find("" if self._held is None else self._held.key, int(str(base)))

    async def _begin(self, message: _Message) -> None:
        """Decode a map and queue it in the place of the one before; its image is sent when it is there."""
        start = time.perf_counter()
        picture = parse_format(text_field(message.fields, "format"), "image/webp")
        quality = parse_quality(message.fields.get("quality"))
        model, asked, maps = await self._maps_of(message)
        inputs = await self._serving.in_thread(inputs_of_maps, model, maps, asked, self._serving.asked.max_pixels)
        decode_s = time.perf_counter() - start
        work = work_of_drawing(self._serving, model, inputs, time.monotonic() + self._serving.asked.timeout)
        self._serving.runner.submit(work, instead_of=self._current)
        self._current = work
        task = asyncio.create_task(self._finish(message.number, work, model.name, picture, quality, decode_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(
        self, number: int | str | None, work: Work, model: str, picture: str, quality: int, decode_s: float
    ) -> None:
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
        if self._current is work:
            self._current = None  # it holds the image
        if not self._share.take(len(content)):
            await self._give_up()
            return
        head = {"id": number, "timing": timing(made, decode_s, encode_s), "media_type": MEDIA_TYPES[picture]}
        try:
            with suppress(RuntimeError, WebSocketDisconnect):  # the page went
                async with self._sending:
                    await self._socket.send_bytes(json.dumps(head).encode() + b"\n" + content)
        finally:
            self._share.give(len(content))

    async def _give_up(self) -> None:
        """Close the page's WebSocket, as all clients together hold too much."""
        with suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.close(TRY_LATER, FULL)

    async def _tell(self, body: dict[str, Any]) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):
            async with self._sending:
                await self._socket.send_text(json.dumps(body))


def _read(content: bytes | None) -> _Message:
    """A message's line of JSON, and what stands behind it. Raises HttpError."""
    if content is None:
        raise HttpError(400, "a message has to be binary, but a text came")
    header, _, png = content.partition(b"\n")
    if len(header) > _MOST_HEADER_BYTES:
        raise HttpError(413, f"the line of JSON has more than {_MOST_HEADER_BYTES} bytes")
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "the message does not begin with a line of JSON") from error
    if not isinstance(fields, dict):
        raise HttpError(400, "the line of JSON is not an object")
    number = fields.pop("id", None)
    return _Message(number if is_int(number) or isinstance(number, str) else None, fields, png, len(content))


def _told(error: Exception) -> SpadeError:
    """The error as a page is told of it; what nobody foresaw goes to the log."""
    if isinstance(error, SpadeError):
        return error
    _LOG.error("a map of the live preview failed", exc_info=error)
    return HttpError(500, "unexpected error; find it in the server's log")
