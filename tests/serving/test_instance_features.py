"""Instance features where a model is served, packaged, evaluated or would be distilled, held to the second writing."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette import testclient

from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ConfigError
from spade_deploy.evaluation import DataFlags, EvalRequest, evaluate
from spade_deploy.packaging.repository import write_repository
from spade_deploy.packaging.request import PackageRequest
from spade_deploy.serving.app import make_app
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import BatchRule
from spade_deploy.serving.web.folder import write_web
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.resolve import student_setup
from spade_deploy.training.request import DataRequest
from tests.support.featured import Made, assert_shows, release, second_image, some_maps, write_photo
from tests.support.served import pixels_of, png

LABEL_MAP, INSTANCES = some_maps()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return release(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def client(made: Made) -> Iterator[Any]:
    runtime = open_runtime(made.artifact, backend="cpu")
    app = make_app({"m": ServedModel("m", made.artifact, runtime, BatchRule())}, ServeRequest(), "")
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


def test_the_server_takes_a_photo_beside_each_map(client: Any, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photo.png")
    instance = np.where(INSTANCES == 1001, 9, INSTANCES)  # a PNG of 8 bits
    sent = {"label": png(LABEL_MAP), "instance": png(instance), "style_photo": photo.read_bytes()}
    answer = client.post("/v1/synthesize", files=sent)
    assert answer.status_code == 200, answer.text
    assert_shows(pixels_of(answer.content), second_image(LABEL_MAP, instance, photo))
    coded = {name: base64.b64encode(content).decode() for name, content in sent.items()}
    del coded["instance"]
    answer = client.post("/v1/synthesize", json=coded)
    assert_shows(pixels_of(answer.content), second_image(LABEL_MAP, None, photo, regions=LABEL_MAP))
    answer = client.post("/v1/synthesize", files={"label": sent["label"], "instance": sent["instance"]})
    assert_shows(pixels_of(answer.content), second_image(LABEL_MAP, instance, None))


def test_the_server_refuses_what_belongs_to_styles(client: Any, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photo.png").read_bytes()
    for fields, message in (
        ({"seed": "3"}, "`seed`: this model has no style vector"),
        ({"style": "1, 2"}, "`style`: this model has no style vector"),
        ({"directions": "1"}, "this model has no style vector to move along"),
    ):
        answer = client.post("/v1/synthesize", files={"label": png(LABEL_MAP)}, data=fields)
        assert answer.status_code == 422
        assert message in answer.json()["detail"]
    answer = client.post("/v1/models/m/style", content=photo)
    assert answer.status_code == 422
    assert "m has no style encoder" in answer.json()["detail"]
    told = client.get("/v1/models").json()["models"][0]
    assert told["styles"] == {"z_dim": None, "from_photo": True, "directions": 0}


def test_a_page_without_a_server_and_a_student_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`web`: this model sees instance features"):
        write_web(made.artifact, tmp_path / "site", {})
    assert not (tmp_path / "site").exists()
    (tmp_path / "labels").mkdir()
    Image.fromarray(LABEL_MAP).save(tmp_path / "labels" / "a.png")
    asked = DistillRequest(made.runs / "imported", base_channels=2, data=DataRequest(labels=tmp_path / "labels"))
    with pytest.raises(ConfigError, match=r"`teacher`: .* sees instance features of photos"):
        student_setup(asked, made.runs)


def test_triton_is_told_of_the_features(made: Made, tmp_path: Path) -> None:
    write_repository(made.artifact, PackageRequest(triton=tmp_path / "models"))
    (config,) = (tmp_path / "models").glob("*/config.pbtxt")
    text = re.sub(r"\s+", " ", config.read_text())
    assert 'input { name: "features" data_type: TYPE_FP32 dims: 3 dims: -1 dims: -1 }' in text


def test_eval_runs_a_checkpoint_and_an_artifact_with_features_of_zero(made: Made, tmp_path: Path) -> None:
    for folder, values in (("labels", LABEL_MAP), ("instances", INSTANCES.astype(np.uint16))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    (tmp_path / "images").mkdir()
    truth = second_image(LABEL_MAP, INSTANCES, None).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "images" / "a.png")
    data = DataFlags(labels=tmp_path / "labels", images=tmp_path / "images", instances=tmp_path / "instances")
    result = evaluate(EvalRequest((made.runs / "imported", made.artifact.path), data=data), runs_dir=made.runs)
    assert len(result.rows) == 2
    for row in result.rows:
        assert row.psnr is not None
        assert row.psnr > 60  # the same but for truncations
