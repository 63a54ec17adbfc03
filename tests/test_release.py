from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_generator
from PIL import Image

from spade_deploy import release as release_module
from spade_deploy.artifact import REPORT_HTML, REPORT_JSON, Artifact
from spade_deploy.compare import Tolerance
from spade_deploy.errors import ConfigError, ExportError, NotFoundError, ValidationFailedError
from spade_deploy.release import release
from spade_deploy.runs import checkpoint_folder, new_run, resolve_artifact
from spade_deploy.spec import LabelSpec, Precision
from spade_deploy.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs"
    generator = build_generator(labels=LabelSpec(3, names=("sea & sky", "<land>", "ice")), base_channels=4)
    save_checkpoint(checkpoint_folder(new_run(folder, "tiny"), 0), generator, step=0, origin="import")
    return folder


def test_release_writes_everything_and_the_pages_stand_alone(runs: Path) -> None:
    steps: list[str] = []
    made = release(None, runs_dir=runs, precisions=[Precision.FP32], on_step=steps.append)
    assert made.artifact.path == runs / "tiny" / "artifact" == resolve_artifact(None, runs)
    files = set(made.artifact.manifest.files)
    assert {
        "generator.fp32.onnx",
        "generator.lookup.fp32.onnx",
        REPORT_JSON,
        REPORT_HTML,
        "golden/inputs.npz",
        "golden/outputs.npz",
    } == files
    assert "synthetic" in made.golden_from
    assert any("PyTorch reference" in step for step in steps)
    page = (made.artifact.path / REPORT_HTML).read_text(encoding="utf-8")
    pictures = _Pictures()
    pictures.feed(page)
    # label map, PyTorch, and each graph with its difference, of each golden input.
    assert len(pictures.sources) == (2 + 2 * 2) * len(made.report.samples)
    assert all(source.startswith("data:image/png;base64,") for source in pictures.sources)
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "sea &amp; sky" in page
    assert "&lt;land&gt;" in page
    assert "passed" in page


def test_a_network_that_makes_nan_is_called_that(tmp_path: Path) -> None:
    """Each weight is finite, what they compute is not."""
    generator = build_generator(labels=LabelSpec(3), base_channels=4)
    generator.get_parameter("conv_img.weight").data.fill_(3e38)
    generator.get_parameter("conv_img.bias").data.fill_(3e38)
    run = new_run(tmp_path / "runs", "wild")
    save_checkpoint(checkpoint_folder(run, 0), generator, step=0, origin="import")
    with pytest.raises(ExportError, match=r"the network itself makes NaN or infinity of \d+ of \d+ golden label maps"):
        release(None, runs_dir=tmp_path / "runs", precisions=[Precision.FP32])
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
    from spade_deploy import validation

    out = tmp_path / "artifact"
    release(None, runs_dir=runs, out=out)
    before = (out / "manifest.json").read_bytes()

    def impossible(*_: Any) -> Tolerance:
        return Tolerance(min_ssim=2.0)

    monkeypatch.setattr(validation, "tolerance_for", impossible)
    with pytest.raises(ValidationFailedError, match="SSIM"):
        release(None, runs_dir=runs, out=out)
    assert (out / "manifest.json").read_bytes() == before
    failed = Artifact.open(tmp_path / "artifact.failed")
    assert failed.report() is not None
    assert "failed" in (failed.path / REPORT_HTML).read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "artifact.failed"}


def test_golden_inputs_from_a_folder(runs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "maps"
    labels.mkdir()
    ids = np.arange(64 * 64).reshape(64, 64) % 3
    Image.fromarray(ids.astype(np.uint8)).save(labels / "a.png")
    made = release(None, runs_dir=runs, out=tmp_path / "out", labels=labels)
    np.testing.assert_array_equal(made.artifact.golden().inputs["label"], ids[None])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match="no usable label maps"):
        release(None, runs_dir=runs, out=tmp_path / "out", labels=empty)


def test_a_folder_of_something_else_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no artifact"):
        release(None, runs_dir=runs, out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_nothing_to_export_names_the_commands(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        release(None, runs_dir=tmp_path / "runs")
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
