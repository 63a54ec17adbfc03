"""A client for `spade serve` that needs nothing but Python: copy this file to where you need it.

client = Client("http://127.0.0.1:8000")
png = client.synthesize(Path("map.png").read_bytes(), seed=3)
png = client.edit(Path("next.png").read_bytes(), [{"x": 8, "y": 4, "height": 2, "width": 3, "runs": [2, 6]}])
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from typing import Any


class ServerError(Exception):
    """The server refused a request. `problem` holds the members of its application/problem+json."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(" ".join(str(problem[name]) for name in ("detail", "hint") if problem.get(name)))
        self.status, self.problem = status, problem


class Client:
    """Asks one server, and edits one drawing. tries: how often a request is sent while the server says that it is busy,
    or a proxy says that the server died."""

    def __init__(self, url: str, token: str = "", timeout: float = 90.0, tries: int = 5) -> None:
        self.url, self.timeout, self.tries = url.rstrip("/"), timeout, tries
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.drawing: dict[str, Any] = {}

    def models(self) -> list[dict[str, Any]]:
        """The models: names, labels with colours, sizes, styles."""
        models: list[dict[str, Any]] = json.loads(self._send("GET", "/v1/models")[0])["models"]
        return models

    def synthesize(self, label: bytes, instance: bytes | None = None, **fields: Any) -> bytes:
        """The bytes of a photo. label, instance: the bytes of PNG files. fields: model, seed, style, size, format,
        quality; see /openapi.json. Raises ServerError, and OSError where there is no server."""
        return self._send("POST", "/v1/synthesize", _body(label, instance, fields))[0]

    def edit(self, label: bytes, patches: list[dict[str, Any]], instance: bytes | None = None, **fields: Any) -> bytes:
        """The photo of the drawing's next map. patches: what is new in it since the last call, in rectangles {x, y,
        height, width, runs}. label, instance: the whole maps, sent where the server does not hold the one before."""
        drawing, self.drawing = self.drawing, {}  # after an error nobody knows which map the server holds
        bodies = [_body(label, instance, fields)]
        if drawing:
            bodies.insert(0, json.dumps({**drawing, "patches": patches, **fields}).encode())
        for body in bodies:
            try:
                photo, told = self._send("POST", "/v1/edits", body)
            except ServerError as error:
                if error.status != 409:
                    raise
            else:
                self.drawing = {"drawing": told["Drawing"], "base": int(told["Drawing-Version"])}
                return photo
        raise AssertionError("a whole map builds on nothing")

    def _send(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, Any]:
        headers = {**self.headers, "Content-Type": "application/json"}
        for left in reversed(range(self.tries)):
            request = urllib.request.Request(self.url + path, body, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    content: bytes = answer.read()
                    return content, answer.headers
            except urllib.error.HTTPError as error:
                content = error.read()
                is_problem = "json" in error.headers.get("Content-Type", "")
                # A proxy in front of several servers has no problem to tell of: the server behind it died.
                is_lost = error.code in (500, 502, 504) and not is_problem
                if not left or not (error.code in (429, 503) or is_lost):
                    raise ServerError(
                        error.code, json.loads(content) if is_problem else {"detail": str(error)}
                    ) from None
                time.sleep(float(error.headers.get("Retry-After", 1)))
        raise AssertionError("the loop returns or raises")


def _body(label: bytes, instance: bytes | None, fields: dict[str, Any]) -> bytes:
    maps = {"label": label, **({} if instance is None else {"instance": instance})}
    body = {**fields, **{name: base64.b64encode(png).decode() for name, png in maps.items()}}
    return json.dumps({name: value for name, value in body.items() if name != "instance_patches"}).encode()
