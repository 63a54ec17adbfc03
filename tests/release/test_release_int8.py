"""`spade export --int8` from label maps to the report, and the options that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from spade_deploy.artifact import REPORT_HTML, Artifact, rewrite_manifest
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.cli import app
from spade_deploy.errors import ConfigError
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.metrics.tolerances import Tolerance, tolerance_for
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import Int8Options, ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision, RoundingError
from spade_deploy.validation.divergence import RELATIVE_LIMIT, first_divergence
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.generators import build_generator
from tests.support.listener import Listener

SPEC = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=True), base_channels=8, height=64, width=64)


def write_maps(folder: Path, count: int = 5, seed: int = 0) -> tuple[Path, Path]:
    """Label and instance maps as PNG, and two files among the label maps that cannot be read."""
    label, instance = synthetic_label_maps(SPEC.labels, 64, 64, count, seed)
    for name, values in (("labels", label), ("instances", instance.astype(np.uint8))):
        (folder / name).mkdir(parents=True)
        for index, value in enumerate(values):
            Image.fromarray(value).save(folder / name / f"{index}.png")
    (folder / "labels" / "0_broken.png").write_bytes(b"no picture")
    Image.fromarray(label[0]).save(folder / "labels" / "9_alone.png")
    return folder / "labels", folder / "instances"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Listener]:
    folder = tmp_path_factory.mktemp("work")
    save_checkpoint(checkpoint_folder(new_run(folder / "runs", "tiny"), 0), build_generator(), step=0, origin="import")
    labels, instances = write_maps(folder)
    said = Listener()
    made = export_checkpoint(
        ReleaseRequest(int8=Int8Options(True, labels, instances, min_psnr_db=43.0)),
        runs_dir=folder / "runs",
        progress=said,
    )
    return made, said


def test_the_report_says_how_int8_came_about(released: tuple[Release, Listener]) -> None:
    made, said = released
    assert [result.name for result in made.report.results] == ["fp32", "fp32 lookup", "int8", "int8 lookup"]
    facts = (made.artifact.report() or {})["int8"]
    assert facts["maps"] == 5
    assert "2 skipped" in facts["calibration"]
    assert len(facts["ranking"]) == 44
    page = (made.artifact.path / REPORT_HTML).read_text(encoding="utf-8")
    assert page.count("<rect ") == 44
    assert "up_0.norm_0.modulation" in page
    assert "43 dB" in page
    for graph in (graph for graph in made.artifact.manifest.graphs if graph.precision is Precision.INT8):
        assert graph.min_psnr_db == 43
    assert any("calibrated on 5 label maps" in text for text in said.steps)
    assert any(entry[0] == "measuring each layer in int8" for entry in said.counts)
    for result in made.report.results[2:]:
        assert result.tolerance == Tolerance(min_psnr_db=43.0)
        assert 43 <= (result.diff.psnr_db or 0) < 60


def test_a_wrong_int8_graph_fails_and_is_named(released: tuple[Release, Listener], tmp_path: Path) -> None:
    made, _ = released
    runs = made.artifact.path.parents[1]
    generator = load_generator(made.checkpoint).module
    golden = {name: array[:1] for name, array in made.artifact.golden().inputs.items()}
    for kind in GraphKind:
        graph = made.artifact.graph(Precision.INT8, kind)
        file = made.artifact.path_of(graph.file)
        assert first_divergence(file, graph, generator, golden) is None
        model = onnx.load(str(file))
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "up_1.conv_0.weight.scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(2), scale.name))
        right = file.read_bytes()
        manifest = read_manifest(made.artifact.path)
        try:
            onnx.save(model, str(file))
            rewrite_manifest(made.artifact.path, manifest)
            results = validate(
                Artifact.open(made.artifact.path), ValidationRequest(checkpoint=made.checkpoint, runs_dir=runs)
            ).results
        finally:
            file.write_bytes(right)
            rewrite_manifest(made.artifact.path, manifest)
        wrong = next(result for result in results if result.name == graph.name)
        assert "is under 43.0 dB" in wrong.failures[0]
        assert "up_1.conv_0" in str(wrong.diverges_at)


def test_right_graphs_stay_under_the_divergence_limit(
    released: tuple[Release, Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = released
    generator = load_generator(made.checkpoint).module
    golden = {name: array[:1] for name, array in made.artifact.golden().inputs.items()}
    monkeypatch.setitem(RELATIVE_LIMIT, Precision.INT8, 0.1)  # measured worst 0.033; a doubled scale gives 1
    for kind in GraphKind:
        graph = made.artifact.graph(Precision.INT8, kind)
        assert first_divergence(made.artifact.path_of(graph.file), graph, generator, golden) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-psnr", "40"], "--min-psnr: belongs to --int8"),
        (["--calibrate", "maps"], "--calibrate: belongs to --int8"),
        (["--int8", "--min-psnr", "0"], "--min-psnr: 0 is not"),
        (["--int8", "--calibration-count", "0"], "--calibration-count: 0 is not"),
        (["--int8", "--calibrate-instances", "maps"], "--calibrate-instances: needs --calibrate"),
    ],
)
def test_options_that_contradict_are_usage_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["export", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output


def test_int8_has_no_tolerance_without_a_target() -> None:
    rounding = RoundingError(1e-6, 1e-7, 1e-6, 1e-7)
    assert tolerance_for(Precision.INT8, rounding, 35.0) == Tolerance(min_psnr_db=35.0)
    with pytest.raises(ConfigError, match="min_psnr_db"):
        tolerance_for(Precision.INT8, rounding)


def test_json_without_infinity(released: tuple[Release, Listener]) -> None:
    json.dumps(released[0].artifact.report(), allow_nan=False)
