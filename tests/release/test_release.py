from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from spade_deploy.artifact import (
    MODEL_CARD,
    REPORT_HTML,
    REPORT_JSON,
    Artifact,
    carry_engines,
    free_place,
    list_engines,
    output_tensors,
    read_engine,
    write_engine,
    writing,
)
from spade_deploy.errors import ConfigError, ExportError, FolderBusyError, NotFoundError, ValidationFailedError
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.pages.render import short_time
from spade_deploy.release import release as release_module
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run, resolve_artifact
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import GeneratorSpec, GraphKind, GraphSet, LabelSpec, Precision
from spade_deploy.validation import validate as validation
from tests.support.generators import build_generator
from tests.support.listener import Listener


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs"
    generator = build_generator(labels=LabelSpec(3, names=("sea & sky", "<land>", "ice")), base_channels=4)
    save_checkpoint(checkpoint_folder(new_run(folder, "tiny"), 0), generator, step=0, origin="import")
    return folder


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(
        ReleaseRequest(out=tmp_path_factory.mktemp("out") / "artifact"), runs_dir=runs
    ).artifact.path


def test_release_writes_everything_and_the_pages_stand_alone(runs: Path) -> None:
    seen = Listener()
    made = export_checkpoint(ReleaseRequest(), runs_dir=runs, progress=seen)
    assert made.artifact.path == runs / "tiny" / "artifact" == resolve_artifact(None, runs)
    files = set(made.artifact.manifest.files)
    assert {
        "generator.fp32.onnx",
        "generator.lookup.fp32.onnx",
        REPORT_JSON,
        REPORT_HTML,
        MODEL_CARD,
        "golden/inputs.npz",
        "golden/outputs.npz",
    } == files
    assert "synthetic" in made.golden_from
    assert any("PyTorch reference" in step for step in seen.steps)
    page = (made.artifact.path / REPORT_HTML).read_text(encoding="utf-8")
    pictures = _Pictures()
    pictures.feed(page)
    # label map, PyTorch, and each graph, of each golden input; float32 differs by too little to be drawn.
    assert len(pictures.sources) == (2 + 2) * len(made.report.samples)
    assert "There are no real photos for these label maps" in page
    assert "This can be deployed: it makes the images that the trained model makes; in float32" in page
    assert "tiny, imported: spade" in page
    for result in made.report.results:
        assert len(result.seconds) == len(made.report.samples)
    assert f"fp32 {short_time(made.report.results[0].median_seconds or 0)}" in page
    assert all(source.startswith("data:image/png;base64,") for source in pictures.sources)
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "sea &amp; sky" in page
    assert "&lt;land&gt;" in page
    assert "passed" in page


def test_every_graph_carries_the_facts_of_the_manifest(exported: Path, runs: Path) -> None:
    artifact = Artifact.open(exported)
    manifest = artifact.manifest
    loaded = load_generator(checkpoint_folder(runs / "tiny", 0))
    assert manifest.source.parameters == sum(parameter.numel() for parameter in loaded.module.parameters())
    for graph in manifest.graphs:
        session = onnxruntime.InferenceSession(exported / graph.file, providers=["CPUExecutionProvider"])
        meta = session.get_modelmeta()
        texts = meta.custom_metadata_map
        facts = {name.removeprefix("spade."): text for name, text in texts.items()}
        assert GeneratorSpec.from_json(json.loads(facts["spec"])) == manifest.generator
        assert json.loads(facts["label_names"]) == ["sea & sky", "<land>", "ice"]
        assert json.loads(facts["input_rule"]) == manifest.to_json()["input_rule"]
        assert json.loads(facts["versions"]) == manifest.versions
        assert json.loads(facts["source"])["generator_sha256"] == manifest.source.generator_sha256
        assert facts["parameters"] == str(manifest.source.parameters)
        assert (facts["graph"], facts["precision"]) == (graph.kind, graph.precision)
        assert texts["model_license"] == "unknown"
        assert "3 labels, 64 x 64 pixels" in meta.description
        told = {value.name: value.doc_string for value in onnx.load(exported / graph.file).graph.output}
        assert told == {tensor.name: tensor.meaning for tensor in output_tensors(manifest.generator)}


def test_dense_alone_without_a_break_even_and_with_a_licence(runs: Path, tmp_path: Path) -> None:
    seen = Listener()
    request = ReleaseRequest(out=tmp_path / "a", graph=GraphSet.DENSE, fp16=True, tune=False, license="cc0-1.0")
    made = export_checkpoint(request, runs_dir=runs, progress=seen)
    assert [graph.file for graph in made.artifact.manifest.graphs] == ["generator.fp32.onnx", "generator.fp16.onnx"]
    assert made.report.passed
    assert made.artifact.manifest.source.license == "cc0-1.0"
    assert "license: cc0-1.0" in (made.artifact.path / MODEL_CARD).read_text(encoding="utf-8")
    fp16 = onnx.load(made.artifact.path / "generator.fp16.onnx")
    facts = {entry.key: entry.value for entry in fp16.metadata_props}
    kept = made.artifact.graph(Precision.FP16).kept_fp32
    assert json.loads(facts["spade.kept_fp32"]) == list(kept) != []
    assert facts["model_license"] == "cc0-1.0"
    assert not any("is faster than dense" in step for step in seen.steps)


def test_without_tuning_the_lookup_graph_has_no_break_even(runs: Path, tmp_path: Path) -> None:
    made = export_checkpoint(ReleaseRequest(out=tmp_path / "a", tune=False), runs_dir=runs)
    assert made.artifact.graph(kind=GraphKind.LOOKUP).break_even_share is None
    report = made.artifact.report()
    assert report is not None
    assert report["break_even"] == {}


def test_a_network_that_makes_nan_is_called_that(tmp_path: Path) -> None:
    """Each weight is finite, what they compute is not."""
    generator = build_generator(labels=LabelSpec(3), base_channels=4)
    generator.get_parameter("conv_img.weight").data.fill_(3e38)
    generator.get_parameter("conv_img.bias").data.fill_(3e38)
    run = new_run(tmp_path / "runs", "wild")
    save_checkpoint(checkpoint_folder(run, 0), generator, step=0, origin="import")
    with pytest.raises(ExportError, match=r"the network itself gives NaN or infinity for \d+ of \d+ golden label maps"):
        export_checkpoint(ReleaseRequest(), runs_dir=tmp_path / "runs")
    assert not (run / "artifact").exists()


class _Pictures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(str(dict(attrs)["src"]))


def test_a_failed_release_leaves_the_old_artifact_and_the_evidence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "artifact"
    export_checkpoint(ReleaseRequest(out=out), runs_dir=runs)
    before = (out / "manifest.json").read_bytes()

    def impossible(*_: Any) -> Tolerance:
        return Tolerance(min_ssim=2.0)

    monkeypatch.setattr(validation, "tolerance_for", impossible)
    with pytest.raises(ValidationFailedError, match="SSIM"):
        export_checkpoint(ReleaseRequest(out=out), runs_dir=runs)
    assert (out / "manifest.json").read_bytes() == before
    failed = Artifact.open(tmp_path / "artifact.failed")
    assert failed.report() is not None
    assert "failed" in (failed.path / REPORT_HTML).read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir() if path.name != ".artifact.lock"} == {
        "artifact",
        "artifact.failed",
    }


def test_golden_inputs_from_a_folder(runs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "maps"
    labels.mkdir()
    ids = np.arange(64 * 64).reshape(64, 64) % 3
    Image.fromarray(ids.astype(np.uint8)).save(labels / "a.png")
    made = export_checkpoint(ReleaseRequest(out=tmp_path / "out", labels=labels), runs_dir=runs)
    np.testing.assert_array_equal(made.artifact.golden().inputs["label"], ids[None])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match="holds no label maps"):
        export_checkpoint(ReleaseRequest(out=tmp_path / "out", labels=empty), runs_dir=runs)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWhatIsReplaced:
    """Only what opens as an artifact and holds nothing but its own files."""

    FOREIGN: ClassVar[dict[str, dict[str, str]]] = {
        "files": {"thesis.tex": "years of work"},
        "a web app": {"manifest.json": '{"name": "My app", "icons": []}', "index.html": "<html>"},
        "a lone manifest": {"manifest.json": "{}"},
        "no JSON": {"manifest.json": "x"},
        "a git repository": {".git/HEAD": "ref: main"},
    }

    @pytest.mark.parametrize("what", FOREIGN)
    def test_a_folder_of_something_else_stays(self, runs: Path, tmp_path: Path, what: str) -> None:
        for name, text in self.FOREIGN[what].items():
            (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / name).write_text(text)
        before = files_in(tmp_path)
        with pytest.raises(ConfigError, match=r"`out`: .*out exists and is not an artifact, so it is not replaced"):
            export_checkpoint(ReleaseRequest(out=tmp_path / "out"), runs_dir=runs)
        assert files_in(tmp_path) == before

    @pytest.mark.parametrize("name", ["NOTES.md", "golden/mine.npz", "engines/mine.json", "sub/.git/HEAD"])
    def test_an_artifact_with_a_file_of_somebody_stays(self, artifact: Path, runs: Path, name: str) -> None:
        (artifact / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact / name).write_text("mine")
        before = files_in(artifact)
        with pytest.raises(ConfigError, match=rf"holds files that do not belong to its artifact, .* .*\({name}\)"):
            export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        assert files_in(artifact) == before

    def test_a_link_to_files_elsewhere_stays(self, artifact: Path, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a").write_text("mine")
        (artifact / "data").symlink_to(tmp_path / "data")
        with pytest.raises(ConfigError, match=r"\(data\)"):
            export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        assert (tmp_path / "data" / "a").read_text() == "mine"

    def test_an_artifact_whose_graph_is_damaged_is_exported_again(self, artifact: Path, runs: Path) -> None:
        (artifact / "generator.fp32.onnx").write_bytes(b"x")
        export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        Artifact.open(artifact)

    def test_a_folder_named_failed_of_somebody_else_stays(
        self, artifact: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed = artifact.with_name("artifact.failed")
        failed.mkdir()
        (failed / "photo.png").write_text("mine")
        monkeypatch.setattr(validation, "tolerance_for", lambda *_: Tolerance(min_ssim=2.0))
        with pytest.raises(ValidationFailedError):
            export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        assert files_in(failed) == {"photo.png": b"mine"}
        Artifact.open(artifact.with_name("artifact.failed-2"))
        assert free_place(failed) == artifact.with_name("artifact.failed-2")  # an artifact: the next one's place

    def test_a_second_process_is_refused(self, artifact: Path, runs: Path) -> None:
        before = files_in(artifact)
        with writing(artifact, "building engines"), pytest.raises(FolderBusyError, match="building engines"):
            export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        assert files_in(artifact) == before


class TestEngines:
    """What took an hour to build is kept, or its loss is said."""

    def engine(self, artifact: Artifact, name: str, onnx_sha256: str) -> bytes:
        content = name.encode() * 100
        write_engine(artifact, name, content, key={"onnx_sha256": onnx_sha256}, proof={}, seconds=1.0)
        return content

    def test_those_of_the_same_graphs_are_kept_and_the_others_named(self, artifact: Path, runs: Path) -> None:
        opened = Artifact.open(artifact)
        digest = opened.manifest.files["generator.fp32.onnx"].sha256
        content = self.engine(opened, "fp32.dense.same", digest)
        self.engine(opened, "fp32.dense.other", "0" * 64)
        self.engine(opened, "fp32.dense.damaged", digest)
        (artifact / "engines" / "fp32.dense.damaged.engine").write_bytes(b"x")
        (artifact / "engines" / "rtx-timing.cache").write_bytes(b"times")
        made = export_checkpoint(ReleaseRequest(out=artifact), runs_dir=runs)
        assert made.artifact.manifest.files["generator.fp32.onnx"].sha256 == digest  # the same weights, the same bytes
        (kept,) = list_engines(made.artifact)
        assert (kept.name, read_engine(made.artifact, kept)) == ("fp32.dense.same", content)
        assert (artifact / "engines" / "rtx-timing.cache").read_bytes() == b"times"
        assert not any(name.startswith("engines/") for name in made.artifact.manifest.files)
        assert made.notes == (
            "engines of graphs that are the same as before were kept: fp32.dense.same",
            "2 engines were removed with the old artifact: `spade build` makes engines of the new graphs",
        )

    def test_without_engines_nothing_is_said(self, artifact: Path) -> None:
        assert carry_engines(artifact, artifact) == ()


def test_nothing_to_export_names_the_commands(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        export_checkpoint(ReleaseRequest(), runs_dir=tmp_path / "runs")
    assert "spade train" in str(caught.value.hint)


def test_large_models_keep_fewer_golden_inputs() -> None:
    class Large:
        def parameters(self) -> list[Any]:
            return [_Count(release_module.LARGE_PARAMETERS + 1)]

    assert release_module._golden_count(Large()) == release_module.GOLDEN_COUNT_LARGE


class _Count:
    def __init__(self, count: int) -> None:
        self.count = count

    def numel(self) -> int:
        return self.count
