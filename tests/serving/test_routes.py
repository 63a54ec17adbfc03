"""The HTTP interface: every answer is the right image, and every refusal says what to do."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.images.image_file import ImageBytes, read_samples
from spade_deploy.serving.client import Client
from spade_deploy.serving.pictures import ids_png
from tests.support.requests import SentBy, body, form, runs_of
from tests.support.served import SPECS, pixels_of, png, right_pixels, served_app, some_map
from tests.support.stand_in import EDGES, PLAIN, STYLED

testclient = pytest.importorskip("starlette.testclient", reason="pip install 'spade-deploy[serve]' httpx")

URL = "/v1/synthesize"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    app = served_app(tmp_path_factory.mktemp("served"), max_bytes=1 << 20, max_pixels=64 * 64)
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


@pytest.mark.parametrize("name", SPECS)
def test_every_way_to_send_a_map_makes_the_same_right_pixels(client: Any, name: str) -> None:
    spec = SPECS[name]
    label = some_map(spec)
    right = right_pixels(spec, label)
    for sent in (
        form(png(label), model=name),
        body(png(label), model=name),
        body("data:image/png;base64," + base64.b64encode(png(label)).decode(), model=name),
        body(runs_of(label), model=name),
    ):
        answer = client.post(URL, **sent)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(pixels_of(answer.content), right)
    stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "patterns", "run", "encode"]


def test_the_first_model_is_taken_where_none_is_named(client: Any) -> None:
    label = some_map(PLAIN, 3)
    np.testing.assert_array_equal(pixels_of(client.post(URL, **form(png(label))).content), right_pixels(PLAIN, label))


def test_instances_reach_the_model(client: Any) -> None:
    label, instance = some_map(EDGES), (some_map(EDGES, 1) * 3).astype(np.uint8)
    sent = body(png(label), model="edges", instance=base64.b64encode(png(instance)).decode())
    np.testing.assert_array_equal(pixels_of(client.post(URL, **sent).content), right_pixels(EDGES, label, instance))
    other = body(png(label), model="edges", instance=runs_of(instance))
    np.testing.assert_array_equal(pixels_of(client.post(URL, **other).content), right_pixels(EDGES, label, instance))


def test_a_seed_and_a_style_reach_the_model(client: Any) -> None:
    label = some_map(STYLED)
    drawn = np.random.default_rng(7).standard_normal(2, np.float32)
    for sent, style in (({"seed": 7}, drawn), ({"style": [0.25, 0.5]}, np.array([0.25, 0.5])), ({}, None)):
        answer = client.post(URL, **body(png(label), model="styled", **sent))
        np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(STYLED, label, style=style))
    told = client.post(URL, **form(png(label), model="styled", style="0.25, 0.5"))
    np.testing.assert_array_equal(pixels_of(told.content), right_pixels(STYLED, label, style=np.array([0.25, 0.5])))


def test_another_size_is_resized_to_the_models_or_kept(client: Any) -> None:
    small = some_map(PLAIN)[::2, ::2]
    grown = np.repeat(np.repeat(small, 2, 0), 2, 1)
    answer = client.post(URL, **form(png(small)))
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, grown))
    wide = np.tile(small, (1, 4))
    kept = client.post(URL, **form(png(wide), size="keep"))
    np.testing.assert_array_equal(pixels_of(kept.content), right_pixels(PLAIN, wide))
    asked = client.post(URL, **form(png(small), size="32x64"))
    assert pixels_of(asked.content).shape == (32, 64, 3)


def test_formats(client: Any) -> None:
    label = np.zeros((64, 32), np.uint8)
    right = right_pixels(PLAIN, label)
    for fields, headers, media in (
        ({"format": "jpeg"}, {}, "image/jpeg"),
        ({"format": "jpg", "quality": "100"}, {}, "image/jpeg"),
        ({"format": "webp"}, {}, "image/webp"),
        ({}, {"accept": "text/html, image/webp;q=0.9"}, "image/webp"),
        ({}, {"accept": "*/*"}, "image/png"),
    ):
        answer = client.post(URL, **form(png(label), **fields), headers=headers)
        assert answer.headers["content-type"] == media
        assert np.abs(pixels_of(answer.content).astype(int) - right).max() <= 3


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_a_lower_quality_is_a_smaller_and_another_photo(client: Any, name: str) -> None:
    label = some_map(PLAIN)
    right = right_pixels(PLAIN, label).astype(int)
    found = [client.post(URL, **form(png(label), format=name, quality=str(quality))).content for quality in (10, 90)]
    assert len(found[0]) < 0.8 * len(found[1])
    errors = [np.abs(pixels_of(content) - right).mean() for content in found]
    assert errors[0] > errors[1]
    usual = client.post(URL, **form(png(label), format=name)).content
    assert usual == found[1]


@pytest.mark.parametrize("largest", [255, 256, 4095])
def test_ids_of_a_golden_map_are_those_in_its_file(largest: int) -> None:
    ids = np.array([[0, largest], [1, 7]], np.int32)
    found = read_samples(ImageBytes("ids", ids_png(ids)), "label map").values
    assert found is not None
    np.testing.assert_array_equal(found, ids)


BIG = np.zeros((128, 128), np.uint8)
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no label": ({"json": {}}, 422, "`label` is missing"),
    "no object": ({"json": [1]}, 422, "not a JSON object"),
    "no JSON": ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "is not JSON"),
    "deep JSON": ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
    "not UTF-8": ({"content": b"\xff\xfe{", "headers": {"content-type": "application/json"}}, 400, "is not JSON"),
    "no content type": ({"content": b"x"}, 415, "none is not supported"),
    "another content type": ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form cannot be read"),
    "a broken form": (
        {"content": b"--a\r\nbad", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        400,
        "form cannot be read",
    ),
    "an unknown field": (body(runs_of(BIG[:64, :32]), colour=1), 422, "`colour` is not a field"),
    "an unknown part": (form(png(BIG[:64, :32]), colour="1"), 422, "`colour` is not a field"),
    "a text for a file": ({"data": {"label": "x"}, "files": {"instance": b"x"}}, 422, "was sent as a text"),
    "no image": (form(b"GIF89a...."), 422, "a GIF file"),
    "an empty file": (form(b""), 422, "empty"),
    "a cut PNG": (form(png(BIG[:64, :32])[:40]), 422, "damaged"),
    "no base64": (body("????"), 422, "not a base64"),
    "a bad id": (body(png(np.full((64, 32), 9))), 422, "ids out of range: 9"),
    "a bad id in runs": (body({"height": 1, "width": 2, "runs": [-1, 2]}), 422, "ids out of range: -1"),
    "runs too short": (body({"height": 2, "width": 2, "runs": [0, 3]}), 422, "add up to 3"),
    "odd runs": (body({"height": 2, "width": 2, "runs": [0, 4, 1]}), 422, "3 numbers are not pairs"),
    "a length of 0": (body({"height": 2, "width": 2, "runs": [0, 4, 1, 0]}), 422, "`runs`: 0 is not a length"),
    "lengths of which one is negative": (
        body({"height": 2, "width": 2, "runs": [0, 5, 1, -1]}),
        422,
        "`runs`: -1 is not a length",
    ),
    "a compressed body": (
        {"content": b"x", "headers": {"content-type": "application/json", "content-encoding": "gzip"}},
        415,
        "Content-Encoding 'gzip' is not supported",
    ),
    "a compressed form": (
        form(png(BIG[:64, :32])) | {"headers": {"content-encoding": "br"}},
        415,
        "Content-Encoding 'br' is not supported",
    ),
    "a photo without styles": (
        {"files": {"label": png(BIG[:64, :32]), "style_photo": png(BIG[:64, :32])}},
        422,
        "`style_photo`: this model has no style vector",
    ),
    "a map of texts": (body({"height": "2", "width": 2, "runs": [0, 4]}), 422, "integers"),
    "too many pixels": (form(png(BIG)), 413, "128 x 128 pixels"),
    "too many pixels in runs": (body({"height": 10**6, "width": 10**6, "runs": [0, 10**12]}), 422, "out of range"),
    "too many pixels asked": (form(png(BIG[:64, :32]), size="1024x1024"), 413, "1024x1024"),
    "a size that does not fit": (form(png(BIG[:64, :32]), size="65x32"), 422, "multiple of 32"),
    "no size": (form(png(BIG[:64, :32]), size="large"), 422, "`size`"),
    "an unknown model": (form(png(BIG[:64, :32]), model="x"), 404, "there is no model 'x'"),
    "an unknown format": (form(png(BIG[:64, :32]), format="gif"), 422, "`format`: 'gif'"),
    "a quality": (form(png(BIG[:64, :32]), quality="101"), 422, "`quality`: 101"),
    "a seed without styles": (form(png(BIG[:64, :32]), seed="1"), 422, "no style vector"),
    "a seed that is none": (form(png(BIG[:64, :32]), seed="x", model="styled"), 422, "`seed`: 'x'"),
    "a style of another length": (body(png(BIG[:32, :32]), style=[1.0], model="styled"), 422, "needs 2 finite"),
    "a seed and a style": (body(png(BIG[:32, :32]), style=[1, 2], seed=1, model="styled"), 422, "sent together"),
    "an instance map without edges": (body(png(BIG[:64, :32]), instance=runs_of(BIG[:64, :32])), 422, "no edges"),
    "an instance map of another size": (
        body(png(BIG[:32, :64]), instance=runs_of(BIG[:64, :32]), model="edges"),
        422,
        "has the size 64x32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_what_is_said(client: Any, name: str) -> None:
    sent, status, said = REFUSED[name]
    answer = client.post(URL, **sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert said in problem["detail"] + problem.get("hint", "")
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_a_body_that_is_too_long_is_refused_before_it_is_read(client: Any) -> None:
    answer = client.post(URL, content=b"x" * (2 << 20), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "at most 1,048,576 are allowed" in answer.json()["detail"]

    def parts() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    chunked = client.post(URL, content=parts(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413


def test_paths_and_methods_that_are_none(client: Any) -> None:
    for answer, status in ((client.get("/v1/nothing"), 404), (client.get(URL), 405)):
        assert answer.status_code == status
        assert answer.json()["status"] == status


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/models", "/metrics"])
def test_head_has_the_status_of_get_and_no_body(client: Any, path: str) -> None:
    """Load balancers and monitors ask with it, and take any other status for a server that is down."""
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head(URL).status_code == 405
    assert client.head("/v1/nothing").status_code == 404


def test_the_models_are_described(client: Any) -> None:
    plain, edges, styled = client.get("/v1/models").json()["models"]
    assert [one["name"] for one in (plain, edges, styled)] == ["plain", "edges", "styled"]
    assert plain["size"] == {"height": 64, "width": 32, "is_fixed": False, "multiple_of": 32}
    assert [label["id"] for label in plain["labels"]] == [0, 1, 2, 3, 4]
    assert plain["labels"][0]["color"] == "#000000"
    assert edges["takes_instances"]
    assert edges["unknown_id"] == 5
    assert styled["styles"] == {"z_dim": 2, "from_photo": False, "directions": 0}
    assert styled["size"]["is_fixed"]
    assert len(plain["sha256"]) == 64


def test_the_example_of_the_description_works(client: Any) -> None:
    description = client.get("/openapi.json").json()
    content = description["paths"][URL]["post"]["requestBody"]["content"]
    example = content["application/json"]["example"]
    assert client.post(URL, json=example).status_code == 200
    assert set(content) == {"application/json", "multipart/form-data"}


def test_reading_the_fields_is_a_part_of_decoding(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map in base64 is decoded there. The sleep is the least that the part can take."""
    from spade_deploy.serving import routes

    real = routes.asked_of_json

    def slow(value: Any, most_pixels: int) -> Any:
        time.sleep(0.2)
        return real(value, most_pixels)

    monkeypatch.setattr(routes, "asked_of_json", slow)
    for path in ("/v1/synthesize", "/v1/edits"):
        answer = client.post(path, json={"label": runs_of(some_map(PLAIN))})
        assert answer.status_code == 200
        decode = next(part for part in answer.headers["Server-Timing"].split(", ") if part.startswith("decode;"))
        assert float(decode.partition("dur=")[2]) >= 200, path


def test_files_have_another_digest_whenever_a_name_or_a_byte_changes() -> None:
    from spade_deploy.serving.page_files import digest_of

    files = {"a": b"1", "b": b"2", "c": b""}
    others = ({**files, "b": b"3"}, {**files, "c": b"4"}, {"a": b"1", "b": b"2"}, {"a": b"1", "b": b"2", "d": b""})
    assert len({digest_of(one) for one in (files, *others)}) == 5
    assert digest_of(dict(reversed(files.items()))) == digest_of(files)


def test_health_readiness_and_figures(client: Any) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json()["status"] == "ready"
    before = client.get("/metrics").text
    client.post(URL, **form(png(some_map(PLAIN))))
    after = client.get("/metrics").text

    def count(text: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith('spade_images_total{model="plain"}')]
        return float(lines[0].split()[-1]) if lines else 0.0

    assert count(after) == count(before) + 1
    assert 'spade_stage_seconds_count{model="plain",stage="run"}' in after


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    app = served_app(tmp_path_factory.mktemp("guarded"), token="a" * 20, cors=("https://example.org",))
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found


class TestGuards:
    def test_without_its_token_only_the_state_is_told(self, guarded: Any) -> None:
        assert guarded.get("/healthz").status_code == 200
        wrong = ["", *(f"Bearer {token}" for token in ("b" * 20, "a" * 19, "a" * 21)), "Basic " + "a" * 20]
        for sent in wrong:
            answer = guarded.get("/v1/models", headers={"authorization": sent} if sent else {})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert guarded.get("/pages").status_code == 401, "only what lies below /page/ is of the page"
        assert guarded.get("/v1/models", headers={"authorization": "Bearer " + "a" * 20}).status_code == 200

    def test_another_host_name_and_another_page_are_refused(self, guarded: Any) -> None:
        token = {"authorization": "Bearer " + "a" * 20}
        assert guarded.get("/v1/models", headers={**token, "host": "evil.example"}).status_code == 421
        assert guarded.get("/v1/models", headers={**token, "host": "LOCALHOST:8000"}).status_code == 200
        for origin in ("https://evil.example", "http://127.0.0.1:9000", "null"):
            assert guarded.get("/v1/models", headers={**token, "origin": origin}).status_code == 403
        allowed = guarded.get("/v1/models", headers={**token, "origin": "https://example.org"})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        own = guarded.get("/v1/models", headers={**token, "origin": "http://127.0.0.1:8000"})
        assert "access-control-allow-origin" not in own.headers


def test_the_python_client_speaks_to_it(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own requests, answered by the app."""
    from spade_deploy.serving import client as module

    sent = SentBy(client)
    monkeypatch.setattr(module, "urlopen", sent)
    asking = module.Client("http://127.0.0.1:8000/")
    label = some_map(PLAIN, 5)
    np.testing.assert_array_equal(pixels_of(asking.synthesize(png(label))), right_pixels(PLAIN, label))
    assert asking.models()[0]["name"] == "plain"
    with pytest.raises(module.ServerError, match="there is no model 'x'") as caught:
        asking.synthesize(png(label), model="x")
    assert caught.value.status == 404
    assert json.dumps(caught.value.problem)
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) <= 60, "people copy it and read it"


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"", b"?\r\n"])
def test_an_answer_that_is_cut_off_is_an_os_error(sent: bytes) -> None:
    """As its docstring says, wherever the server's process dies."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

        done = pool.submit(answer)
        with pytest.raises(OSError, match=r"cut off|closed connection|reset"):
            Client(f"http://127.0.0.1:{server.getsockname()[1]}", tries=1, timeout=20).models()
        done.result(20)
