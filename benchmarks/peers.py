"""The published comparison: what a generator costs an image in PyTorch, in plain exports, and in its own artifact.

Generator: of ADE20K's size (150 labels and dontcare, base 64), or with --spec coco of COCO-Stuff's (182, dontcare and
edges). Maps: the 13 COCO-Stuff samples, whose ids become ADE20K's by rank among the ids that occur. Batch 1, fp32,
all candidates in one run (`spade bench`'s library): see "conditions" in the result.
The floor is the residual blocks' convolutions alone, chained in one graph of ONNX Runtime: what no trick on the label
map can go below. It makes no image.

    python benchmarks/peers.py [--spec coco] [--size 256] [--resume] [--work FOLDER]

Each size is a result of its own; --resume leaves those that are there, --work keeps the model between calls.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import ADE20K, COCO, DATA, RESULTS, SMALL, coco_maps, make_artifact, resized, synthetic_maps
from onnx import TensorProto, helper, numpy_helper
from printed import Printed

from spade_deploy.artifact import Arrays, Artifact
from spade_deploy.bench import BASELINES, BenchPlan, BenchResult, Candidate, Kind, choose_candidates, run_plan
from spade_deploy.files.atomic import write_json
from spade_deploy.lookup.tables import unique_share
from spade_deploy.spec import GeneratorSpec, GraphKind

FLOOR = "floor: residual convolutions alone"
OURS = "fp32 lookup"
ROUNDS_A_MAP = {256: 2}
LIMIT_S = {256: 200.0, 512: 200.0}
"""Of the rounds alone; with the model's export and what workers need to start, all is under 12 minutes on 2 cores."""
GOALS = {
    256: {Kind.PLAIN: 2.5, Kind.OPENVINO: 2.2, Kind.EAGER: 3.5},
    512: {Kind.PLAIN: 3.0},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", choices=("ade20k", "coco"), default="ade20k")
    parser.add_argument("--size", type=int, action="append", help="of a side in pixels; 256 and 512 by default")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--baseline", choices=list(BASELINES), action="append", help="all by default")
    parser.add_argument("--rounds", type=int, help="a map; by default 2 at 256, else 1")
    parser.add_argument("--limit", type=float, help="seconds a size for rounds")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a small generator on synthetic maps: a try-out")
    asked = parser.parse_args(arguments)
    if asked.quick:
        name, spec, maps, sizes = "quick", SMALL, synthetic_maps(SMALL), [SMALL.height]
    else:
        name, spec = asked.spec, {"ade20k": ADE20K, "coco": COCO}[asked.spec]
        maps, sizes = coco_maps(spec, asked.data), asked.size or [256, 512]
    with tempfile.TemporaryDirectory() as temporary:
        artifact = None
        for size in sizes:
            target = asked.out / f"peers-{name}-{size}.json"
            if asked.resume and target.exists():
                print(f"{target} is there")
                continue
            if artifact is None:
                artifact = make_artifact(asked.work or Path(temporary), spec, maps)
            measure(artifact, maps, size, asked, target)


def measure(artifact: Artifact, maps: dict[str, Arrays], size: int, asked: argparse.Namespace, target: Path) -> None:
    """One size: all candidates over all maps, written to `target`."""
    cases = {name: resized(one, size, size) for name, one in maps.items()}
    run = artifact.path.parent
    floor = run / f"floor-{size}.onnx"
    write_floor(artifact.manifest.generator, size, floor)
    rounds = asked.rounds or ROUNDS_A_MAP.get(size, 1)
    result = run_plan(
        artifact,
        BenchPlan(
            [
                *choose_candidates(artifact, graphs=list(GraphKind), baselines=asked.baseline or ["all"]),
                Candidate(Kind.BOUND, FLOOR, onnx=floor),
            ],
            list(cases.values()),
            names=list(cases),
            rounds=rounds * len(cases),
            threads=asked.threads,
            backend="cpu",
            runs_dir=run.parent,
            plain_onnx=run / "plain.onnx",
            limit_s=asked.limit or LIMIT_S.get(size),
        ),
        progress=Printed(),
    )
    value = summarize(result, artifact, cases, size)
    write_json(target, value)
    for name, row in value["over_maps"].items():
        against = "" if row["ours_is_faster_by"] is None else f"  ours x {row['ours_is_faster_by']:.2f}"
        print(f"  {name:<40} {row['ms']:9.1f} ms{against}")
    for entry in result.entries:
        if entry.reason:
            print(f"  {entry.candidate.name}: not measured: {entry.reason}")
    print(f"written to {target}")


def summarize(result: BenchResult, artifact: Artifact, cases: dict[str, Arrays], size: int) -> dict[str, Any]:
    """Figures a map and their medians over maps; the raw times are under "bench"."""
    ours = next((entry for entry in result.measured if entry.candidate.name == OURS), None)
    done = sorted({entry.case for entry in result.rounds})
    per_map: dict[str, Any] = {}
    for case in done:
        ms = {entry.candidate.name: result.figures(entry, case).p50_ms for entry in result.measured}
        faster = {} if ours is None else {e.candidate.name: result.ratio(ours, e, case) for e in result.measured}
        share = unique_share(artifact.manifest.generator, cases[result.cases[case]])
        per_map[result.cases[case]] = {"unique_share": share, "ms": ms, "ours_is_faster_by": faster}
    over_maps = {}
    for entry in result.measured:
        name = entry.candidate.name
        over_maps[name] = {
            "kind": entry.candidate.kind,
            "ms": statistics.median(row["ms"][name] for row in per_map.values()),
            "ours_is_faster_by": None
            if ours is None
            else statistics.median(row["ours_is_faster_by"][name] for row in per_map.values()),
            "peak_memory_bytes": entry.peak_memory_bytes,
            "cold_start_s": None if entry.cold_start is None else entry.cold_start.total_s,
        }
    goals = {
        name: {"goal": GOALS[size][row["kind"]], "is_reached": row["ours_is_faster_by"] >= GOALS[size][row["kind"]]}
        for name, row in over_maps.items()
        if row["kind"] in GOALS.get(size, {}) and row["ours_is_faster_by"] is not None
    }
    return {
        "generator": artifact.manifest.generator.to_json(),
        "size": size,
        "maps": len(per_map),
        "goals": goals,
        "over_maps": over_maps,
        "per_map": per_map,
        "bench": {**result.to_json(), "artifact": "made by benchmarks/models.py"},
    }


def write_floor(spec: GeneratorSpec, size: int, path: Path) -> None:
    """The residual blocks' convolutions with their shortcuts and doublings, chained; no SPADE, no activation."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(name: str, x: str, channels: tuple[int, int], side: int, bias: bool = True) -> str:
        into, out = channels
        weight = rng.standard_normal((out, into, side, side), np.float32) / np.float32(np.sqrt(into * side * side))
        inputs = [x, constant(f"{name}.weight", weight)]
        inputs += [constant(f"{name}.bias", np.zeros(out, np.float32))] if bias else []
        nodes.append(helper.make_node("Conv", inputs, [name], pads=[side // 2] * 4, kernel_shape=[side, side]))
        return name

    scales = constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = "x"
    for block in spec.blocks:
        if block.doubles:
            attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            nodes.append(helper.make_node("Resize", [x, "", scales], [f"{block.name}.doubled"], **attributes))
            x = f"{block.name}.doubled"
        ends = (block.in_channels, block.out_channels)
        shortcut = conv(f"{block.name}.conv_s", x, ends, 1, bias=False) if block.has_shortcut else x
        y = conv(f"{block.name}.conv_0", x, (block.in_channels, block.middle_channels), 3)
        y = conv(f"{block.name}.conv_1", y, (block.middle_channels, block.out_channels), 3)
        nodes.append(helper.make_node("Add", [y, shortcut], [block.name]))
        x = block.name
    first, last = spec.blocks[0], spec.blocks[-1]
    latent = size // spec.stride
    graph = helper.make_graph(
        nodes,
        "floor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, first.in_channels, latent, latent])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, last.out_channels, size, size])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))


if __name__ == "__main__":
    main()
