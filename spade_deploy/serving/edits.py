"""`POST /v1/edits`: the next map of a drawing. A whole map begins one; after that only what changed is sent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response

from spade_deploy.artifact import Arrays
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.serving.drawings import Drawing
from spade_deploy.serving.maps import Maps, asked_beside, inputs_of_maps, maps_of, text_field
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.openapi import Schema, edits_body
from spade_deploy.serving.patches import INSTANCE_PATCHES, PATCHES, edited
from spade_deploy.serving.pictures import MEDIA_TYPES
from spade_deploy.serving.routes import (
    JSON,
    Wanted,
    content_type,
    photo_of,
    read_json,
    read_request,
    refuse_if_full,
    wanted_of,
    wanted_of_json,
    work_of,
)
from spade_deploy.serving.run_lengths import is_int
from spade_deploy.serving.runner import Work
from spade_deploy.serving.state import Serving, problems

EDITS = "/v1/edits"
DRAWING, VERSION = "Drawing", "Drawing-Version"
"""The headers of an answer that name the drawing and the version of its map."""
EDIT_FIELDS = frozenset({"drawing", "base", PATCHES, INSTANCE_PATCHES})
"""What an edit has in place of a whole map."""


def add_edits(app: FastAPI, serving: Serving) -> None:
    """Add the endpoint."""
    headers: dict[str, Schema] = {
        DRAWING: {
            "schema": {"type": "string"},
            "description": "the drawing's id, which the next edit has to send",
        },
        VERSION: {
            "schema": {"type": "integer"},
            "description": "the version of its map, the `base` of the next edit",
        },
    }
    told = {name: {"required": True, **header} for name, header in headers.items()}
    photo = {"description": "The photo", "content": {media: {} for media in MEDIA_TYPES.values()}, "headers": told}

    @app.post(
        EDITS,
        tags=["images"],
        summary="Change a drawing, and make a photo of it",
        response_class=Response,
        responses={200: photo, **problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)},
        openapi_extra=edits_body(),
    )
    async def edits(request: Request) -> Response:
        refuse_if_full(serving)
        deadline = time.monotonic() + serving.asked.timeout
        limit = serving.asked.max_pixels
        base: Drawing | None = None
        body = await read_json(request, serving) if content_type(request) == JSON else None
        fields = {} if body is None else body.value
        if body is None:
            wanted = await read_request(request, serving)
        elif isinstance(fields, Mapping) and EDIT_FIELDS & set(fields):
            base = serving.drawings.find(*_base_of(fields))
            wanted = replace(_wanted_edit(request, serving, base, fields), read_s=body.read_s)
        else:
            wanted = await wanted_of_json(request, serving, body)

        def decoded() -> tuple[Maps, Arrays]:
            model, asked = wanted.model, wanted.asked
            maps = maps_of(model, asked, limit) if base is None else edited(model, base.maps, fields, limit)
            return maps, inputs_of_maps(model, maps, asked, limit)

        start = time.perf_counter()
        maps, inputs = await serving.in_thread(decoded)
        decode_s = wanted.read_s + time.perf_counter() - start
        work = work_of_drawing(serving, wanted.model, inputs, deadline)
        if base is not None:
            serving.drawings.find(base.key, base.version)  # another edit may have been faster
        serving.runner.submit(work)
        # Only an edit that is queued is held: one that found the queue full can be sent again as it is.
        held = serving.drawings.begin(wanted.model.name, maps) if base is None else serving.drawings.go_on(base, maps)
        answer = await photo_of(work, wanted, decode_s, request, serving)
        answer.headers.update({DRAWING: held.key, VERSION: str(held.version)})
        return answer


def work_of_drawing(serving: Serving, model: ServedModel, inputs: Arrays, deadline: float) -> Work:
    """The work of one image of a drawing."""
    runtime = serving.drawings.runtime_of(model, len(serving.models))
    return replace(work_of(model, inputs, deadline), runtime=runtime)


def _base_of(body: Mapping[str, Any]) -> tuple[str, int]:
    """The drawing and the version that an edit names. Raises ConfigError."""
    if "label" in body or "instance" in body:
        raise ConfigError(
            f"`label` and `{sorted(EDIT_FIELDS & set(body))[0]}` cannot be sent together",
            hint="a whole map (`label`) begins a drawing; an edit has `drawing`, `base` and `patches`",
        )
    for name in ("drawing", "base", PATCHES):
        if name not in body:
            raise ConfigError(f"`{name}` is missing: an edit has `drawing`, `base` and `{PATCHES}`")
    key, base = text_field(body, "drawing"), body["base"]
    if not key or not is_int(base):
        raise ConfigError("`drawing` has to be a text and `base` a number, both from the headers of the last answer")
    return key, base


def _wanted_edit(request: Request, serving: Serving, base: Drawing, body: Mapping[str, Any]) -> Wanted:
    rest = beside_edit(body)
    model = model_of_edit(serving, base, text_field(rest, "model"))
    asked = asked_beside(rest, ImageBytes("the drawing", b""), serving.asked.max_pixels)
    return wanted_of(request, model, asked, rest)


def beside_edit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an edit that a request with a whole map has, too."""
    return {name: value for name, value in fields.items() if name not in EDIT_FIELDS}


def model_of_edit(serving: Serving, base: Drawing, name: str | None) -> ServedModel:
    """The model of an edit. Raises ConfigError if the edit names another one than draws the map."""
    if name not in (None, base.model):
        raise ConfigError(
            f"`model`: the drawing belongs to the model {base.model}",
            hint="send the whole map to draw with another model",
        )
    return serving.model(base.model)
