"""README.md of an artifact: what the hub reads of it, and what people read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spade_deploy.artifact import Artifact, Source
from spade_deploy.errors import ConfigError
from spade_deploy.metrics.judge import Judge
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.release.model_card import model_card
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision
from spade_deploy.validation.report import GraphResult, ValidationReport
from tests.support.stand_in import EDGES, PLAIN, STYLED, golden_outputs, random_inputs, stand_in_artifact


def card(folder: Path, spec: GeneratorSpec, license_name: str = "", origin: str = "train") -> tuple[Artifact, str]:
    """A stand-in artifact and its card; the reference of its figures is the graph itself but for one pixel."""
    artifact = stand_in_artifact(folder, spec)
    manifest = artifact.manifest
    source = Source("tiny | <b>001", 40, origin, manifest.source.generator_sha256, license_name)
    inputs = random_inputs(spec)
    expected, found = golden_outputs(spec, inputs), golden_outputs(spec, inputs)
    found["pixels"][0, 0, 0, 0] ^= 1
    tolerance = tolerance_for(Precision.FP32, manifest.rounding, None)
    judge = Judge(spec.labels, Precision.FP32, manifest.rounding, tolerance)
    judge.add(inputs["label"], expected, found)
    result = GraphResult(manifest.graphs[0], "a runtime", judge.verdict().diff, tolerance, ())
    report = ValidationReport(folder, "PyTorch", "2 golden inputs", manifest.rounding, (result,), ())
    return artifact, model_card(replace(manifest, source=source), report, "synthetic label maps")


def front_matter(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    assert found is not None
    value: dict[str, Any] = yaml.safe_load(found[1])
    return value


@pytest.mark.parametrize(
    ("name", "told", "named"),
    [
        ("", "unknown", None),
        ("CC-BY-4.0", "cc-by-4.0", None),
        ("My House License 2", "other", "my-house-license-2"),
    ],
)
def test_the_hub_reads_the_licence_and_the_task(tmp_path: Path, name: str, told: str, named: str | None) -> None:
    _, text = card(tmp_path, PLAIN, name)
    head = front_matter(text)
    assert (head["license"], head.get("license_name")) == (told, named)
    assert head["pipeline_tag"] == "image-to-image"
    assert {"spade", "gaugan", "onnx"} <= set(head["tags"])
    assert (name or "Not stated") in text.partition("## Licence")[2]


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "style"])
def test_the_python_lines_of_the_card_run_in_the_artifacts_folder(
    tmp_path: Path, spec: GeneratorSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = card(tmp_path, spec)
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["pixels"].shape == (1, spec.height, spec.width, 3)
    assert names["pixels"].dtype == np.uint8


def test_figures_names_and_limits_are_those_of_the_model(tmp_path: Path) -> None:
    spec = replace(EDGES, labels=replace(EDGES.labels, names=("sea | sky", "<land>", "ice", "d", "e", "unknown")))
    artifact, text = card(tmp_path, spec)
    flipped = 1 / (2 * spec.height * spec.width)
    assert f"| fp32 | pass | 0 | 0 | identical | 1.000000 | {100 * flipped:.2f} % |" in text
    assert "0 sea \\| sky, 1 &lt;land>, 2 ice" in text
    assert "# tiny \\| &lt;b>001" in text
    assert artifact.manifest.source.generator_sha256 in text
    assert "--instances instances/" in text
    size = (tmp_path / "generator.fp32.onnx").stat().st_size
    assert f"| `generator.fp32.onnx` | fp32 | {size / 1e6:.1f} MB |" in text


def test_an_import_warns_of_the_licence_of_the_released_weights(tmp_path: Path) -> None:
    assert "CC BY-NC-SA 4.0" in card(tmp_path / "a", PLAIN, origin="import")[1]
    assert "CC BY-NC-SA 4.0" not in card(tmp_path / "b", PLAIN)[1]
    assert "CC BY-NC-SA 4.0" not in card(tmp_path / "c", PLAIN, "mit", origin="import")[1]


@pytest.mark.parametrize("name", ["", "x" * 61, "a\nb", "mit: [yaml", "<b>"])
def test_what_is_no_name_of_a_licence_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`license`: .* is not the name of a licence"):
        ReleaseRequest(license=name)


def test_labels_without_names_are_called_that(tmp_path: Path) -> None:
    assert "5 ids without names" in card(tmp_path, replace(PLAIN, labels=LabelSpec(5)))[1]
