"""What runs is what was opened: graphs, golden tensors, encoders and reports are compared again when they are used.

A re-export puts another artifact into the same folder while a long `infer` runs, and a graph of somebody else's names
weights in any file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from spade_deploy.artifact import (
    GOLDEN_OUTPUTS,
    IMAGE,
    LABEL,
    REPORT_JSON,
    Artifact,
    Source,
    graph_file,
    rewrite_manifest,
)
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.bench import BenchPlan, choose_candidates, run_plan
from spade_deploy.engines.base import Backend
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import load_onnxruntime
from spade_deploy.errors import ArtifactError
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.spec import GraphKind, LabelSpec, Precision
from spade_deploy.validation.divergence import first_divergence
from tests.support.generators import build_generator
from tests.support.stand_in import PLAIN, random_inputs, stand_in_artifact, stand_in_graph

AGAIN = "is not the file that was opened before"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    made = stand_in_artifact(tmp_path / "artifact")
    (made.path / REPORT_JSON).write_text('{"passed": true}')
    rewrite_manifest(made.path, made.manifest)
    return Artifact.open(made.path)


def export_again(artifact: Artifact, *, other: bool = True) -> None:
    """Another model's artifact takes the place of this one, as a whole."""
    new = artifact.path.with_name("new")
    shutil.copytree(artifact.path, new)
    if other:
        for name in artifact.manifest.files:
            (new / name).write_bytes(b"another model" + (new / name).read_bytes()[13:])
    shutil.rmtree(artifact.path)
    new.rename(artifact.path)


def change_in_place(artifact: Artifact) -> None:
    """One bit, the same size, the old time."""
    for name in artifact.manifest.files:
        path = artifact.path / name
        found = path.stat()
        content = bytearray(path.read_bytes())
        content[9] ^= 1
        with path.open("r+b") as stream:
            stream.write(content)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


USES: dict[str, Callable[[Artifact], Any]] = {
    "graph": OrtRuntime,
    "golden": Artifact.golden,
    "report": Artifact.report,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", [export_again, change_in_place])
def test_what_changed_since_it_was_opened_is_not_used(
    artifact: Artifact, use: str, change: Callable[[Artifact], None]
) -> None:
    assert USES[use](artifact) is not None
    change(artifact)
    with pytest.raises(ArtifactError, match=AGAIN) as caught:
        USES[use](artifact)
    assert "the same command" in str(caught.value.hint)


def test_the_same_artifact_exported_again_is_as_good(artifact: Artifact) -> None:
    export_again(artifact, other=False)
    assert artifact.report() == {"passed": True}
    OrtRuntime(artifact).close()


def test_what_did_not_change_is_not_hashed_again(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spade_deploy.artifact.folder.sha256_of", lambda path: pytest.fail(f"{path} is hashed again"))
    OrtRuntime(artifact).close()
    artifact.golden()


def test_a_change_while_the_runtime_opens_the_graph_is_noticed(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_onnxruntime()
    opens = real.InferenceSession

    def slow(path: Any, *rest: Any, **more: Any) -> Any:
        export_again(artifact)
        return opens(stand_in_graph(PLAIN), *rest, **more)

    monkeypatch.setattr(real, "InferenceSession", slow)
    with pytest.raises(ArtifactError, match=AGAIN):
        OrtRuntime(artifact)


def test_an_export_between_manifest_and_files_is_opened_as_a_whole(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_manifest
    calls = []

    def then_exported(path: Path) -> Any:
        found = read(path)
        calls.append(found)
        if len(calls) == 1:  # the manifest of the old one was read
            (path / REPORT_JSON).write_text('{"passed": false}')
            rewrite_manifest(path, found)
        return found

    monkeypatch.setattr("spade_deploy.artifact.folder.read_manifest", then_exported)
    assert Artifact.open(artifact.path).report() == {"passed": False}
    assert len(calls) == 2


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape, each with a dense and a lookup graph."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"model{seed}")
        generator = build_generator(seed=seed, labels=LabelSpec(5), base_channels=2, hidden_channels=4)
        inputs = {LABEL: np.zeros((1, 64, 64), np.uint8)}
        source = Source("x", 1, "train", "0" * 64)
        export_artifact(
            generator, folder, ExportRequest(precisions=[Precision.FP32], golden_inputs=inputs, source=source)
        )
        folders.append(folder)
    return folders[0], folders[1]


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_model_exported_again_is_never_mixed_with_the_one_that_runs(
    two_models: tuple[Path, Path], tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The lookup graph is open, and the dense one would be opened when the first map asks for it: a server goes on."""
    place = tmp_path / "artifact"
    shutil.copytree(two_models[0], place)
    opened = Artifact.open(place)
    lookup = open_runtime(opened, Precision.FP32, Backend.CPU, graph="lookup")
    assert isinstance(lookup, OrtRuntime)
    runtime = AutoRuntime(lookup, lambda: OrtRuntime(opened, Precision.FP32), share=0.5)
    few, many = np.zeros((1, 64, 64), np.uint8), random_inputs(PLAIN, 1, (64, 64))[LABEL]
    with runtime:
        runtime.run({LABEL: few})
        shutil.rmtree(place)
        if change == "replaced":
            shutil.copytree(two_models[1], place)
        found = [runtime.run({LABEL: many})[IMAGE] for _ in range(2)]
        assert runtime.kind is GraphKind.LOOKUP
    with OrtRuntime(Artifact.open(two_models[0]), Precision.FP32) as dense:
        expected = dense.run({LABEL: many})[IMAGE]
    with OrtRuntime(Artifact.open(two_models[1]), Precision.FP32) as other:
        assert np.abs(other.run({LABEL: many})[IMAGE] - expected).max() > 0.1
    for image in found:
        np.testing.assert_allclose(image, expected, atol=1e-4)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "generator.fp32.onnx" in said
    assert said.endswith("; every map runs on the lookup graph, which is open")


def test_a_bench_measures_no_other_artifact_than_the_one_it_judges(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers open the folder themselves."""
    candidates = choose_candidates(artifact)
    cases = [{LABEL: array[None]} for array in artifact.golden().inputs[LABEL]]
    golden = artifact.golden()
    monkeypatch.setattr(Artifact, "golden", lambda self: golden)
    (artifact.path / REPORT_JSON).write_text('{"passed": false}')
    rewrite_manifest(artifact.path, artifact.manifest)
    found = run_plan(artifact, BenchPlan(candidates, cases, rounds=1, threads=1))
    assert [entry.reason for entry in found.entries] == [
        f"{artifact.path}: another artifact was exported there while this one was measured"
    ]


# --- Weights in other files ------------------------------------------------------------------------------------------


def with_external(content: bytes, location: str) -> bytes:
    """The graph with its constant `step` in another file."""
    model = onnx.ModelProto.FromString(content)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "step")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    made: bytes = model.SerializeToString()
    return made


def foreign(folder: Path, location: str) -> Artifact:
    """An artifact whose manifest is right, and whose graph reads a file."""
    content = stand_in_graph(PLAIN)
    made = stand_in_artifact(folder)
    (folder / graph_file(Precision.FP32)).write_bytes(with_external(content, location))
    rewrite_manifest(folder, made.manifest)
    return Artifact.open(folder)


STEP = np.float32(2 / PLAIN.labels.num_ids).tobytes()


def test_weights_in_a_file_that_the_manifest_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights.data").write_bytes(STEP)
    made = foreign(tmp_path / "a", "weights.data")
    golden = made.golden()
    with OrtRuntime(made) as runtime:
        found = runtime.run({LABEL: golden.inputs[LABEL]})
    np.testing.assert_array_equal(found["pixels"], golden.outputs["pixels"])
    (made.path / "weights.data").write_bytes(STEP[::-1])  # since it was opened
    with pytest.raises(ArtifactError, match=rf"weights\.data {AGAIN}"):
        OrtRuntime(made)


@pytest.mark.parametrize("name", ["weights.data", ".hidden"])
def test_weights_inside_the_folder_that_no_manifest_names_are_not_read(tmp_path: Path, name: str) -> None:
    made = foreign(tmp_path / "a", name)
    (made.path / name).write_bytes(STEP)
    with pytest.raises(ArtifactError, match=f"reads weights from '{name}', which the manifest does not name"):
        OrtRuntime(Artifact.open(made.path))


@pytest.mark.parametrize("location", ["../victim", "{tmp}/victim", "sub/../../victim", "golden/outputs.npz"])
def test_weights_elsewhere_are_neither_read_nor_written(tmp_path: Path, location: str) -> None:
    location = location.format(tmp=tmp_path)
    (tmp_path / "victim").write_bytes(STEP)
    made = foreign(tmp_path / "a", location)
    with pytest.raises(ArtifactError, match="not the name of a file beside it"):
        OrtRuntime(made)
    generator = build_generator(labels=LabelSpec(5), base_channels=2, hidden_channels=4)
    file, graph = made.path / graph_file(Precision.FP32), made.graph()
    with pytest.raises(ArtifactError, match="not the name of a file beside it"):
        first_divergence(file, graph, generator, {LABEL: np.zeros((1, 64, 64), np.uint8)})
    assert (tmp_path / "victim").read_bytes() == STEP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "victim"]
    assert (made.path / GOLDEN_OUTPUTS).stat().st_size == made.manifest.files[GOLDEN_OUTPUTS].bytes
