"""A client for `spade serve` that needs nothing but Python: copy this file to where you need it.

client = Client("http://127.0.0.1:8000")
png = client.synthesize(Path("map.png").read_bytes(), seed=3)
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
    """Asks one server. tries: how often a request is sent while the server says that it is busy (429, 503)."""

    def __init__(self, url: str, token: str = "", timeout: float = 90.0, tries: int = 5) -> None:
        self.url, self.timeout, self.tries = url.rstrip("/"), timeout, tries
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def models(self) -> list[dict[str, Any]]:
        """The models: names, labels with colours, sizes, styles."""
        models: list[dict[str, Any]] = json.loads(self._send("GET", "/v1/models"))["models"]
        return models

    def synthesize(self, label: bytes, instance: bytes | None = None, **fields: Any) -> bytes:
        """The bytes of a photo. label, instance: the bytes of PNG files. fields: model, seed, style, size, format,
        quality; see /openapi.json. Raises ServerError, and OSError where there is no server."""
        body: dict[str, Any] = {"label": base64.b64encode(label).decode(), **fields}
        if instance is not None:
            body["instance"] = base64.b64encode(instance).decode()
        return self._send("POST", "/v1/synthesize", json.dumps(body).encode())

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {**self.headers, "Content-Type": "application/json"}
        for left in reversed(range(self.tries)):
            request = urllib.request.Request(self.url + path, body, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    content: bytes = answer.read()
                    return content
            except urllib.error.HTTPError as error:
                content = error.read()
                if error.code not in (429, 503) or not left:
                    is_problem = "json" in error.headers.get("Content-Type", "")
                    raise ServerError(
                        error.code, json.loads(content) if is_problem else {"detail": str(error)}
                    ) from None
                time.sleep(float(error.headers.get("Retry-After", 1)))
        raise AssertionError("the loop returns or raises")
