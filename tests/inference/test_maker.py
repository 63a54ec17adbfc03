"""The record of what made a folder's images: two makers never mix in one folder without a word."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from spade_deploy.artifact import ENCODER_ONNX, LABEL, PIXELS, Artifact, rewrite_manifest
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.errors import ConfigError
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.log import logged_files
from spade_deploy.inference.maker import RECORD, artifact_digest, ran_by, read_record
from spade_deploy.inference.places.store import LOG, FolderStore
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, stand_in_artifact, with_stand_in_encoder

OTHER = replace(PLAIN, labels=LabelSpec(6))
"""A model that takes the same label maps and makes other images of them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    made = {"plain": PLAIN, "other": OTHER, "styled": STYLED, "edges": EDGES}
    return {name: stand_in_artifact(tmp_path_factory.mktemp(name), spec) for name, spec in made.items()}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(1, 4):
        Image.fromarray(np.full((64, 32), number, np.uint8)).save(folder / f"{number}.png")
    return folder


def red(folder: Path) -> list[int]:
    """The red of each image, which tells the model (5 or 6 ids) and the label apart."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found.append(int(np.asarray(image)[0, 0, 0]))
    return found


def made_by(spec: GeneratorSpec) -> list[int]:
    return [int(expected(spec, {LABEL: np.full((1, 64, 32), n, np.uint8)})[PIXELS][0, 0, 0, 0]) for n in (1, 2, 3)]


OF_PLAIN, OF_OTHER = made_by(PLAIN), made_by(OTHER)
assert not set(OF_PLAIN) & set(OF_OTHER)


def test_another_model_is_refused_and_overwrite_makes_the_images_again(
    models: dict[str, Artifact], labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(models["plain"], InferRequest(labels, out))
    assert red(out) == OF_PLAIN
    (out / "2.png").unlink()
    for missing in (True, False):  # with something left to make, and with nothing
        with pytest.raises(ConfigError, match=r"were made in another way, with .*artifact [0-9a-f]{12}, not") as caught:
            infer(models["other"], InferRequest(labels, out))
        assert "`overwrite`" in str(caught.value.hint)
        if missing:
            assert red(out) == [OF_PLAIN[0], OF_PLAIN[2]], "nothing was written"
            assert infer(models["plain"], InferRequest(labels, out)).written == 1
    done = infer(models["other"], InferRequest(labels, out, overwrite=True))
    assert (done.written, red(out)) == (3, OF_OTHER)
    assert infer(models["other"], InferRequest(labels, out)).skipped == 3
    with pytest.raises(ConfigError, match="made in another way"):
        infer(models["plain"], InferRequest(labels, out))


def test_the_same_model_at_another_place_goes_on(models: dict[str, Artifact], labels: Path, tmp_path: Path) -> None:
    infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    shutil.copytree(models["plain"].path, tmp_path / "copy")
    assert infer(Artifact.open(tmp_path / "copy"), InferRequest(labels, tmp_path / "out")).skipped == 3


@pytest.mark.parametrize(
    ("model", "first", "then", "said"),
    [
        ("plain", {}, {"size": (32, 64)}, "size 64x32, not 32x64"),
        ("plain", {}, {"resize": "never"}, "size 64x32, not never"),
        ("plain", {"graph": "dense"}, {"graph": "auto"}, "`graph` dense, not auto"),
        ("styled", {}, {"seed": 3}, "style mean, not seed 3"),
        ("styled", {"seed": 4}, {"seed": 3}, "style seed 4, not seed 3"),
        ("edges", {"no_instances": True}, {"instances": "labels"}, "instance maps left empty, not given"),
    ],
)
def test_another_way_of_making_them_is_another_maker(
    models: dict[str, Artifact],
    labels: Path,
    tmp_path: Path,
    model: str,
    first: dict[str, Any],
    then: dict[str, Any],
    said: str,
) -> None:
    out = tmp_path / "out"
    if "instances" in then:
        shutil.copytree(labels, tmp_path / "instances")
        then = {"instances": tmp_path / "instances"}
    infer(models[model], InferRequest(labels, out, **first))
    assert infer(models[model], InferRequest(labels, out, **first)).skipped == 3
    with pytest.raises(ConfigError) as caught:
        infer(models[model], InferRequest(labels, out, **then))
    assert said in caught.value.message
    assert infer(models[model], InferRequest(labels, out, overwrite=True, **then)).written == 3


def test_the_precision_that_ran_is_recorded_and_the_engine_where_it_changes_pixels(
    models: dict[str, Artifact], labels: Path, tmp_path: Path
) -> None:
    infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    record = read_record(tmp_path / "out")
    assert record is not None
    assert (record.maker.precision, record.maker.engine) == ("fp32", "any on a CPU")

    class Fake:
        name, precision = "TensorRT 11.4.0.106 engine on H100, fp16", Precision.FP16

    ran: Any = Fake()
    assert ran_by(record.maker, ran).engine == "TensorRT engine on H100"
    ran.name, ran.precision = "OpenVINO 2026.4.1 CPU, bf16", Precision.BF16
    assert ran_by(record.maker, ran).engine == "OpenVINO CPU"
    (tmp_path / "out" / RECORD).write_text(
        (tmp_path / "out" / RECORD).read_text().replace('"precision": "fp32"', '"precision": "bf16"')
    )
    (tmp_path / "out" / "1.png").unlink()
    with pytest.raises(ConfigError, match="`precision` bf16, not fp32"):
        infer(models["plain"], InferRequest(labels, tmp_path / "out"))


class TestAFolderWithoutARecord:
    def test_images_of_an_unknown_maker_are_not_kept(
        self, models: dict[str, Artifact], labels: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        infer(models["other"], InferRequest(labels, out))
        (out / RECORD).unlink()
        (out / "1.png").unlink()
        with pytest.raises(ConfigError, match="holds 2 of these images already, and no record") as caught:
            infer(models["plain"], InferRequest(labels, out))
        assert "`overwrite`" in str(caught.value.hint)
        assert infer(models["plain"], InferRequest(labels, out, overwrite=True)).written == 3
        assert red(out) == OF_PLAIN

    def test_other_files_do_not_matter(self, models: dict[str, Artifact], labels: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        assert infer(models["plain"], InferRequest(labels, tmp_path / "out")).written == 3

    def test_a_record_that_is_damaged_or_newer_is_refused(
        self, models: dict[str, Artifact], labels: Path, tmp_path: Path
    ) -> None:
        infer(models["plain"], InferRequest(labels, tmp_path / "out"))
        path = tmp_path / "out" / RECORD
        whole = json.loads(path.read_text())
        for text in ("", "[]", "{}", json.dumps({**whole, "format_version": 2}), json.dumps({**whole, "maker": 3})):
            path.write_text(text)
            with pytest.raises(ConfigError, match="cannot be read") as caught:
                infer(models["plain"], InferRequest(labels, tmp_path / "out"))
            assert caught.value.hint


def test_overwriting_leaves_no_image_of_the_maker_before(
    models: dict[str, Artifact], labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(models["plain"], InferRequest(labels, out))
    for request in (InferRequest(labels / "1.png", out, overwrite=True), InferRequest(labels / "1.png", out)):
        with pytest.raises(ConfigError, match="made in another way"):
            infer(models["other"], request)
    assert red(out) == OF_PLAIN


def test_an_overwrite_that_was_stopped_goes_on_with_the_images_of_the_maker_before(
    models: dict[str, Artifact], labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    infer(models["plain"], InferRequest(labels, out))
    real, calls = OrtRuntime.run, [0]

    def run(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(OrtRuntime, "run", run)
        with pytest.raises(KeyboardInterrupt):
            infer(models["other"], InferRequest(labels, out, overwrite=True))
    assert red(out) != OF_OTHER, "it was stopped"
    with pytest.raises(ConfigError, match="made in another way"):
        infer(models["plain"], InferRequest(labels, out))
    done = infer(models["other"], InferRequest(labels, out))
    assert done.written >= 1
    assert red(out) == OF_OTHER
    assert infer(models["other"], InferRequest(labels, out)).skipped == 3


def test_an_old_image_whose_label_map_broke_stays_to_be_made(
    models: dict[str, Artifact], labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(models["plain"], InferRequest(labels, out))
    whole = (labels / "2.png").read_bytes()
    (labels / "2.png").write_bytes(whole[:40])
    assert len(infer(models["other"], InferRequest(labels, out, overwrite=True)).failures) == 1
    (labels / "2.png").write_bytes(whole)
    assert infer(models["other"], InferRequest(labels, out)).written == 1
    assert red(out) == OF_OTHER


def test_a_single_image_with_a_name_is_not_kept(models: dict[str, Artifact], labels: Path, tmp_path: Path) -> None:
    request = InferRequest(labels / "1.png", tmp_path / "one.png")
    infer(models["plain"], request)
    assert not (tmp_path / RECORD).exists()
    with pytest.raises(ConfigError, match=r"one\.png is there already"):
        infer(models["other"], request)
    assert infer(models["other"], replace(request, overwrite=True)).written == 1


def test_images_of_other_label_maps_are_said(
    models: dict[str, Artifact], labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(labels, tmp_path / "more")
    infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    with caplog.at_level(logging.WARNING, logger="spade_deploy"):
        assert infer(models["plain"], InferRequest(labels, tmp_path / "out")).skipped == 3
        assert not caplog.records
        assert infer(models["plain"], InferRequest(tmp_path / "more", tmp_path / "out")).skipped == 3
    assert f"made from label maps in {labels}" in caplog.text


def test_another_encoder_is_another_maker(models: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "styled"
    shutil.copytree(models["styled"].path, folder)
    digests = [artifact_digest(models["styled"]), artifact_digest(with_stand_in_encoder(folder, STYLED))]
    encoder = onnx.load(folder / ENCODER_ONNX)
    encoder.producer_name = "another"
    onnx.save(encoder, folder / ENCODER_ONNX)
    rewrite_manifest(folder, read_manifest(folder))
    digests.append(artifact_digest(Artifact.open(folder)))
    assert len(set(digests)) == 3


def test_an_image_that_failed_later_is_not_in_the_list(tmp_path: Path) -> None:
    lines = [("a", "a.png"), ("b", "b.png"), ("a", None), ("c", None), ("c", "c.png")]
    (tmp_path / LOG).write_text("".join(json.dumps({"id": name, "file": file}) + "\n" for name, file in lines))
    assert logged_files(FolderStore(tmp_path)) == {"b": "b.png", "c": "c.png"}
