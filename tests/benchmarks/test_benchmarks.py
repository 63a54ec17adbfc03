"""benchmarks/: the scripts work, every result is named, and the README's table is made of the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL
from tests.support.bench_model import load_script, small_artifact, work_folder
from tests.support.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the small artifact already."""
    small_artifact(tmp_path_factory)
    return work_folder(tmp_path_factory)


# --- what is published


def test_every_result_is_named_and_every_named_one_is_there() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # rows that wait for their results
    named = set(re.findall(r"\]\(results/([^)]+)\)", shown))
    assert named == {path.name for path in RESULTS.iterdir()}
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_readme_has_the_table_of_the_results() -> None:
    # Without results there is nothing to be in step with.
    assert load_script("readme_table").main(["--check"]) == 0


def result(size: int, faster: float) -> dict[str, Any]:
    machine = {"processor": "a processor", "packages": {"torch": "2.0", "onnxruntime": "1.0"}}
    rounds = [{"is_quiet": True}, {"is_quiet": False}]
    return {
        "size": size,
        "maps": 13,
        "over_maps": {
            "PyTorch eager": {"ms": 1234.5, "ours_is_faster_by": faster},
            "fp32 lookup": {"ms": 45.67, "ours_is_faster_by": 1.0},
        },
        "bench": {"batch_size": 1, "threads": 2, "machine": machine, "rounds": rounds},
    }


def test_the_table_follows_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("readme_table")
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    arguments = ["--readme", str(readme), "--results", str(results)]
    readme.write_text("before\nafter\n", encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 0  # no results, no markers: nothing to compare
    (results / "peers-ade20k-256.json").write_text(json.dumps(result(256, 3.456)), encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert "bench:begin" in capsys.readouterr().err
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{script.BEGIN}\n")
    assert text.endswith(f"\n{script.END}\nafter\n")
    assert "| PyTorch eager | 3.46 x (1,234 ms) |" in text
    assert "| 45.7 ms |" in text
    assert "old" not in text
    assert "2 rounds (1 undisturbed), 2 threads, a processor; torch 2.0, onnxruntime 1.0" in text
    (results / "peers-coco-512.json").write_text(json.dumps(result(512, 4.0)), encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert script.main(arguments) == 0
    assert "| 3.46 x (1,234 ms) | 4.00 x (1,234 ms) |" in readme.read_text(encoding="utf-8")


# --- the scripts


def test_peers_in_small(work: Path, tmp_path: Path) -> None:
    peers = load_script("peers")
    arguments = ["--quick", "--baseline", "plain", "--threads", "1", "--work", str(work), "--out", str(tmp_path)]
    peers.main(arguments)
    target = tmp_path / "peers-quick-64.json"
    value = json.loads(target.read_text(encoding="utf-8"))
    assert set(value["over_maps"]) == {"plain export, ONNX Runtime", "fp32 dense", "fp32 lookup", peers.FLOOR}
    assert len(value["per_map"]) == value["maps"] == 3
    assert value["over_maps"]["fp32 lookup"]["ours_is_faster_by"] == 1
    by_map = [row["ours_is_faster_by"][peers.FLOOR] for row in value["per_map"].values()]
    assert value["over_maps"][peers.FLOOR]["ours_is_faster_by"] == np.median(by_map)
    assert all(0 < row["unique_share"] < 1 for row in value["per_map"].values())
    assert str(tmp_path) not in target.read_text(encoding="utf-8")
    before = target.stat().st_mtime_ns
    peers.main([*arguments, "--resume"])
    assert target.stat().st_mtime_ns == before


def test_the_floor_is_the_residual_convolutions(tmp_path: Path) -> None:
    models, peers = load_script("models"), load_script("peers")
    peers.write_floor(models.SMALL, 64, tmp_path / "floor.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "floor.onnx"), providers=["CPUExecutionProvider"])
    (fed,), (made,) = session.get_inputs(), session.get_outputs()
    assert (fed.shape, made.shape) == ([1, 128, 2, 2], [1, 8, 64, 64])
    (found,) = session.run(None, {"x": np.random.default_rng(0).standard_normal((1, 128, 2, 2), np.float32)})
    assert np.isfinite(found).all()
    assert found.std() > 0


def test_the_cost_curve_in_small(work: Path, tmp_path: Path) -> None:
    script = load_script("cost_curve")
    arguments = ["--quick", "--threads", "1", "--work", str(work), "--out", str(tmp_path)]
    script.main([*arguments, "--curve", "size"])
    script.main([*arguments, "--resume"])
    value = json.loads((tmp_path / "cost_curve-quick.json").read_text(encoding="utf-8"))
    assert {name: len(points) for name, points in value["curves"].items()} == {"size": 2, "labels": 1, "patterns": 2}
    assert [point["x"] for point in value["curves"]["size"].values()] == [32 * 32, 32 * 96]
    one_class, noise = value["curves"]["patterns"].values()
    # Measured 0.077 and 1: a map this small has many windows that hold some of its border.
    assert one_class["x"] < 0.15
    assert noise["x"] > 0.9
    for points in value["curves"].values():
        for point in points.values():
            assert set(point["graphs"]) == {"fp32 dense", "fp32 lookup", "fp32 auto"}
            assert point["graphs"]["fp32 dense"]["times_dense"] == 1
            assert all(len(graph["seconds"]) == 2 for graph in point["graphs"].values())
    for curve in value["curves"]:
        with Image.open(tmp_path / f"cost_curve-quick-{curve}.png") as plot:
            assert plot.width > 500


def test_noise_replaces_the_share_that_was_asked_for() -> None:
    models = load_script("models")
    inputs = {LABEL: np.zeros((1, 200, 200), np.uint8)}
    # A random id is the old one in 1 of 10 cases; a share of 40,000 pixels is within 0.01 of its mean.
    for share in (0.0, 0.3, 1.0):
        changed = (models.with_noise(inputs, share, 10)[LABEL] != 0).mean()
        assert abs(changed - 0.9 * share) < 0.01


@pytest.mark.shared
def test_the_samples_as_maps_of_either_model(shared_folder: Path) -> None:
    models = load_script("models")
    data = shared_folder / "data" / "coco_stuff_sample"
    ade = models.coco_maps(models.ADE20K, data)
    coco = models.coco_maps(models.COCO, data)
    assert len(ade) == len(coco) == 13
    ids = np.unique(np.concatenate([np.unique(one[LABEL]) for one in ade.values()]))
    known = ids[ids != 150]
    np.testing.assert_array_equal(known, np.arange(len(known)))
    for name, one in coco.items():
        assert set(one) == {LABEL, INSTANCE}
        assert one[LABEL].max() <= 182
        # The same regions: an id of one is an id of the other.
        pairs = np.unique(np.stack([maps[name][LABEL][0, ::4, ::4].ravel() for maps in (coco, ade)]), axis=1)
        assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
