"""The OpenAPI description tells the truth: schemathesis makes requests of it, and judges every answer by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup, ServerError
from schemathesis.openapi.checks import JsonSchemaError, MissingHeaders, UndefinedContentType, UndefinedStatusCode
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.served import served_models

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

import fastapi

from spade_deploy.serving.app import make_app
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import Runner

URL = "http://127.0.0.1:8000"
TOKEN = "a-token-of-many-letters"
DESCRIBED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
WRONG = schemathesis.GenerationMode.NEGATIVE
OPERATIONS = {
    ("GET", "/healthz"): {200},
    ("GET", "/readyz"): {200},
    ("GET", "/metrics"): {200},
    ("GET", "/v1/models"): {200},
    ("POST", "/v1/synthesize"): {200, 422},
    ("POST", "/v1/edits"): {200, 409, 422},
    ("GET", "/v1/models/{name}/samples/{number}"): {200, 404, 422},
    ("POST", "/v1/models/{name}/style"): {404, 422},
}
"""Every operation, and the statuses that its requests must reach at least: others would prove little."""
KNOWN = {"name": "plain", "number": 0}
"""Parts of paths that there are."""
OPEN = {"/healthz", "/readyz"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield served_models(tmp_path_factory.mktemp("openapi"))
    shutdown_lifespans()


@pytest.fixture(scope="module")
def description(models: Any) -> Any:
    return described(make_app(models, ServeRequest(max_pixels=64 * 64)))


def described(app: Any, **headers: str) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "127.0.0.1:8000", **headers})


def statuses(strategy: Any, examples: int, checks: list[Any], **headers: str) -> set[int]:
    """The statuses of the answers to such requests. Raises FailureGroup for one that the description does not allow."""
    found = set()

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        answer = case.call_and_validate(base_url=URL, headers=headers, checks=checks)
        found.add(answer.status_code)

    ask()
    return found


def test_every_operation_is_asked(description: Any) -> None:
    assert {(one.ok().method.upper(), one.ok().path) for one in description.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_answers_are_those_of_the_description(description: Any, method: str, path: str) -> None:
    operation, checks = description[path][method], [not_a_server_error, *DESCRIBED]
    known = {name: value for name, value in KNOWN.items() if f"{{{name}}}" in path}
    found = statuses(operation.as_strategy(path_parameters=known), 10 if method == "POST" else 1, checks)
    for example in operation.get_strategies_from_examples():
        found |= statuses(example, 1, checks)
    if known:
        found |= statuses(operation.as_strategy(), 10, checks)
    if path in ("/v1/synthesize", "/v1/edits") or "number" in known:  # elsewhere nothing that is sent can be wrong
        found |= statuses(operation.as_strategy(WRONG), 10, checks)
    assert found >= OPERATIONS[method, path]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "elsewhere.example"}, 421), ({"Origin": "http://elsewhere.example"}, 403), ({}, 401)],
)
def test_refusals_are_described_too(models: Any, headers: dict[str, str], status: int) -> None:
    description = described(make_app(models, ServeRequest(), TOKEN), Authorization=f"Bearer {TOKEN}")
    for method, path in OPERATIONS:
        found = statuses(description[path][method].as_strategy(), 1, DESCRIBED, **headers)
        assert found == ({200} if status == 401 and path in OPEN else {status})


def test_a_full_queue_is_described_too(description: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "is_full", True)
    for method, path, status in (("POST", "/v1/synthesize", 429), ("POST", "/v1/edits", 429), ("GET", "/readyz", 503)):
        assert statuses(description[path][method].as_strategy(), 1, DESCRIBED) == {status}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (fastapi.Response("1", 418, media_type="application/json"), UndefinedStatusCode),
        (fastapi.Response("1", 500, media_type="application/json"), ServerError),
        (fastapi.Response("1", media_type="text/plain"), UndefinedContentType),
        (fastapi.Response('"one"', media_type="application/json", headers={"Version": "1"}), JsonSchemaError),
        (fastapi.Response("1", media_type="application/json"), MissingHeaders),
    ],
)
def test_an_answer_that_is_not_described_is_found(answer: Any, wrong: type[Failure]) -> None:
    app = fastapi.FastAPI()
    number = {"application/json": {"schema": {"type": "integer"}}}
    header = {"Version": {"required": True, "schema": {"type": "integer"}}}
    told = {200: {"description": "", "content": number, "headers": header}, 500: {"description": ""}}

    @app.get("/one", response_class=fastapi.Response, responses=told)
    def one() -> fastapi.Response:
        return answer

    with pytest.raises(FailureGroup) as found:
        statuses(described(app)["/one"]["GET"].as_strategy(), 1, [not_a_server_error, *DESCRIBED])
    assert wrong in {type(one) for one in found.value.exceptions}
