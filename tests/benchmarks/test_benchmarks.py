"""benchmarks/: the scripts work, every result is named, and the README's table is made of the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
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


def row(kind: str, precision: str, faster: float | None, ms: float, db: float | None) -> dict[str, Any]:
    own = {"fp32": "this artifact, fp32 lookup, OpenVINO", "bf16": "this artifact, bf16 lookup, OpenVINO"}[precision]
    return {
        "kind": kind,
        "precision": precision,
        "ms": ms,
        "psnr_db": db,
        "compared_with": own,
        "ours_is_faster_by": faster,
    }


def result(kind: str, size: int, faster: float) -> dict[str, Any]:
    packages = {"torch": "2.0", "onnxruntime": "1.0"}
    return {
        "size": size,
        "threads": 2,
        "machine": {"processor": "a processor", "cpu_kind": kind, "cpu_model": "model 7", "packages": packages},
        "per_map": {f"map {number}": {} for number in range(13)},
        "over_maps": {
            "PyTorch eager": row("eager", "fp32", faster, 1234.5, 131.2),
            "ncnn": row("ncnn", "fp32", 1.25, 567.8, 136.0),
            "PyTorch eager, bf16": row("eager-bf16", "bf16", 2.0, 345.6, 55.1),
            "this artifact, fp32 lookup, OpenVINO": row("graph", "fp32", 1.0, 45.67, 130.0),
            "this artifact, bf16 lookup, OpenVINO": row("graph", "bf16", 1.0, 12.3, 56.0),
            "convolutions": row("bound", "fp32", 0.5, 22.2, None),
            "matrix product, fp32": row("gemm", "fp32", 0.1, 5.0, None),
        },
        "bounds": {
            "peak_flop_per_s": {"fp32": 2e11},
            "ms": {"fp32": {"direct": 400.0, "winograd_2x2": 180.0, "winograd_4x4": 100.5}},
        },
        "bench": [{"rounds": [{"is_quiet": True}, {"is_quiet": False}]}],
    }


def test_the_table_follows_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("readme_table")
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    arguments = ["--readme", str(readme), "--results", str(results)]
    readme.write_text("before\nafter\n", encoding="utf-8")
    (results / "peers-ade20k-256.json").write_text("{}", encoding="utf-8")  # of an older version: no kind of CPU
    assert script.main([*arguments, "--check"]) == 0  # no results, no markers: nothing to compare
    (results / "peers-ade20k-256-amx.json").write_text(json.dumps(result("amx", 256, 3.456)), encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert "bench:begin" in capsys.readouterr().err
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{script.BEGIN}\n**AMX**: ADE20K, 256 px: the lookup graph, in the")
    assert text.endswith(f"\n{script.END}\nafter\n")
    # The headline names the class, and the fastest other in it; neither a bound nor our own graphs count.
    assert (
        "is 1.25 times as fast as ncnn in fp32 and 2.00 times as fast as PyTorch eager, bf16 in bf16. Of all other"
        in text
    )
    assert "| fp32 | PyTorch eager | 3.46 x (1,234 ms, 131 dB) |" in text
    assert "| bf16 | PyTorch eager, bf16 | 2.00 x (346 ms, 55 dB) |" in text
    assert "| bf16 | **this artifact, bf16 lookup, OpenVINO** | 12.3 ms, 56 dB |" in text
    assert "| fp32 | convolutions | 0.50 x (22.2 ms) |" in text
    assert "matrix product, fp32" not in text
    assert "old" not in text
    assert "2 rounds (1 undisturbed), 2 threads, a processor (model 7); torch 2.0, onnxruntime 1.0." in text
    assert "At the 200 GFLOP/s of a large fp32 matrix product" in text
    assert "400 ms directly, 180 ms by Winograd F(2 x 2), 100 ms by Winograd F(4 x 4)" in text
    (results / "peers-coco-512-amx.json").write_text(json.dumps(result("amx", 512, 4.0)), encoding="utf-8")
    (results / "peers-coco-256-avx2.json").write_text(json.dumps(result("avx2", 256, 5.0)), encoding="utf-8")
    assert script.main([*arguments, "--check"]) == 1
    assert script.main(arguments) == 0
    text = readme.read_text(encoding="utf-8")
    assert "| 3.46 x (1,234 ms, 131 dB) | 4.00 x (1,234 ms, 131 dB) |" in text
    assert "**AVX2**: COCO-Stuff, 256 px: the lookup graph" in text
    assert "| fp32 | PyTorch eager | 5.00 x (1,234 ms, 131 dB) |" in text


# --- the scripts


@pytest.mark.slow
def test_peers_in_small(work: Path, tmp_path: Path) -> None:
    peers = load_script("peers")
    arguments = ["--quick", "--group", "fp32-graphs", "--threads", "1", "--work", str(work), "--out", str(tmp_path)]
    peers.main([*arguments, "--maps", "2"])
    (target,) = tmp_path.iterdir()
    assert target.name == f"peers-quick-64-{peers.cpu_kind()}.json"
    value = json.loads(target.read_text(encoding="utf-8"))
    plain, lookup = "plain export, ONNX Runtime", "this artifact, fp32 lookup, ONNX Runtime"
    there = {plain, lookup, "this artifact, fp32 dense, ONNX Runtime", peers.CONVOLUTIONS, "matrix product, fp32"}
    assert there <= set(value["over_maps"])
    assert len(value["per_map"]) == 2
    assert value["over_maps"][plain]["times_plain"] == 1
    by_map = [rows[lookup]["times_plain"] for rows in value["groups"]["fp32-graphs"].values()]
    assert value["over_maps"][lookup]["times_plain"] == np.median(by_map)
    quality = [rows[lookup]["psnr_db"] for rows in value["groups"]["fp32-graphs"].values()]
    assert value["over_maps"][lookup]["psnr_db"] == round(min(quality), 1) > 110  # measured 139
    assert value["over_maps"][lookup]["cpu_ms"] > 0
    assert all(0 < one["unique_share"] < 1 for one in value["per_map"].values())
    assert str(tmp_path) not in target.read_text(encoding="utf-8")
    ways = value["bounds"]["ms"]["fp32"]
    assert ways["direct"] > ways["winograd_2x2"] > ways["winograd_4x4"] > 0
    # The maps that are missing are added, and what was measured stays.
    peers.main([*arguments, "--resume"])
    more = json.loads(target.read_text(encoding="utf-8"))
    assert len(more["per_map"]) == 3
    assert len(more["bench"]) == 2
    for stem, rows in value["groups"]["fp32-graphs"].items():
        assert more["groups"]["fp32-graphs"][stem] == rows
    before = target.stat().st_mtime_ns
    peers.main([*arguments, "--resume"])
    assert target.stat().st_mtime_ns == before
    # A result of another CPU is not gone on with.
    more["machine"]["cpu_model"] = "another"
    target.write_text(json.dumps(more), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"its machine is .*another.*here it is"):
        peers.main([*arguments, "--resume"])


def test_figures_over_maps_by_hand() -> None:
    """Two maps, two groups: medians, the worst PSNR, the first group's row of a candidate, and what was aimed at."""
    table_script = load_script("peers_table")
    plain, own = table_script.PLAIN, table_script.OURS["fp32"][0]

    def figures(ms: float, db: Any, faster: float, precision: str = "fp32") -> dict[str, Any]:
        times = {"ms": ms, "cpu_ms": 2 * ms, "times_plain": 100 / ms, "times_plain_cpu": 100 / ms}
        return {"kind": "plain", "precision": precision, "psnr_db": db, "ours_is_faster_by": {own: faster}, **times}

    table = table_script.new_table({"size": 256})
    table["groups"] = {
        "fp32": {
            "one": {plain: figures(100.0, 131.26, 4.0), own: figures(25.0, "identical", 1.0)},
            "two": {plain: figures(200.0, 130.04, 6.0), own: figures(35.0, "identical", 1.0)},
        },
        "bf16": {"one": {plain: figures(900.0, 99.0, 9.0), "half": figures(10.0, 55.0, 0.5, "bf16")}, "two": {}},
    }
    process = {"runtime": "r", "peak_memory_bytes": 7, "cold_start": {"total_s": 1.5}}
    candidates = [{"name": name, **process} for name in (plain, own, "half")]
    table["bench"] = [{"group": group, "candidates": candidates} for group in table["groups"]]
    table_script.refresh(table)
    rows = table["over_maps"]
    assert set(rows) == {plain, own}  # the candidate in bf16 ran on one map of two
    assert (rows[plain]["ms"], rows[plain]["cpu_ms"], rows[plain]["psnr_db"]) == (150.0, 300.0, 130.0)
    assert (rows[plain]["compared_with"], rows[plain]["ours_is_faster_by"]) == (own, 5.0)
    assert (rows[own]["psnr_db"], rows[own]["peak_memory_bytes"], rows[own]["cold_start_s"]) == ("identical", 7, 1.5)
    (goal,) = table["goals"]
    assert goal == {"ours": own, "other": plain, "goal": 4.5, "reached": 5.0, "is_reached": True}


def test_the_bounds_are_of_the_residual_convolutions(tmp_path: Path) -> None:
    models, bounds = load_script("models"), load_script("cpu_bounds")
    bounds.write_convolutions(models.SMALL, 64, tmp_path / "convolutions.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "convolutions.onnx"), providers=["CPUExecutionProvider"])
    (fed,), (made,) = session.get_inputs(), session.get_outputs()
    assert (fed.shape, made.shape) == ([1, 128, 2, 2], [1, 8, 64, 64])
    (found,) = session.run(None, {"x": np.random.default_rng(0).standard_normal((1, 128, 2, 2), np.float32)})
    assert np.isfinite(found).all()
    assert found.std() > 0
    # The multiply-adds are those of PyTorch's own convolutions, counted as they run.
    counted = 0

    def count(module: Any, _: Any, out: Any) -> None:
        nonlocal counted
        counted += module.weight[0].numel() * out.numel()

    generator = models.make_generator(models.SMALL, passes=0)
    for name, module in generator.named_modules():
        if name.rpartition(".")[2] in ("conv_0", "conv_1", "conv_s"):
            module.register_forward_hook(count)
    with torch.inference_mode():
        generator(torch.zeros(1, models.SMALL.labels.num_channels, 64, 64))
    value = bounds.lower_bounds(models.SMALL, 64, {"fp32": 1e9})
    assert sum(layer["macs"] for layer in value["layers"]) == counted
    assert value["ms"]["fp32"]["direct"] == pytest.approx(2 * counted / 1e6)
    ones = sum(layer["macs"] for layer in value["layers"] if layer["kernel"] == 1)
    assert value["ms"]["fp32"]["winograd_4x4"] == pytest.approx(2 * (ones + (counted - ones) / 4) / 1e6)


@pytest.mark.slow
def test_memory_in_small(work: Path, tmp_path: Path) -> None:
    arguments = ["--quick", "--threads", "1", "--starts", "1", "--work", str(work), "--out", str(tmp_path)]
    memory = load_script("memory")
    memory.main(arguments)
    (target,) = tmp_path.iterdir()
    row = json.loads(target.read_text(encoding="utf-8"))["points"]["quick"]
    assert set(row["candidates"]) == {candidate.name for candidate in memory.CANDIDATES}
    for name, one in row["candidates"].items():
        assert 20e6 < one["imports_bytes"] < one["peak_memory_bytes"] < 1e9, name
        assert len(one["seconds"]) == len(one["cpu_s"]) == len(row["unique_shares"]) == 2
        # Measured 140 dB in float32; OpenVINO's own precision is bf16 where the CPU has it, measured 56 dB.
        assert one["psnr_db"] > (110 if "fp32" in name or "f32" in name or "plain export, ONNX" in name else 40), name
    assert set(row["cold_starts"]) == {candidate.name for candidate in memory.STARTED}
    for one in row["cold_starts"].values():
        (later,) = one["later"]
        assert (
            one["total_ratio"] == later["total_s"] / row["cold_starts"][memory.STARTED[0].name]["later"][0]["total_s"]
        )
        assert later["total_s"] == later["imports_s"] + later["load_s"] + later["first_run_s"]
        assert one["first"]["cpu_s"] > 0
    before = target.read_bytes()
    memory.main([*arguments, "--resume"])
    assert target.read_bytes() == before


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
