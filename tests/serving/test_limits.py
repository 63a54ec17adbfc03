"""What a full, a busy and an ending server answers, over real connections, while its runtime is held up."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import LABEL, PIXELS, Arrays
from spade_deploy.spec import Precision
from tests.support.requests import runs_of
from tests.support.served import pixels_of, png, right_pixels, some_map
from tests.support.stand_in import PLAIN, expected, stand_in_artifact

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

import uvicorn
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from spade_deploy.serving.app import make_app
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.run import _config, _listening
from spade_deploy.serving.runner import BatchRule

QUEUE = 3
MOST_BYTES = 2048
TOKEN = "a" * 20


class Held:
    """A runtime that makes a stand-in's images once it may go on, and remembers which maps it ran."""

    name, precision, patterns_s = "held", Precision.FP32, None

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ran: list[int] = []

    def run(self, inputs: Mapping[str, Any], output_names: Sequence[str] | None = None) -> Arrays:
        self.begun.release()
        assert self.go.wait(30)
        self.ran.append(int(inputs[LABEL][0, 0, 0]))
        return {PIXELS: expected(PLAIN, inputs)[PIXELS]}


class HeldServer:
    """A server with such a runtime."""

    def __init__(self, folder: Path, token: str = "", **asked: Any) -> None:
        self.runtime = Held()
        model = ServedModel("held", stand_in_artifact(folder, PLAIN), self.runtime, BatchRule())  # type: ignore[arg-type]
        request = ServeRequest(port=0, **asked)
        self.app = make_app({"held": model}, request, token)
        listening = _listening(request)
        self.address: tuple[str, int] = listening.getsockname()
        self._server = uvicorn.Server(_config(self.app, request))
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        self.until(lambda: self._server.started)
        self._pool = ThreadPoolExecutor(16)

    @property
    def waiting(self) -> int:
        return int(self.app.state.serving.runner.waiting)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.005)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def synthesize(self, number: int, size: int = 0) -> Any:
        """The answer to come for the map `of(number)`, in a body of so many bytes."""
        return self._pool.submit(
            self.ask, "POST", "/v1/synthesize", body_of(number, size), Content_Type="application/json"
        )

    def hold_up(self) -> Any:
        """Let the runtime begin the map 0, and stay there."""
        found = self.synthesize(0)
        assert self.runtime.begun.acquire(timeout=30)
        return found

    def fill(self, numbers: Sequence[int]) -> list[Any]:
        """Queue these maps one after another."""
        found = []
        for number in numbers:
            before = self.waiting
            found.append(self.synthesize(number))
            self.until(lambda before=before: self.waiting > before)  # type: ignore[misc]
        return found

    def stop(self) -> None:
        self.runtime.go.set()
        self._server.should_exit = True
        self._thread.join(30)
        self._pool.shutdown()


def of(number: int) -> np.ndarray[Any, Any]:
    """The map of one class."""
    return np.full((PLAIN.height, PLAIN.width), number, np.uint8)


def body_of(number: int, size: int = 0) -> bytes:
    return json.dumps({"label": runs_of(of(number))}).encode().ljust(size)


def is_right(answer: Any, number: int) -> None:
    status, headers, content = answer.result(30)
    assert (status, headers["content-type"]) == (200, "image/png"), content
    np.testing.assert_array_equal(pixels_of(content), right_pixels(PLAIN, of(number)))


def problem_of(answer: tuple[int, Any, bytes], status: int, said: str) -> Any:
    """The headers of a refusal that is as it should be."""
    assert answer[0] == status, answer[2]
    assert answer[1]["content-type"] == "application/problem+json"
    problem = json.loads(answer[2])
    assert problem["status"] == status
    assert said in problem["detail"]
    assert problem["hint"]
    return answer[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HeldServer]:
    found = HeldServer(tmp_path, queue=QUEUE, max_bytes=MOST_BYTES)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldServer]:
    """A server whose runtime is not held up."""
    found = HeldServer(tmp_path_factory.mktemp("quick"))
    found.runtime.go.set()
    yield found
    found.stop()


def test_a_full_queue_refuses_with_429_and_says_when_to_come_again(server: HeldServer) -> None:
    first = server.hold_up()
    queued = server.fill([1, 2, 3])
    for size in (0, MOST_BYTES + 1):  # nothing of the body is looked at
        headers = problem_of(server.synthesize(4, size).result(30), 429, "3 requests are already waiting")
        assert 1 <= int(headers["retry-after"]) <= 60
    status, headers, content = server.ask("GET", "/readyz")
    assert (status, json.loads(content)["detail"]) == (503, "the queue is full")
    assert int(headers["retry-after"]) >= 1
    assert server.ask("GET", "/healthz")[0] == 200
    server.runtime.go.set()
    for number, answer in enumerate([first, *queued]):
        is_right(answer, number)
    assert server.runtime.ran == [0, 1, 2, 3]
    assert server.ask("GET", "/readyz")[0] == 200
    is_right(server.synthesize(4), 4)


def test_a_queued_request_whose_client_goes_never_runs_and_makes_room(server: HeldServer) -> None:
    first = server.hold_up()
    leaver = socket.create_connection(server.address, timeout=30)
    body = body_of(4)
    leaver.sendall(
        b"POST /v1/synthesize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    server.until(lambda: server.waiting == 1)
    queued = server.fill([1, 2])
    assert server.ask("GET", "/readyz")[0] == 503
    leaver.close()
    server.until(lambda: server.ask("GET", "/readyz")[0] == 200)
    queued.append(server.synthesize(3))
    server.until(lambda: server.waiting == QUEUE)
    server.runtime.go.set()
    for number, answer in enumerate([first, *queued]):
        is_right(answer, number)
    assert server.runtime.ran == [0, 1, 2, 3]


def test_a_request_whose_time_is_over_gets_503_and_never_runs(tmp_path: Path) -> None:
    server = HeldServer(tmp_path, timeout=1.5)
    try:
        first, late = server.hold_up(), server.synthesize(1)
        for answer in (first, late):
            headers = problem_of(answer.result(30), 503, "was not ready in time")
            assert int(headers["retry-after"]) >= 1
        server.runtime.go.set()
        is_right(server.synthesize(2), 2)
        assert server.runtime.ran == [0, 2]
    finally:
        server.stop()


def test_bodies_that_together_hold_too_much_get_503_until_others_are_answered(tmp_path: Path) -> None:
    server = HeldServer(tmp_path, max_bytes=MOST_BYTES)
    try:
        held = [server.hold_up()]
        for number in range(8):  # eight times max_bytes may be held, and the first body is small
            held.append(server.synthesize(1, MOST_BYTES - 40))
            server.until(lambda number=number: server.waiting == number + 1)  # type: ignore[misc]
        assert server.app.state.serving.budget.held == len(body_of(0)) + 8 * (MOST_BYTES - 40)
        headers = problem_of(
            server.synthesize(2, MOST_BYTES).result(30), 503, "the memory for the bodies of requests is full"
        )
        assert int(headers["retry-after"]) >= 1
        server.runtime.go.set()
        for answer in held[1:]:
            is_right(answer, 1)
        server.until(lambda: server.app.state.serving.budget.held == 0)
        is_right(server.synthesize(2, MOST_BYTES), 2)
        assert server.runtime.ran == [0, *[1] * 8, 2]
    finally:
        server.stop()


def half_a_message(server: HeldServer, size: int) -> socket.socket:
    """A WebSocket on which so many bytes of a message of 2,000 have come."""
    host, port = server.address[:2]
    found = connect(f"ws://{host}:{port}/v1/live", subprotocols=[Subprotocol("spade.v1")], compression=None).socket
    before = server.app.state.serving.budget.held
    found.sendall(b"\x82\xfe" + (2000).to_bytes(2, "big") + bytes(4) + bytes(size - 8))
    server.until(lambda: server.app.state.serving.budget.held != before)
    return found


def test_bodies_and_messages_of_pages_share_one_budget(tmp_path: Path) -> None:
    server = HeldServer(tmp_path, max_bytes=MOST_BYTES)
    budget = server.app.state.serving.budget
    server.runtime.go.set()
    try:
        assert budget.most == 8 * MOST_BYTES
        pages = []
        for number in range(8):
            pages.append(half_a_message(server, 1900))
            assert budget.held == (number + 1) * 1900
        for _ in range(2):  # 15,200 of 16,384 bytes are held
            headers = problem_of(
                server.synthesize(1, 1500).result(30), 503, "the memory for the bodies of requests is full"
            )
            assert int(headers["retry-after"]) >= 1
            assert budget.held == 8 * 1900
        host, port = server.address[:2]
        with connect(f"ws://{host}:{port}/v1/live", compression=None) as late:
            late.send(bytes(1500))
            with pytest.raises(ConnectionClosedError) as closed:
                late.recv(timeout=30)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
                1013,
                "the memory for the bodies of requests is full",
            )
        assert budget.held == 8 * 1900
        pages[0].sendall(bytes(108))  # the rest of its message, which is no request
        server.until(lambda: budget.held == 7 * 1900)
        is_right(server.synthesize(1, 1500), 1)
        for page in pages:
            page.close()
        server.until(lambda: budget.held == 0)
    finally:
        server.stop()


def test_a_page_that_would_hold_too_much_is_closed(tmp_path: Path) -> None:
    server = HeldServer(tmp_path, max_bytes=MOST_BYTES)
    others = server.app.state.serving.budget.share()
    server.runtime.go.set()
    try:
        host, port = server.address[:2]
        label = b'{"id": 1, "format": "png"}\n' + png(some_map(PLAIN))
        with connect(f"ws://{host}:{port}/v1/live", compression=None) as page:
            page.send(label)
            assert b'"id": 1' in page.recv(timeout=30)  # type: ignore[operator]
            server.until(lambda: server.app.state.serving.budget.held == 0)
            assert others.take(8 * MOST_BYTES - len(label) - 8)  # its message fits, the photo does not
            page.send(label)
            with pytest.raises(ConnectionClosedError) as closed:
                page.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        server.until(lambda: server.app.state.serving.budget.held == others.held)
        others.close()
        assert server.app.state.serving.budget.held == 0
    finally:
        server.stop()


def raw(server: HeldServer, content: bytes) -> bytes:
    """What the server answers to these bytes until it closes the connection."""
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(content)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it closed before it had read everything
            while part := connection.recv(65536):
                answer += part
    return answer


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POSTED = b"POST /v1/synthesize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
        POSTED + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        POSTED + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
    ids=["noise", "two lengths", "a broken part"],
)
def test_what_is_no_request_gets_400_and_the_connection_is_closed(quick_server: HeldServer, content: bytes) -> None:
    answer = raw(quick_server, content)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), answer
    assert b"application/problem+json" in head
    assert json.loads(body)["detail"] == "what was sent is no HTTP/1.1 request"


@pytest.mark.parametrize(
    "content",
    [
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nLong: " + b"x" * 300_000,
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nLong: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 300_000,
    ],
    ids=["an endless header", "a long header", "an endless path"],
)
def test_headers_that_are_too_long_are_named(quick_server: HeldServer, content: bytes) -> None:
    head, _, body = raw(quick_server, content).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), head
    problem = json.loads(body)
    assert problem["status"] == 431
    assert problem["detail"] == "first line, headers and trailers have more than 65,536 bytes"


def test_a_crowd_of_connections_is_refused_but_the_state_is_still_told(quick_server: HeldServer) -> None:
    """A probe of the state that fails makes Kubernetes end a process that works."""
    most = 4 * quick_server.app.state.serving.asked.queue + 256
    crowd = [socket.create_connection(quick_server.address) for _ in range(most + 1)]
    try:
        status, _, content = quick_server.ask("GET", "/metrics")
        assert (status, json.loads(content)["detail"]) == (503, "too many connections are open")
        for path in ("/healthz", "/readyz"):
            assert quick_server.ask("GET", path)[0] == 200
    finally:
        for one in crowd:
            one.close()
    quick_server.until(lambda: quick_server.ask("GET", "/metrics")[0] == 200)


def test_what_follows_the_body_of_a_request_without_end_is_cut_off(quick_server: HeldServer) -> None:
    answer = raw(quick_server, POSTED + b"Transfer-Encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\nLong: " + b"x" * 700_000)
    assert answer.startswith(b"HTTP/1.1 431 "), answer


def test_requests_that_are_sent_ahead_are_answered_in_order(quick_server: HeldServer) -> None:
    bodies = [body_of(number) for number in range(4)]
    ahead = b"".join(POSTED + b"Content-Length: %d\r\n\r\n%s" % (len(one), one) for one in bodies)
    answer = raw(quick_server, ahead + b"no HTTP\r\n\r\n")  # what is broken takes no answer away
    parts = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(parts) == 4, answer
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(pixels_of(part.partition(b"\r\n\r\n")[2]), right_pixels(PLAIN, of(number)))
    answer = raw(quick_server, HEALTH * 5000)  # no more than a few may wait
    assert 1 <= answer.count(b"HTTP/1.1 200 OK") < 5000


def test_a_server_that_goes_down_finishes_what_waits_and_takes_nothing_new(server: HeldServer) -> None:
    serving = server.app.state.serving
    first = server.hold_up()
    queued = server.fill([1, 2])
    serving.is_ready = False
    ending = threading.Thread(target=serving.runner.close, kwargs={"drain_s": 30})
    ending.start()
    server.until(lambda: server.synthesize(3).result(30)[0] == 503)
    headers = problem_of(server.synthesize(3).result(30), 503, "the server is shutting down")
    assert int(headers["retry-after"]) >= 1
    status, _, content = server.ask("GET", "/readyz")
    assert (status, json.loads(content)["detail"]) == (503, "the server is shutting down")
    assert server.ask("GET", "/healthz")[0] == 200
    server.runtime.go.set()
    for number, answer in enumerate([first, *queued]):
        is_right(answer, number)
    ending.join(30)
    assert server.runtime.ran == [0, 1, 2]


def test_a_preflight_needs_no_token_and_the_request_after_it_does(tmp_path: Path) -> None:
    server = HeldServer(tmp_path, TOKEN, cors=("https://example.org",))
    server.runtime.go.set()
    try:
        page = {"Origin": "https://example.org"}
        preflight = {**page, "Access_Control_Request_Method": "POST"}
        wants = {"Access_Control_Request_Headers": "authorization, content-type"}
        status, headers, _ = server.ask("OPTIONS", "/v1/synthesize", **preflight, **wants)
        assert status == 200
        assert headers["access-control-allow-origin"] == "https://example.org"
        assert "POST" in headers["access-control-allow-methods"]
        assert {"authorization", "content-type"} <= set(headers["access-control-allow-headers"].lower().split(", "))
        sent = {**page, "Content_Type": "application/json"}
        status, headers, _ = server.ask("POST", "/v1/synthesize", body_of(1), **sent)
        assert status == 401
        assert headers["access-control-allow-origin"] == "https://example.org", "the page may read why"
        status, headers, content = server.ask(
            "POST", "/v1/synthesize", body_of(1), **sent, Authorization=f"Bearer {TOKEN}"
        )
        assert status == 200
        assert "Retry-After" in headers["access-control-expose-headers"]
        np.testing.assert_array_equal(pixels_of(content), right_pixels(PLAIN, of(1)))
        other = {**preflight, "Origin": "https://evil.example"}
        status, headers, _ = server.ask("OPTIONS", "/v1/synthesize", **other, **wants)
        assert status == 403
        assert headers["access-control-allow-origin"] is None
        assert server.ask("OPTIONS", "/v1/synthesize")[0] == 401, "without an origin it is no preflight"
    finally:
        server.stop()
