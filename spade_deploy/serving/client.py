"""A client for `spade serve` that needs nothing but Python: copy this file to where you need it.
png = Client("http://127.0.0.1:8000").synthesize(Path("map.png").read_bytes(), seed=3)"""

import base64
import json
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen


class ServerError(Exception):
    """The server refused a request: `status`, and `problem`, the members of its application/problem+json."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(" ".join(str(problem[name]) for name in ("detail", "hint") if problem.get(name)))
        self.status, self.problem = status, problem


class Client:
    """Asks one server, and edits one drawing. tries: how often a request is sent while the server says it is busy."""

    def __init__(self, url: str, token: str = "", timeout: float = 90.0, tries: int = 5) -> None:
        self.url, self.timeout, self.tries = url.rstrip("/"), timeout, tries
        self.drawing: dict[str, Any] = {}
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def models(self) -> list[dict[str, Any]]:
        """The models: names, labels with colours, sizes, styles."""
        return list(json.loads(self._send("/v1/models", None)[0])["models"])

    def synthesize(self, label: bytes, instance: bytes | None = None, **fields: Any) -> bytes:
        """The bytes of a photo. label, instance: PNG files. fields: see /openapi.json. Raises ServerError, OSError."""
        return self._send("/v1/synthesize", {"label": label, "instance": instance, **fields})[0]

    def edit(self, label: bytes, patches: list[dict[str, Any]], instance: bytes | None = None, **fields: Any) -> bytes:
        """The photo of the drawing's next map. patches: what is new in it since the last call, in rectangles {x, y,
        height, width, runs}. label, instance: the whole maps, sent where the server does not hold the one before."""
        drawing, self.drawing = self.drawing, {}  # after an error nobody knows which map the server holds
        whole = {"label": label, "instance": instance, **{n: v for n, v in fields.items() if n != "instance_patches"}}
        photo, told = self._send("/v1/edits", {**drawing, "patches": patches, **fields} if drawing else whole, whole)
        self.drawing = {"drawing": told["Drawing"], "base": int(told["Drawing-Version"])}
        return photo

    def _send(self, path: str, fields: Any, if_unknown: Any = None, tried: int = 1) -> tuple[bytes, Any]:
        body = fields and json.dumps(fields, default=lambda png: base64.b64encode(png).decode()).encode()
        try:
            with urlopen(Request(self.url + path, body, self.headers), timeout=self.timeout) as answer:
                return answer.read(), answer.headers
        except HTTPError as error:
            if error.code == 409 and if_unknown:  # the server does not hold the drawing's map before
                return self._send(path, if_unknown)
            content, is_problem = error.read(), "json" in error.headers.get("Content-Type", "")  # no JSON: a proxy's
            if tried >= self.tries or error.code not in ((429, 503) if is_problem else (429, 500, 502, 503, 504)):
                raise ServerError(error.code, json.loads(content) if is_problem else {"detail": str(error)}) from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except HTTPException as error:  # the connection ended in the middle of the answer
            raise ConnectionError(f"{self.url}{path}: the answer was cut off ({error})") from error
        return self._send(path, fields, if_unknown, tried + 1)
