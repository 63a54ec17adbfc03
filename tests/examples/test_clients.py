"""The example clients make the pixels of `spade infer`, from label maps of any size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import Artifact, graph_facts, model_facts, rewrite_manifest
from spade_deploy.inference.infer import infer
from spade_deploy.inference.request import InferRequest
from spade_deploy.spec import Backend, GeneratorSpec, GraphChoice, GraphKind, Precision
from tests.support.clients import built_cpp_client, node_client
from tests.support.paths import ROOT
from tests.support.stand_in import EDGES, PLAIN, STYLED, stand_in_artifact

MODELS = {"plain": PLAIN, "edges and unknown": EDGES, "style, 300 labels": STYLED}
SIZES = [(64, 32), (32, 64), (37, 53), (200, 11), (7, 301), (129, 127)]
"""Enlarged, reduced, both, and where a position falls between two pixels."""

Client = Callable[[Artifact, Path, Path, Path | None], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def node() -> Client:
    script = node_client()

    def run(artifact: Artifact, label: Path, photo: Path, instance: Path | None) -> NDArray[np.uint8]:
        more = [] if instance is None else [instance]
        subprocess.run(["node", script, artifact.path, label, photo, *more], check=True, capture_output=True)
        return np.asarray(Image.open(photo))

    return run


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Client:
    client = built_cpp_client(tmp_path_factory.mktemp("client"))

    def run(artifact: Artifact, label: Path, photo: Path, instance: Path | None) -> NDArray[np.uint8]:
        maps = [as_pgm(path) for path in (label, instance) if path is not None]
        graph = artifact.path_of(artifact.graph().file)
        result = photo.with_suffix(".ppm")
        subprocess.run([client, graph, maps[0], result, *maps[1:]], check=True, capture_output=True)
        return np.asarray(Image.open(result))

    return run


def as_pgm(path: Path) -> Path:
    """A greyscale PNG as binary PGM."""
    values = np.asarray(Image.open(path))
    made = path.with_suffix(".pgm")
    depth = 255 if values.dtype == np.uint8 else 65535
    content = values.astype(np.uint8 if depth == 255 else ">u2").tobytes()
    made.write_bytes(f"P5\n{values.shape[1]} {values.shape[0]}\n{depth}\n".encode() + content)
    return made


def artifact_of(folder: Path, spec: GeneratorSpec) -> Artifact:
    """A stand-in artifact whose graph carries the metadata of a real one."""
    artifact = stand_in_artifact(folder, spec)
    path = artifact.path_of(artifact.graph().file)
    model = onnx.load(path)
    facts = model_facts(spec, artifact.manifest.source, {}) | graph_facts(GraphKind.DENSE, Precision.FP32)
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    rewrite_manifest(folder, artifact.manifest)
    return Artifact.open(folder)


def maps_of(folder: Path, spec: GeneratorSpec, size: tuple[int, int]) -> tuple[Path, Path | None]:
    """A label map of noise, unknown pixels included if the model knows them, and an instance map if it takes one."""
    rng = np.random.default_rng(size[0])
    label, instance = folder / "labels" / "a.png", None
    ids = rng.integers(0, spec.labels.num_labels, size).astype(np.uint8 if spec.labels.num_ids <= 256 else np.uint16)
    if spec.labels.has_dontcare:
        ids[rng.random(size) < 0.2] = 255
    label.parent.mkdir()
    Image.fromarray(ids).save(label)
    if spec.labels.has_edges:
        instance = folder / "instances" / "a.png"
        instance.parent.mkdir()
        Image.fromarray(rng.integers(0, 40, size).astype(np.uint8)).save(instance)
    return label, instance


@pytest.mark.parametrize("language", ["node", "cpp"])
@pytest.mark.parametrize("model", list(MODELS))
def test_other_languages_make_the_pixels_of_infer(
    language: str, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(language)
    spec = MODELS[model]
    artifact = artifact_of(tmp_path / "artifact", spec)
    for size in SIZES[: 6 if model == "plain" else 3]:
        folder = tmp_path / f"{size[0]}x{size[1]}"
        folder.mkdir()
        label, instance = maps_of(folder, spec, size)
        wanted = folder / "out"
        asked = InferRequest(
            label.parent,
            wanted,
            instances=None if instance is None else instance.parent,
            backend=Backend.CPU,
            graph=GraphChoice.DENSE,
        )
        assert not infer(artifact, asked).failures
        found = client(artifact, label, folder / "photo.png", instance)
        np.testing.assert_array_equal(found, np.asarray(Image.open(wanted / "a.png")), err_msg=str(size))


@pytest.mark.parametrize("language", ["node", "cpp"])
def test_other_languages_refuse_ids_that_the_model_does_not_have(
    language: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(language)
    artifact = artifact_of(tmp_path / "artifact", PLAIN)
    Image.fromarray(np.full((64, 32), 5, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        client(artifact, tmp_path / "a.png", tmp_path / "photo.png", None)
    assert b"id 5" in refused.value.stderr


@pytest.mark.parametrize(("colors", "width"), [(2, 29), (4, 30), (5, 31), (17, 33)], ids=["1", "2", "4", "8"])
def test_node_reads_the_indices_of_a_palette_of_any_depth(
    node: Client, tmp_path: Path, colors: int, width: int
) -> None:
    artifact = artifact_of(tmp_path / "artifact", PLAIN)
    ids = np.random.default_rng(0).integers(0, min(5, colors), (64, width)).astype(np.uint8)
    grey, colored = Image.fromarray(ids), Image.fromarray(ids).convert("P")
    colored.putpalette([200, 10, 10, 0, 90, 0, 3, 3, 255, 9, 9, 9, 70, 70, 0, *([1, 2, 3] * 12)][: 3 * colors])
    assert colored.mode == "P"
    grey.save(tmp_path / "grey.png")
    colored.save(tmp_path / "palette.png")
    found = [node(artifact, tmp_path / f"{name}.png", tmp_path / "photo.png", None) for name in ("grey", "palette")]
    np.testing.assert_array_equal(*found)


def test_the_plain_python_client_resizes_as_infer_does(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path / "artifact", PLAIN)
    label, _ = maps_of(tmp_path, PLAIN, (37, 53))
    script = ROOT / "examples/plain_onnxruntime.py"
    photo = tmp_path / "photo.png"
    subprocess.run([sys.executable, script, artifact.path_of("generator.fp32.onnx"), label, photo], check=True)
    asked = InferRequest(label.parent, tmp_path / "out", backend=Backend.CPU, graph=GraphChoice.DENSE)
    infer(artifact, asked)
    np.testing.assert_array_equal(np.asarray(Image.open(photo)), np.asarray(Image.open(tmp_path / "out" / "a.png")))
