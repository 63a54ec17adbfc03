"""The paint page at `/`, and what it asks for besides images: label maps to start from, and the style of a photo.

The page's files are served below an address that holds their digest, so a browser may keep them for ever and still gets
the new ones after an update. The page itself is asked for each time.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response

from spade_deploy.artifact import LABEL
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.inference.style import style_vector
from spade_deploy.serving.page_files import INDEX, MEDIA_TYPES, POLICY, page_digest, page_files
from spade_deploy.serving.pictures import ids_png
from spade_deploy.serving.problems import HttpError
from spade_deploy.serving.routes import read_body
from spade_deploy.serving.state import Serving, problems

PAGE_PATH = "/page/"
"""Where the page's files are."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def add_page(app: FastAPI, serving: Serving) -> None:
    """Add the page and the endpoints that it needs."""
    _add_files(app)

    @app.get(
        "/v1/models/{name}/samples/{number}",
        tags=["images"],
        summary="A label map to start from, as a greyscale PNG of ids",
        response_class=Response,
        responses={200: {"description": "The label map", "content": {"image/png": {}}}, **problems(401, 404, 422)},
    )
    async def sample(name: str, number: int) -> Response:
        model = serving.model(name)
        if not 0 <= number < model.samples:
            raise HttpError(404, f"{name} has no sample {number}", hint=f"it has 0..{model.samples - 1}")
        golden = await serving.in_thread(model.artifact.golden)
        content = await serving.in_thread(ids_png, golden.inputs[LABEL][number])
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.post(
        "/v1/models/{name}/style",
        tags=["images"],
        summary="The style vector of a photo",
        responses=problems(401, 404, 408, 413, 415, 422),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def style(name: str, request: Request) -> dict[str, list[float]]:
        model = serving.model(name)
        if not model.has_encoder or model.spec.z_dim is None:
            raise ConfigError(
                f"`style_photo`: {name} has no style encoder", hint="GET /v1/models says which models have one"
            )
        content = await read_body(request, serving.asked.max_bytes)
        photo = ImageBytes("the photo", content, serving.asked.max_pixels)
        vector = await serving.in_thread(style_vector, model.artifact, None, photo, model.encoder)
        return {"style": [] if vector is None else vector[0].tolist()}


def _add_files(app: FastAPI) -> None:
    folder = f"{PAGE_PATH}{page_digest()}/"
    index = page_files()[INDEX].replace(b'"./', f'"{folder}'.encode())
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
        kind = MEDIA_TYPES[Path(name).suffix]
        headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(content, media_type=kind, headers=headers)
