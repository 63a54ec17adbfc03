"""A client on bare sockets for `serving_load.py`: requests as they should be, and hostile ones of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spade_deploy.serving.pictures import ids_png
from spade_deploy.spec import GeneratorSpec

Address = tuple[str, int]
BOUNDARY = "part-of-a-form"
CLOSED = 0
"""The status of a connection that the server closes without an answer."""
LEFT = -1
"""The status of a request whose client does not wait for the answer."""
PATIENCE_S = 60.0
"""A request that has no answer after so many seconds is lost."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    """Of the answer; or CLOSED, or LEFT."""
    headers: dict[str, str]
    """Names in small letters."""
    body: bytes
    """The image, or the problem."""
    ms: float
    """Milliseconds from sending the request to the last byte of the answer."""


class Connection:
    """One connection that stays open as long as the server lets it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, address: Address) -> Connection:
        return cls(*await asyncio.open_connection(*address))

    async def ask(self, request: bytes) -> Answer:
        """Send bytes and read one answer. Raises TimeoutError, and OSError where the connection breaks."""
        start = time.perf_counter()
        async with asyncio.timeout(PATIENCE_S):
            self._writer.write(request)
            await self._writer.drain()
            try:
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await self._reader.readexactly(int(headers.get("content-length", 0)))
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise ConnectionResetError("the answer broke off") from error
                return Answer(CLOSED, {}, b"", 0.0)
        return Answer(int(head[0].split()[1]), headers, body, (time.perf_counter() - start) * 1000)

    async def send_and_leave(self, request: bytes) -> None:
        """Send bytes, and break off: the server is told nothing but that the connection is gone."""
        self._writer.write(request)
        await self._writer.drain()
        await asyncio.sleep(0.01)
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the server was first
            await self._writer.wait_closed()


def timing_parts(header: str) -> dict[str, float]:
    """Server-Timing, 'decode;dur=1.2, queue;dur=0.1' -> milliseconds by name."""
    return {name: float(ms) for name, _, ms in (part.strip().partition(";dur=") for part in header.split(","))}


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(body: bytes, kind: str, length: int | None = None) -> bytes:
    """A request for an image. length: what Content-Length claims; the truth if left out."""
    claimed = len(body) if length is None else length
    head = (
        f"POST /v1/synthesize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {claimed}\r\n\r\n"
    )
    return head.encode() + body


def form(file: bytes, **fields: str) -> bytes:
    """A request with a label map as a file of a form. fields: the other parts."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    opening = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="label"; filename="map.png"\r\n\r\n'
    body = b"".join(parts) + opening.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    return post(body, f"multipart/form-data; boundary={BOUNDARY}")


@dataclass(frozen=True)
class Hostile:
    """A request that is not as it should be, and what docs/serving.md says of it."""

    name: str
    content: bytes
    """What is sent."""
    status: int
    """What has to come back."""


def hostile_requests(spec: GeneratorSpec, most_bytes: int, most_pixels: int, right: bytes) -> Sequence[Hostile]:
    """One of every kind. right: a request with which nothing is wrong; parts of it are sent."""
    rng = np.random.default_rng(0)
    noise = bytes(rng.integers(0, 256, 512, np.uint8))
    fits = np.zeros((spec.height, spec.width), np.uint8)
    side = int(most_pixels**0.5) + 1
    png = ids_png(fits)
    return (
        Hostile("bytes that are no HTTP", b"\x16\x03" + noise + b"\r\n\r\n", 400),
        Hostile("JSON that breaks off", post(b'{"label": {"height": 4, "wid', "application/json"), 400),
        Hostile("a form without its end", post(noise, f"multipart/form-data; boundary={BOUNDARY}"), 400),
        Hostile("a model that is not there", form(png, model="none"), 404),
        Hostile("half a body", right[: len(right) - 40], 408),
        Hostile("a body that is too large", post(b"x", "application/json", most_bytes + 1), 413),
        Hostile("a map of too many pixels", form(ids_png(np.zeros((side, side), np.uint8))), 413),
        Hostile("text", post(b"hello", "text/plain"), 415),
        Hostile("a file of noise", form(noise), 422),
        Hostile("a PNG that breaks off", form(png[: len(png) // 2]), 422),
        Hostile("ids out of range", form(ids_png(np.full_like(fits, 254))), 422),
        Hostile("a size that does not fit", form(png, size=f"{spec.height + 1}x{spec.width}"), 422),
        Hostile("a client that goes after its request", right, LEFT),
        Hostile("a client that goes within its request", right[: len(right) // 2], LEFT),
        Hostile("a connection that sends nothing", b"", CLOSED),
    )


async def send_hostile(address: Address, one: Hostile) -> Answer:
    """Send a hostile request over a connection of its own."""
    connection = await Connection.to(address)
    if one.status == LEFT:
        await connection.send_and_leave(one.content)
        return Answer(LEFT, {}, b"", 0.0)
    try:
        return await connection.ask(one.content)
    finally:
        await connection.close()
