"""The paint page at `/`, and what it asks for besides images: label maps to start from, and the style of a photo.

The page's files are served below an address that holds their digest, so a browser may keep them for ever and still gets
the new ones after an update. The page itself is asked for each time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from PIL import Image
from starlette.concurrency import run_in_threadpool

from spade_deploy.artifact import LABEL
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.inference.style import style_vector
from spade_deploy.serving.problems import HttpError
from spade_deploy.serving.routes import read_body
from spade_deploy.serving.state import Serving, problems

PAGE_FOLDER = Path(__file__).parent / "page"
PAGE_PATH = "/page/"
"""Where the page's files are."""
_INDEX = "index.html"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy: nothing from elsewhere, no script or style inside the page, no frame around it."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@cache
def page_files() -> Mapping[str, bytes]:
    """The page's files by name. Nothing is read from the disk once the server runs."""
    found = {path.name: path.read_bytes() for path in sorted(PAGE_FOLDER.iterdir()) if path.suffix in _MEDIA_TYPES}
    return MappingProxyType(found)


@cache
def page_digest() -> str:
    """16 hexadecimal digits that change whenever one of the files does."""
    total = hashlib.sha256()
    for name, content in page_files().items():
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def add_page(app: FastAPI, serving: Serving) -> None:
    """Add the page and the endpoints that it needs."""
    _add_files(app)

    @app.get(
        "/v1/models/{name}/samples/{number}",
        tags=["images"],
        summary="A label map to start from, as a greyscale PNG of ids",
        response_class=Response,
        responses={200: {"description": "The label map", "content": {"image/png": {}}}, **problems(401, 403, 404)},
    )
    async def sample(name: str, number: int) -> Response:
        model = serving.model(name)
        if not 0 <= number < model.samples:
            raise HttpError(404, f"{name} has no sample {number}", hint=f"it has 0..{model.samples - 1}")
        golden = await run_in_threadpool(model.artifact.golden)
        content = await run_in_threadpool(ids_png, golden.inputs[LABEL][number])
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.post(
        "/v1/models/{name}/style",
        tags=["images"],
        summary="The style vector of a photo",
        responses=problems(400, 401, 403, 404, 408, 413, 422),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def style(name: str, request: Request) -> dict[str, list[float]]:
        model = serving.model(name)
        if not model.has_encoder:
            raise ConfigError(
                f"`style_photo`: {name} has no style encoder", hint="GET /v1/models says which models have one"
            )
        content = await read_body(request, serving.asked.max_bytes)
        photo = ImageBytes("the photo", content, serving.asked.max_pixels)
        vector = await run_in_threadpool(style_vector, model.artifact, None, photo, model.encoder)
        return {"style": [] if vector is None else vector[0].tolist()}


def _add_files(app: FastAPI) -> None:
    folder = f"{PAGE_PATH}{page_digest()}/"
    index = page_files()[_INDEX].replace(b'"./', f'"{folder}'.encode())
    tag = f'"{page_digest()}"'

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(index, media_type="text/html", headers=headers)

    @app.get(PAGE_PATH + "{digest}/{name}", include_in_schema=False)
    async def file(digest: str, name: str) -> Response:
        content = page_files().get(name)
        if content is None or digest != page_digest():
            raise HttpError(404, "the page has no such file", hint="load the page again: it may be of an older version")
        kind = _MEDIA_TYPES[Path(name).suffix]
        headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(content, media_type=kind, headers=headers)


def ids_png(values: NDArray[Any]) -> bytes:
    """Ids H x W -> a greyscale PNG that holds them: 8 bit, or 16 bit where one is above 255."""
    stream = io.BytesIO()
    wide = int(values.max()) > 255
    Image.fromarray(np.ascontiguousarray(values, np.uint16 if wide else np.uint8)).save(stream, "PNG")
    return stream.getvalue()
