"""The endpoints that make images: `POST /v1/synthesize` and `GET /v1/models`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from spade_deploy.artifact import Arrays
from spade_deploy.errors import quoted
from spade_deploy.serving.forms import form_of
from spade_deploy.serving.maps import (
    Asked,
    asked_of_form,
    asked_of_json,
    inputs_of,
    text_field,
)
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.openapi import models_answer, whole_map_body
from spade_deploy.serving.pictures import MEDIA_TYPES, encode, parse_format, parse_quality
from spade_deploy.serving.problems import HttpError
from spade_deploy.serving.quick import QUICK_BYTES, decodes_quickly, encodes_quickly
from spade_deploy.serving.runner import DeadlineError, Made, QueueFullError, Work
from spade_deploy.serving.state import Serving, problems

BODY_S = 20.0
"""Seconds in which the whole body of a request must have come."""
JSON = "application/json"
_MOST_MARKS = 100_000
"""Quotation marks and opening brackets in JSON; a request needs a few dozen, and each patch of an edit some fifteen."""


@dataclass(frozen=True)
class Wanted:
    """One request, read but not decoded."""

    model: ServedModel
    """What makes the image."""
    asked: Asked
    """What of."""
    format: str
    """One of MEDIA_TYPES."""
    quality: int
    """Of JPEG and WebP."""
    read_s: float = 0.0
    """Seconds that reading the JSON and its fields took; they are part of decoding."""


@dataclass(frozen=True)
class JsonBody:
    """The body of a request, read as JSON."""

    value: Any
    """What it says."""
    read_s: float
    """Seconds that reading it took, once it had come."""
    is_small: bool
    """Whether what is done with it takes so little that no other thread is needed."""


def add_routes(app: FastAPI, serving: Serving) -> None:
    """Add the endpoints."""

    @app.get(
        "/v1/models",
        tags=["images"],
        summary="The models, their labels, sizes and styles",
        responses={200: models_answer(), **problems(401)},
    )
    async def models() -> dict[str, Any]:
        return {"models": [model.facts() for model in serving.models.values()]}

    @app.post(
        "/v1/synthesize",
        tags=["images"],
        summary="Make a photo of a label map",
        response_class=Response,
        responses={
            200: {"description": "The photo", "content": {media: {} for media in MEDIA_TYPES.values()}},
            **problems(400, 401, 403, 404, 408, 413, 415, 422, 429, 503),
        },
        openapi_extra=whole_map_body(),
    )
    async def synthesize(request: Request) -> Response:
        refuse_if_full(serving)
        deadline = time.monotonic() + serving.asked.timeout
        wanted = await read_request(request, serving)
        start = time.perf_counter()
        model, asked, limit = wanted.model, wanted.asked, serving.asked.max_pixels
        if decodes_quickly(model, asked):
            inputs = inputs_of(model, asked, limit)
        else:
            inputs = await serving.in_thread(inputs_of, model, asked, limit)
        decode_s = wanted.read_s + time.perf_counter() - start
        work = work_of(model, inputs, deadline)
        serving.runner.submit(work)
        return await photo_of(work, wanted, decode_s, request, serving)


def refuse_if_full(serving: Serving) -> None:
    """Raise QueueFullError before anything is read for a request that has no place."""
    if serving.runner.is_full:
        raise QueueFullError(
            f"{serving.runner.waiting} requests are already waiting", hint="send it again a little later"
        )


async def photo_of(work: Work, wanted: Wanted, decode_s: float, request: Request, serving: Serving) -> Response:
    """The answer with the photo of a work that is queued. Raises what `result_of` does."""
    made = await result_of(work, request)
    start = time.perf_counter()
    if encodes_quickly(made.pixels, wanted.format):
        content = encode(made.pixels, wanted.format, wanted.quality)
    else:
        content = await serving.in_thread(encode, made.pixels, wanted.format, wanted.quality)
    encode_s = time.perf_counter() - start
    serving.figures.made(wanted.model.name, made, decode_s, encode_s)
    headers = {"Server-Timing": timing(made, decode_s, encode_s), "Cache-Control": "no-store"}
    return Response(content, media_type=MEDIA_TYPES[wanted.format], headers=headers)


def work_of(model: ServedModel, inputs: Arrays, deadline: float) -> Work:
    """The work of one image."""
    return Work(model.runtime, inputs, model.rule, deadline)


def timing(made: Made, decode_s: float, encode_s: float) -> str:
    """The header Server-Timing: milliseconds of each stage."""
    stages_s = made.stages_s(decode_s, encode_s)
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages_s.items())


async def result_of(work: Work, request: Request) -> Made:
    """Wait for an image; when the client goes, or its time is over, it is not begun any more."""
    result = asyncio.wrap_future(work.result)
    gone: asyncio.Future[None] = asyncio.create_task(_until_gone(request))
    try:
        left = work.deadline - time.monotonic()
        waited: tuple[asyncio.Future[Any], ...] = (result, gone)
        await asyncio.wait(waited, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        work.result.cancel()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineError("the image was not ready in time", hint="send it again later, or ask for a smaller size")
    finally:
        gone.cancel()
        if not result.done():
            result.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_request(request: Request, serving: Serving) -> Wanted:
    """Read a request's body, JSON or form. Raises HttpError, and ConfigError for a field."""
    kind = content_type(request)
    if kind == JSON:
        return await wanted_of_json(request, serving, await read_json(request, serving))
    if kind == "multipart/form-data":
        return await _wanted_of_form(request, serving)
    raise HttpError(
        415,
        f"content of type {kind[:80] or 'none'} is not supported",
        hint="send application/json or multipart/form-data",
    )


async def wanted_of_json(request: Request, serving: Serving, body: JsonBody) -> Wanted:
    """What a request with a whole map wants. Raises HttpError, and ConfigError for a field."""
    start = time.perf_counter()
    limit = serving.asked.max_pixels
    if body.is_small:
        asked = asked_of_json(body.value, limit)
    else:
        asked = await serving.in_thread(asked_of_json, body.value, limit)
    read_s = body.read_s + time.perf_counter() - start
    wanted = wanted_of(request, serving.model(text_field(body.value, "model")), asked, body.value)
    return replace(wanted, read_s=read_s)


async def _wanted_of_form(request: Request, serving: Serving) -> Wanted:
    content = await read_body(request, serving.asked.max_bytes, min(BODY_S, serving.asked.timeout))
    start, kind = time.perf_counter(), request.headers["content-type"]
    is_small = len(content) <= QUICK_BYTES
    fields, files = form_of(content, kind) if is_small else await serving.in_thread(form_of, content, kind)
    asked = asked_of_form(fields, files, serving.asked.max_pixels)
    read_s = time.perf_counter() - start
    wanted = wanted_of(request, serving.model(text_field(fields, "model")), asked, fields)
    return replace(wanted, read_s=read_s)


def content_type(request: Request) -> str:
    """The type of a request's body in small letters, without its parameters; empty for none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, serving: Serving) -> JsonBody:
    """A request's body as JSON. Raises HttpError."""
    content = await read_body(request, serving.asked.max_bytes, min(BODY_S, serving.asked.timeout))
    start, is_small = time.perf_counter(), len(content) <= QUICK_BYTES
    value = json_of(content) if is_small else await serving.in_thread(json_of, content)
    return JsonBody(value, time.perf_counter() - start, is_small)


def json_of(content: bytes) -> Any:
    """Bytes -> JSON. Raises HttpError."""
    if content.count(b"[") + content.count(b"{") + content.count(b'"') > _MOST_MARKS:
        # json.loads makes objects of some 60 bytes of parts of three bytes, such as "[],".
        raise HttpError(
            400,
            "the JSON of the body has too many parts",
            hint="GET /openapi.json describes what a body may contain",
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not JSON: {str(error)[:200]}") from error


def wanted_of(request: Request, model: ServedModel, asked: Asked, fields: Mapping[str, Any]) -> Wanted:
    """What a request wants. fields: its fields, of which format and quality are read. Raises ConfigError."""
    picture = parse_format(text_field(fields, "format"), request.headers.get("accept", ""))
    return Wanted(model, asked, picture, parse_quality(fields.get("quality")))


async def read_body(request: Request, most: int, seconds: float = BODY_S) -> bytes:
    """The whole body. Raises HttpError: 400 for a wrong length, 408 if it comes too slowly, 413 if it is too long, 415
    if it is compressed."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise HttpError(
            415,
            f"a body with Content-Encoding {quoted(encoding)} is not supported",
            hint="send it as it is, without that header: a PNG is compressed already",
        )
    return b"".join([part async for part in _parts(request, most, seconds)])


async def _parts(request: Request, most: int, seconds: float) -> AsyncIterator[bytes]:
    length = request.headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 20):
        raise HttpError(400, f"Content-Length is {length[:40]!r}")
    if length is not None and int(length) > most:
        raise _too_long(int(length), most)
    found, end = 0, asyncio.get_running_loop().time() + seconds
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(end):
                part = await anext(stream, None)
        except TimeoutError as error:
            hint = "check that the client sends as many bytes as its Content-Length says, and fast enough"
            raise HttpError(408, f"the body did not arrive within {seconds:g} s", hint=hint) from error
        if part is None:
            return
        found += len(part)
        if found > most:
            raise _too_long(found, most)
        request.app.state.serving.hold(request.scope, len(part))
        yield part


def _too_long(found: int, most: int) -> HttpError:
    return HttpError(
        413, f"the body has {found:,} bytes or more; at most {most:,} are allowed", hint="send a PNG, or run lengths"
    )
