"""Requests to the HTTP interface: maps in every form that it reads, and the Python client's answered by an app."""

from __future__ import annotations

import base64
import io
from email.message import Message
from itertools import pairwise
from typing import Any
from urllib.error import HTTPError

import numpy as np


def form(label: bytes, **fields: str) -> dict[str, Any]:
    return {"files": {"label": ("map.png", label)}, "data": fields}


def body(label: Any, **fields: Any) -> dict[str, Any]:
    if isinstance(label, bytes):
        label = base64.b64encode(label).decode()
    return {"json": {"label": label, **fields}}


def runs_of(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    pairs = [(int(flat[a]), int(b - a)) for a, b in pairwise(starts)]
    return {"height": values.shape[0], "width": values.shape[1], "runs": [part for pair in pairs for part in pair]}


class SentBy:
    """Takes the place of `urlopen`: the requests of the Python client are answered by an app, and their bodies kept."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.bodies: list[bytes] = []

    def __call__(self, request: Any, timeout: float) -> Any:
        assert timeout == 90.0
        self.bodies.append(request.data)
        answer = self._client.request(
            request.get_method(), request.full_url, content=request.data, headers=request.headers
        )
        if answer.status_code >= 400:
            headers = Message()
            headers["Content-Type"] = answer.headers["content-type"]
            raise HTTPError(request.full_url, answer.status_code, "refused", headers, io.BytesIO(answer.content))
        return Answered(answer)


class Answered:
    """An answer as `urlopen` gives it."""

    def __init__(self, answer: Any) -> None:
        self._answer, self.headers = answer, answer.headers

    def __enter__(self) -> Answered:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> bytes:
        return bytes(self._answer.content)
