"""The WebSocket of a page that draws: right images, the newest map wins, and problems name the message."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.served import pixels_of, png, right_pixels, served_app, some_map
from tests.support.stand_in import PLAIN, STYLED

testclient = pytest.importorskip("starlette.testclient", reason="pip install 'spade-deploy[serve]' httpx")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return served_app(tmp_path_factory.mktemp("live"), max_pixels=64 * 64)


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[Any]:
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found


def message(number: int, label: np.ndarray[Any, Any] | bytes, **fields: Any) -> bytes:
    sent = label if isinstance(label, bytes) else png(label)
    return json.dumps({"id": number, **fields}).encode() + b"\n" + sent


def image_of(answer: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    head, _, content = answer["bytes"].partition(b"\n")
    return json.loads(head), pixels_of(content)


def connected(client: Any) -> Any:
    return client.websocket_connect("/v1/live", subprotocols=["spade.v1"], headers={"host": "127.0.0.1:8000"})


def test_a_map_becomes_the_right_image(client: Any) -> None:
    label = some_map(PLAIN)
    with connected(client) as socket:
        assert socket.accepted_subprotocol == "spade.v1"
        socket.send_bytes(message(1, label, format="png"))
        head, pixels = image_of(socket.receive())
        assert (head["id"], head["media_type"]) == (1, "image/png")
        assert head["timing"].startswith("decode;dur=")
        np.testing.assert_array_equal(pixels, right_pixels(PLAIN, label))
        socket.send_bytes(message(2, some_map(STYLED), model="styled", style=[0.5, 0.5], format="png"))
        _, pixels = image_of(socket.receive())
        np.testing.assert_array_equal(pixels, right_pixels(STYLED, some_map(STYLED), style=np.array([0.5, 0.5])))


def test_problems_name_the_message_and_the_page_goes_on(client: Any) -> None:
    with connected(client) as socket:
        for content, number, status, said in (
            (message(1, b"no image"), 1, 422, "not an image file"),
            (message(2, np.full((64, 32), 9)), 2, 422, "ids out of range"),
            (message(3, np.zeros((128, 128))), 3, 413, "128 x 128 pixels"),
            (message(4, some_map(PLAIN), model="x"), 4, 404, "there is no model 'x'"),
            (message(5, some_map(PLAIN), colour=1), 5, 422, "`colour` is not a field"),
            (b"no line of JSON", None, 400, "line of JSON"),
            (b"[1]\n", None, 400, "not an object"),
        ):
            socket.send_bytes(content)
            problem = json.loads(socket.receive()["text"])
            assert (problem["id"], problem["status"]) == (number, status)
            assert said in problem["detail"]
        socket.send_text("hello")
        assert json.loads(socket.receive()["text"])["detail"] == "a message has to be binary, but a text came"
        socket.send_bytes(message(9, some_map(PLAIN), format="png"))
        assert image_of(socket.receive())[0]["id"] == 9


def test_the_newest_map_wins(app: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = app.state.serving.models["plain"]
    go, begun = threading.Event(), threading.Event()
    runs: list[int] = []
    usual = model.runtime.run

    def slow(inputs: Any, names: Any = None) -> Any:
        runs.append(int(inputs["label"][0, 0, 0]))
        begun.set()
        assert go.wait(20)
        return usual(inputs, names)

    monkeypatch.setattr(model.runtime, "run", slow)
    maps = [np.full((64, 32), value, np.uint8) for value in range(5)]
    with connected(client) as socket:
        socket.send_bytes(message(0, maps[0], format="png"))
        assert begun.wait(20)
        for number in (1, 2, 3):
            socket.send_bytes(message(number, maps[number], format="png"))
        overtaken = {json.loads(socket.receive()["text"])["id"] for _ in range(2)}
        go.set()
        received = [image_of(socket.receive()) for _ in range(2)]
    answers = {head["id"]: pixels for head, pixels in received}  # whichever is encoded first comes first
    assert overtaken == {1, 2}
    assert set(answers) == {0, 3}
    assert runs == [0, 3], "what was overtaken never ran"
    for number, pixels in answers.items():
        np.testing.assert_array_equal(pixels, right_pixels(PLAIN, maps[number]))


def edit(number: int, base: Any, patches: Any, **fields: Any) -> bytes:
    return message(number, b"", base=base, patches=patches, **{"format": "png", **fields})


def one_pixel(value: int, **fields: int) -> dict[str, Any]:
    return {"x": 0, "y": 0, "height": 1, "width": 1, "runs": [value, 1], **fields}


def test_edits_make_the_images_of_the_whole_maps(app: Any, client: Any) -> None:
    drawings = app.state.serving.drawings
    before = len(drawings)
    label = some_map(PLAIN)
    with connected(client) as socket:
        socket.send_bytes(message(1, label, format="png"))
        image_of(socket.receive())
        for number in range(2, 7):
            label[number : number + 3, 4:20] = number % 5
            patch = {"x": 4, "y": number, "height": 3, "width": 16, "runs": [number % 5, 48]}
            socket.send_bytes(edit(number, number - 1, [patch], model="plain"))
            head, pixels = image_of(socket.receive())
            assert head["id"] == number
            np.testing.assert_array_equal(pixels, right_pixels(PLAIN, label))
        assert len(drawings) == before + 1, "a page has one drawing"
    assert len(drawings) == before


def test_edits_that_build_on_another_map_are_refused(app: Any, client: Any) -> None:
    label = some_map(PLAIN)
    with connected(client) as socket:

        def refusal(content: bytes) -> tuple[int, int]:
            socket.send_bytes(content)
            problem = json.loads(socket.receive()["text"])
            return problem["id"], problem["status"]

        assert refusal(edit(1, 0, [])) == (1, 409), "there is no map yet"
        socket.send_bytes(message(2, label, format="png"))
        image_of(socket.receive())
        assert refusal(edit(3, 1, [one_pixel(4)])) == (3, 409)
        assert refusal(edit(4, 2, [one_pixel(9)])) == (4, 422)
        assert refusal(edit(5, 4, [])) == (5, 409), "the one before was refused"
        assert refusal(edit(6, 2, [], model="edges")) == (6, 422)
        assert refusal(edit(7, "2", [])) == (7, 422)
        assert refusal(message(8, label, base=2, patches=[])) == (8, 422), "a map and an edit at once"
        socket.send_bytes(edit(9, 2, [one_pixel(4)]))
        label[0, 0] = 4
        np.testing.assert_array_equal(image_of(socket.receive())[1], right_pixels(PLAIN, label))
        app.state.serving.drawings.drop(next(reversed(app.state.serving.drawings._held)))
        assert refusal(edit(10, 9, [])) == (10, 409), "the server has let it go"
        socket.send_bytes(json.dumps({"id": "text", "format": "png"}).encode() + b"\n" + png(label))
        image_of(socket.receive())
        assert refusal(edit(11, 9, [])) == (11, 409), "no edit builds on a map without a number"


def test_edits_that_are_overtaken_are_in_the_next_image(app: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = app.state.serving.models["plain"]
    go, begun = threading.Event(), threading.Event()
    runs = []
    usual = model.runtime.run

    def slow(inputs: Any, names: Any = None) -> Any:
        runs.append(inputs)
        begun.set()
        assert go.wait(20)
        return usual(inputs, names)

    monkeypatch.setattr(model.runtime, "run", slow)
    label = some_map(PLAIN)
    with connected(client) as socket:
        socket.send_bytes(message(0, label, format="png"))
        assert begun.wait(20)
        for number in range(1, 8):
            label[number, number] = (label[number, number] + 1) % 5
            socket.send_bytes(edit(number, number - 1, [one_pixel(int(label[number, number]), x=number, y=number)]))
        overtaken = {json.loads(socket.receive()["text"])["id"] for _ in range(6)}
        go.set()
        answers = {head["id"]: pixels for head, pixels in (image_of(socket.receive()) for _ in range(2))}
    assert overtaken == set(range(1, 7))
    assert set(answers) == {0, 7}
    assert len(runs) == 2
    np.testing.assert_array_equal(answers[7], right_pixels(PLAIN, label))


def test_an_engine_that_fails_is_told_and_the_page_goes_on(
    app: Any, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = app.state.serving.models["plain"]
    with connected(client) as socket:
        with monkeypatch.context() as patch:
            patch.setattr(model.runtime, "run", lambda *_: 1 / 0)
            socket.send_bytes(message(1, some_map(PLAIN)))
            problem = json.loads(socket.receive()["text"])
        assert (problem["id"], problem["status"]) == (1, 500)
        assert "division by zero" not in problem["detail"]
        assert "division by zero" in caplog.text
        socket.send_bytes(message(2, some_map(PLAIN), format="png"))
        np.testing.assert_array_equal(image_of(socket.receive())[1], right_pixels(PLAIN, some_map(PLAIN)))


def test_other_pages_and_missing_tokens_are_turned_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    app = served_app(tmp_path_factory.mktemp("guarded"), token="t" * 20)
    closed = pytest.importorskip("starlette.websockets").WebSocketDisconnect
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        host = {"host": "127.0.0.1:8000"}
        for headers, protocols in (
            (host, ["spade.v1"]),
            (host, ["spade.v1", "spade.token." + "u" * 20]),
            ({**host, "origin": "https://evil.example"}, ["spade.v1", "spade.token." + "t" * 20]),
        ):
            with (
                pytest.raises(closed) as caught,
                client.websocket_connect("/v1/live", subprotocols=protocols, headers={**headers}),
            ):
                pass
            assert caught.value.code == 1008
        with client.websocket_connect(
            "/v1/live", subprotocols=["spade.v1", "spade.token." + "t" * 20], headers={**host}
        ) as one:
            one.send_bytes(message(1, some_map(PLAIN)))
            assert image_of(one.receive())[0]["id"] == 1
