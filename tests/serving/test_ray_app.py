"""The settings of the Ray Serve application, and what a replica refuses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

from spade_deploy.errors import ArtifactError, ConfigError
from spade_deploy.serving import ray_app
from spade_deploy.serving.client import Client, ServerError
from spade_deploy.serving.ray_app import ReplicaRequest, read_arguments
from spade_deploy.serving.ray_proxy import middlewares
from spade_deploy.serving.request import ServeRequest
from tests.support.stand_in import PLAIN, stand_in_artifact


class TestArguments:
    def test_texts_are_values_and_the_environment_fills_in(self) -> None:
        environment = {"SPADE_SERVE_MAX_REPLICAS": "8", "SPADE_SERVE_ARTIFACTS": "/shared/earth", "HOME": "/"}
        args = {"max_batch": "2", "json_logs": "true", "precision": "fp32", "num_cpus": "4", "max_replicas": "3"}
        asked, replicas = read_arguments(args, environment)
        wanted = ServeRequest(artifacts=("/shared/earth",), max_batch=2, json_logs=True, precision="fp32", threads=4)
        assert asked == wanted
        assert replicas == ReplicaRequest(max_replicas=3, num_cpus=4.0)

    def test_what_yaml_has_is_taken_as_it_is(self) -> None:
        args = {"artifacts": ["a=/one", "/two"], "timeout": 5, "token_file": "/run/secrets/token", "host": "0.0.0.0"}
        asked, _ = read_arguments(args, {})
        assert asked == ServeRequest(
            artifacts=("a=/one", "/two"), timeout=5.0, token_file=Path("/run/secrets/token"), host="0.0.0.0", threads=1
        )

    def test_a_gpu_leaves_the_threads_to_the_engine(self) -> None:
        assert read_arguments({"num_gpus": "0.5"}, {})[0].threads is None

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            ({"port": "80"}, "`port` is a setting of Ray here"),
            ({"workers": "2"}, "`workers` is a setting of Ray here"),
            ({"max_replica": "2"}, "'max_replica' is not a setting"),
            ({"min_replicas": "3", "max_replicas": "2"}, "`min_replicas`: 3 is more than `max_replicas` 2"),
            ({"target_ongoing_requests": "20"}, "`max_ongoing_requests`: 16 is less than `target_ongoing_requests` 20"),
            ({"queue": "many"}, "`queue`: 'many' is of type str, not int"),
            ({"num_gpus": "-1"}, "`num_gpus`: -1.0 is not at least 0"),
            ({"host": "0.0.0.0"}, "`host`: everyone who can reach 0.0.0.0 could use the server"),
        ],
    )
    def test_wrong_ones_are_named(self, args: dict[str, str], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read_arguments(args, {})
        assert said in caught.value.message

    def test_places_are_absolute_and_may_be_on_other_nodes_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stand_in_artifact(tmp_path / "earth-001" / "artifact", PLAIN)
        monkeypatch.chdir(tmp_path)
        texts = ("earth-001", "city=earth-001", "/nodes/sea-007/artifact", "sky=/nodes/sky")
        here = tmp_path / "earth-001" / "artifact"
        assert ray_app._places(texts) == [
            ("earth-001", here),
            ("city", here),
            ("sea-007", Path("/nodes/sea-007/artifact")),
            ("sky", Path("/nodes/sky")),
        ]
        with pytest.raises(ConfigError, match="sea is not in"):
            ray_app._places(("sea",))
        with pytest.raises(ConfigError, match="two artifacts have the name earth-001"):
            ray_app._places(("earth-001", "earth-001"))


def test_a_node_with_another_artifact_is_refused_by_its_hash(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN)
    asked = ServeRequest(artifacts=(f"one={artifact.path}",), backend="cpu", max_batch=1)
    app = ray_app.replica_app(asked, {})
    digest = app.state.serving.models["one"].digest
    with pytest.raises(ArtifactError, match=f"has the SHA-256 {digest[:12]}, but the application was built with 0000"):
        ray_app.replica_app(asked, {"one": "0" * 64})
    ray_app.replica_app(asked, {"one": digest})


def answer_through_proxy(app: Any, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        (middleware,) = middlewares()
        await middleware.cls(app)({"type": kind, "path": "/", "headers": []}, None, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    return sent


def test_an_answer_that_never_came_becomes_a_problem_to_try_again() -> None:
    async def lost(scope: Any, receive: Any, send: Any) -> None: ...

    async def right(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    start, body = answer_through_proxy(lost)
    headers = dict(start["headers"])
    assert (start["status"], headers[b"retry-after"]) == (503, b"1")
    assert headers[b"content-type"] == b"application/problem+json"
    assert json.loads(body["body"])["detail"] == "the replica that had this request died"
    assert [message.get("status") for message in answer_through_proxy(right)] == [200]
    assert answer_through_proxy(lost, "lifespan") == []


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """A server that gives the answers of a list, one after the other, then status 200."""
    answers: list[tuple[int, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, media_type = answers.pop(0) if answers else (200, "application/json")
            body = b'{"models": [], "detail": "no"}' if "json" in media_type else b"Internal Server Error"
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()
        thread.join()


class TestClient:
    def test_it_asks_again_where_a_proxy_lost_the_server(
        self, failing_server: tuple[str, list[tuple[int, str]]]
    ) -> None:
        url, answers = failing_server
        answers += [(500, "text/plain"), (502, "text/html"), (504, "text/html"), (503, "text/plain")]
        assert Client(url).models() == []
        assert answers == []

    def test_it_does_not_ask_again_where_the_server_itself_failed(
        self, failing_server: tuple[str, list[tuple[int, str]]]
    ) -> None:
        url, answers = failing_server
        answers += [(500, "application/problem+json"), (200, "application/json")]
        with pytest.raises(ServerError) as caught:
            Client(url).models()
        assert (caught.value.status, len(answers)) == (500, 1)
