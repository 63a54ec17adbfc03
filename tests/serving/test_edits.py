"""Edits of a drawing: the photo is that of the whole map, and no edit is ever applied to another map than its base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.support.requests import SentBy, body, form, runs_of
from tests.support.served import pixels_of, png, right_pixels, served_app, served_models, some_map
from tests.support.stand_in import EDGES, PLAIN, STYLED

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

from spade_deploy.serving import client as client_module
from spade_deploy.serving.app import make_app
from spade_deploy.serving.drawings import Drawings, OtherMapError
from spade_deploy.serving.maps import Maps
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.request import ServeRequest

testclient = pytest.importorskip("starlette.testclient", reason="pip install httpx")

URL = "/v1/edits"
Map = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return served_app(tmp_path_factory.mktemp("edits"), max_pixels=64 * 64)


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[Any]:
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


def patch_of(label: Map, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"x": x, "y": y, **runs_of(label[y : y + height, x : x + width])}


def base_of(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {"drawing": answer.headers["drawing"], "base": int(answer.headers["drawing-version"])}


def begun(client: Any, label: Map, **fields: Any) -> dict[str, Any]:
    return base_of(client.post(URL, **body(png(label), **fields)))


def random_box(rng: np.random.Generator, label: Map) -> tuple[int, int, int, int]:
    rows, columns = label.shape
    width, height = int(rng.integers(1, columns + 1)), int(rng.integers(1, rows + 1))
    return int(rng.integers(0, columns - width + 1)), int(rng.integers(0, rows - height + 1)), width, height


@pytest.mark.parametrize("begin", [form, body])
def test_many_random_edits_make_the_photos_of_the_whole_maps(client: Any, begin: Any) -> None:
    rng = np.random.default_rng(3)
    label = some_map(PLAIN)
    base = base_of(client.post(URL, **begin(png(label))))
    for number in range(25):
        patches = []
        for _ in range(int(rng.integers(0, 4))):  # they may lie over one another, and there may be none
            x, y, width, height = random_box(rng, label)
            label = label.copy()
            label[y : y + height, x : x + width] = rng.integers(0, 5, (height, width))
            patches.append(patch_of(label, x, y, width, height))
        answer = client.post(URL, json={**base, "patches": patches, "format": "png"})
        np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, label))
        assert answer.headers["server-timing"].startswith("decode;dur=")
        next_base = base_of(answer)
        assert next_base == {"drawing": base["drawing"], "base": number + 2}
        base = next_base


def test_the_other_fields_are_of_each_request(client: Any) -> None:
    label = some_map(STYLED)
    base = begun(client, label, model="styled", style=[0.5, 0.25])
    edited = label.copy()
    edited[3:5, 4:9] = 250
    patches = [patch_of(edited, 4, 3, 5, 2)]
    answer = client.post(URL, json={**base, "patches": patches, "style": [0.25, -0.5], "model": "styled"})
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(STYLED, edited, style=np.array([0.25, -0.5])))
    answer = client.post(URL, json={**base_of(answer), "patches": []})
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(STYLED, edited))
    small = begun(client, some_map(PLAIN)[::2, ::2])  # it is held at its own size, and resized for each photo
    other = some_map(PLAIN)[::2, ::2].copy()
    other[0, 0] = 4
    answer = client.post(URL, json={**small, "patches": [patch_of(other, 0, 0, 1, 1)]})
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, other.repeat(2, 0).repeat(2, 1)))


def test_instance_maps_are_edited_too(client: Any) -> None:
    label, instance = some_map(EDGES), some_map(EDGES, 1)
    base = begun(client, label, model="edges", instance=runs_of(instance))
    label[2:4, 2:4], instance[8:10, 0:64] = 1, 9
    changed = {"patches": [patch_of(label, 2, 2, 2, 2)], "instance_patches": [patch_of(instance, 0, 8, 64, 2)]}
    answer = client.post(URL, json={**base, **changed})
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(EDGES, label, instance))
    lone = begun(client, label, model="edges")
    refused = client.post(URL, json={**lone, "patches": [], "instance_patches": changed["instance_patches"]})
    assert (refused.status_code, "no instance map" in refused.json()["detail"]) == (422, True)


def test_an_edit_of_another_map_is_refused_and_changes_nothing(client: Any) -> None:
    label = some_map(PLAIN)
    old = begun(client, label)
    label[0, :] = 1
    now = base_of(client.post(URL, json={**old, "patches": [patch_of(label, 0, 0, 32, 1)]}))
    for wrong in (
        old,
        {**now, "base": 3},
        {**now, "drawing": "A" * 22},
        {**now, "drawing": begun(client, label)["drawing"]},
    ):
        answer = client.post(URL, json={**wrong, "patches": [{"x": 0, "y": 0, **runs_of(np.full((1, 1), 3))}]})
        assert answer.status_code == 409, answer.text
        assert "send the whole map" in answer.json()["hint"]
    answer = client.post(URL, json={**now, "patches": []})
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, label))


ONE = {"x": 0, "y": 0, "height": 1, "width": 2, "runs": [0, 2]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beyond the right side": ({"patches": [{**ONE, "x": 31}]}, "do not lie inside the map of 32 x 64"),
    "beyond the bottom": ({"patches": [{**ONE, "y": 64}]}, "do not lie inside"),
    "a negative place": ({"patches": [{**ONE, "x": -1}]}, "do not lie inside"),
    "an id": ({"patches": [ONE, {**ONE, "runs": [5, 2]}]}, "ids out of range: 5"),
    "lengths": ({"patches": [{**ONE, "runs": [0, 3]}]}, "add up to 3"),
    "no place": ({"patches": [{"height": 1, "width": 1, "runs": [0, 1]}]}, "is not {x, y, height, width, runs}"),
    "a place that is a text": ({"patches": [{**ONE, "x": "0"}]}, "x and y are integers"),
    "no list": ({"patches": ONE}, "is not a list"),
    "no patches": ({}, "`patches` is missing"),
    "a whole map, too": ({"patches": [], "label": {**runs_of(np.zeros((64, 32)))}}, "cannot be sent together"),
    "another model": ({"patches": [], "model": "styled"}, "the drawing belongs to the model plain"),
    "an unknown field": ({"patches": [], "colour": 1}, "`colour` is not a field"),
    "a base that is a text": ({"patches": [], "base": "1"}, "`base` a number"),
    "instances without edges": ({"patches": [], "instance_patches": [ONE]}, "no instance map"),
}


def test_what_is_refused_and_what_is_said(client: Any) -> None:
    label = some_map(PLAIN)
    base = begun(client, label)
    for name, (sent, said) in REFUSED.items():
        answer = client.post(URL, json={**base, **sent})
        assert (name, answer.status_code) == (name, 422), answer.text
        assert said in answer.json()["detail"], name
    too_many = client.post(URL, json={**base, "patches": [ONE] * 5000})
    assert too_many.status_code == 413
    too_large = client.post(URL, json={**base, "patches": [{**ONE, "height": 64, "width": 64, "runs": [0, 4096]}] * 2})
    assert too_large.status_code == 413
    answer = client.post(URL, json={**base, "patches": []})  # none of them has changed anything
    np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, label))


def test_the_examples_of_the_description_work(client: Any) -> None:
    content = client.get("/openapi.json").json()["paths"][URL]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    whole, edit = examples["whole map"]["value"], examples["edit"]["value"]
    begun = client.post(URL, json=whole)
    answer = client.post(URL, json={**edit, "drawing": begun.headers["drawing"]})
    assert answer.status_code == 200, answer.text
    assert not np.array_equal(pixels_of(answer.content), pixels_of(begun.content))


def test_the_python_client_sends_the_whole_map_where_it_must(
    app: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = SentBy(client)
    monkeypatch.setattr(client_module, "urlopen", sent)
    asking = client_module.Client("http://127.0.0.1:8000/")
    label = some_map(PLAIN)
    np.testing.assert_array_equal(pixels_of(asking.edit(png(label), [])), right_pixels(PLAIN, label))
    for forgotten in (False, True, False):
        label = (label + 1) % 5
        if forgotten:
            app.state.serving.drawings.drop(asking.drawing["drawing"])
        before = len(sent.bodies)
        photo = asking.edit(png(label), [patch_of(label, 0, 0, 32, 64)])
        np.testing.assert_array_equal(pixels_of(photo), right_pixels(PLAIN, label))
        assert [b"patches" in one for one in sent.bodies[before:]] == ([True, False] if forgotten else [True])
    with pytest.raises(client_module.ServerError):
        asking.edit(png(label), [{**ONE, "x": 99}])
    asking.edit(png(label), [])  # what the server holds is not known after an error
    assert b"label" in sent.bodies[-1]


class Keeping:
    """A runtime that keeps rows; it remembers what it was asked, and how many maps each way of running made."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.most_bytes: list[int] = []
        self.whole = self.kept = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def run(self, *given: Any) -> Any:
        self.whole += 1
        return self._runtime.run(*given)

    def keeping_rows(self, most_bytes: int) -> Any:
        self.most_bytes.append(most_bytes)

        def run(*given: Any) -> Any:
            self.kept += 1
            return self._runtime.run(*given)

        return SimpleNamespace(run=run, patterns_s=None)


@pytest.mark.parametrize("most_bytes", [3000, 0])
def test_photos_of_drawings_are_made_from_kept_rows(tmp_path: Path, most_bytes: int) -> None:
    models = served_models(tmp_path)
    runtime = Keeping(models["plain"].runtime)
    models["plain"] = ServedModel("plain", models["plain"].artifact, cast(Any, runtime), models["plain"].rule)
    app = make_app(models, ServeRequest(max_row_bytes=most_bytes))
    label = some_map(PLAIN)
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        base = begun(client, label, format="png")
        answer = client.post(URL, json={**base, "patches": [patch_of(label, 0, 0, 4, 4)], "format": "png"})
        np.testing.assert_array_equal(pixels_of(answer.content), right_pixels(PLAIN, label))
        with client.websocket_connect("/v1/live", headers={"host": "127.0.0.1:8000"}) as socket:
            socket.send_bytes(json.dumps({"id": 1, "format": "png"}).encode() + b"\n" + png(label))
            content = socket.receive()["bytes"].partition(b"\n")[2]
        np.testing.assert_array_equal(pixels_of(content), right_pixels(PLAIN, label))
        assert (runtime.kept, runtime.whole) == ((3, 0) if most_bytes else (0, 3))
        client.post("/v1/synthesize", **form(png(label)))
        assert runtime.whole == (1 if most_bytes else 4), "a request that is no drawing runs the whole graph"
        begun(client, some_map(STYLED), model="styled")  # a runtime that keeps none
    assert runtime.most_bytes == ([1000] if most_bytes else []), "three models share the memory"


class TestDrawings:
    def test_the_oldest_goes_where_there_are_too_many_or_too_many_bytes(self) -> None:
        held = Drawings(most=3, most_bytes=250)
        one, two, three = (held.begin("m", Maps(np.zeros((size, 1), np.uint8))) for size in (100, 100, 1))
        held.go_on(one, one.maps)
        for gone in (two, three):  # too many bytes, then too many drawings
            held.begin("m", gone.maps)
            assert (len(held), held.num_bytes) == (3, 201)
            with pytest.raises(OtherMapError, match="is unknown here"):
                held.find(gone.key, 1)
        assert held.find(one.key, 2).maps is one.maps
        held.drop(one.key)
        assert (len(held), held.num_bytes) == (2, 101)
        alone = held.begin("m", Maps(np.zeros((251, 1), np.uint8)))
        assert (len(held), held.num_bytes) == (0, 0)
        with pytest.raises(OtherMapError):
            held.find(alone.key, 1)

    def test_what_nobody_edits_goes_after_its_time(self) -> None:
        now = 0.0
        held = Drawings(kept_s=10, clock=lambda: now)
        one, two = (held.begin("m", Maps(np.zeros((2, 2), np.uint8))) for _ in range(2))
        now = 8.0
        one = held.go_on(one, one.maps)
        now = 16.0
        assert held.find(one.key, 2) is one
        with pytest.raises(OtherMapError, match="is unknown here"):
            held.find(two.key, 1)
        assert held.num_bytes == 4

    def test_of_two_edits_of_one_map_the_second_is_refused(self) -> None:
        held = Drawings()
        base = held.begin("m", Maps(np.zeros((2, 2), np.uint8)))
        first = held.go_on(base, Maps(np.ones((2, 2), np.uint8)))
        with pytest.raises(OtherMapError, match="builds on version 1 of the drawing, but the server has version 2"):
            held.go_on(base, Maps(np.full((2, 2), 2, np.uint8)))
        assert held.find(base.key, 2) is first
        again = held.begin("m", first.maps, 2, base.key)  # another map under the same number
        with pytest.raises(OtherMapError):
            held.go_on(first, first.maps)
        assert held.find(base.key, 2) is again
