"""The published comparison: what an image costs in PyTorch, in other engines, and in the generator's own artifact.

Generator: of ADE20K's size (150 labels and dontcare, base 64), or with --spec coco of COCO-Stuff's (182, dontcare and
edges). Maps: the 13 COCO-Stuff samples, whose ids become ADE20K's by rank among the ids that occur. Batch 1. What
others make of it comes from `spade bench`'s own baselines; "conditions" in the result says how each is measured.

    python benchmarks/peers.py [--spec coco] [--size 256] [--group fp32] [--resume] [--work FOLDER]

The candidates are measured in groups, since all of them together need more memory than small machines have. In a group
they take turns round by round, and a plain export in ONNX Runtime is in each of them: ratios to it are comparable.
A result is of one size on one kind of CPU, and written after each group. --resume goes on with it: groups and maps
that are there are left alone, and a result of another CPU or of other versions is refused. --work keeps the model and
what is converted from it between calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpu_bounds import lower_bounds, peaks, write_convolutions
from models import ADE20K, COCO, DATA, RESULTS, SMALL, coco_maps, make_artifact, resized, synthetic_maps
from peers_table import PLAIN, add_group, new_table, refresh
from printed import Printed

from spade_deploy.artifact import Arrays, Artifact
from spade_deploy.bench import (
    BASELINES,
    BenchPlan,
    BenchResult,
    Candidate,
    Kind,
    choose_candidates,
    describe_machine,
    run_plan,
)
from spade_deploy.files.atomic import write_json
from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.processor import cpu_kind
from spade_deploy.spec import Backend, GraphKind, Precision

CONVOLUTIONS = "residual convolutions alone, direct, ONNX Runtime"
GROUPS: dict[str, tuple[tuple[Kind, ...], tuple[tuple[Backend, Precision, GraphKind], ...]]] = {
    "fp32": (
        (Kind.EAGER, Kind.COMPILE, Kind.NCNN, Kind.OPENVINO_F32),
        (
            (Backend.CPU, Precision.FP32, GraphKind.LOOKUP),
            (Backend.OPENVINO, Precision.FP32, GraphKind.LOOKUP),
        ),
    ),
    "fp32-graphs": (
        (),
        tuple(
            (backend, Precision.FP32, kind)
            for backend in (Backend.CPU, Backend.OPENVINO)
            for kind in (GraphKind.DENSE, GraphKind.LOOKUP)
        ),
    ),
    "bf16": (
        (Kind.EAGER_BF16, Kind.COMPILE_BF16, Kind.OPENVINO),
        tuple((Backend.OPENVINO, Precision.BF16, kind) for kind in (GraphKind.DENSE, GraphKind.LOOKUP)),
    ),
    "int8": (
        (Kind.PLAIN_INT8, Kind.OPENVINO_INT8),
        tuple(
            (backend, Precision.INT8, kind)
            for backend in (Backend.CPU, Backend.OPENVINO)
            for kind in (GraphKind.DENSE, GraphKind.LOOKUP)
        ),
    ),
}
"""Each group's baselines, beside the plain export in ONNX Runtime, and its graphs of the artifact."""
ENGINES = {Backend.CPU: "ONNX Runtime", Backend.OPENVINO: "OpenVINO"}
ROUNDS_A_MAP = {256: 2}
LIMIT_S = 300.0
"""Of a group's rounds alone. The first group of a size also makes the reference's images."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    if asked.quick:
        name, spec, maps, sizes = "quick", SMALL, synthetic_maps(SMALL), [SMALL.height]
    else:
        name, spec = asked.spec, {"ade20k": ADE20K, "coco": COCO}[asked.spec]
        maps, sizes = coco_maps(spec, asked.data), asked.size or [256, 512]
    maps = dict(list(maps.items())[: asked.maps])
    with tempfile.TemporaryDirectory() as temporary:
        artifact = None
        for size in sizes:
            target = asked.out / f"peers-{name}-{size}-{cpu_kind()}.json"
            facts = {
                "generator": spec.to_json(),
                "size": size,
                "rounds_a_map": asked.rounds or ROUNDS_A_MAP.get(size, 1),
                "threads": asked.threads or usable_cores(),
                "machine": describe_machine(),
            }
            table = read_table(target, facts) if asked.resume and target.exists() else new_table(facts)
            for group in asked.group or GROUPS:
                missing = {stem: one for stem, one in maps.items() if stem not in table["groups"].get(group, {})}
                if not missing:
                    print(f"{target}: {group} is there")
                    continue
                if artifact is None:
                    artifact = make_artifact(asked.work or Path(temporary), spec, maps, with_int8=asked.int8)
                cases = {stem: resized(one, size, size) for stem, one in missing.items()}
                measure(artifact, group, cases, asked, table)
                write_json(target, table)
            show(table)
            print(f"{target}: {len(table['per_map'])} maps")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", choices=("ade20k", "coco"), default="ade20k")
    parser.add_argument("--size", type=int, action="append", help="of a side in pixels; 256 and 512 by default")
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="may be repeated; all by default")
    parser.add_argument("--baseline", choices=list(BASELINES), action="append", help="of the group's; all by default")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--maps", type=int, help="the first so many; all by default")
    parser.add_argument("--rounds", type=int, help="a map; by default 2 at 256, else 1")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds a group for rounds; 300 by default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--int8", action="store_true", help="export int8 graphs, too, which takes long")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a small generator on synthetic maps: a try-out")
    return parser.parse_args(arguments)


def read_table(target: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """A result to go on with. Exits where it was made elsewhere: figures of two machines are never mixed."""
    table: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    for name, value in facts.items():
        if table[name] != value:
            raise SystemExit(
                f"{target}: its {name} is {json.dumps(table[name])}, here it is {json.dumps(value)};"
                " without --resume it is measured anew, --out writes elsewhere"
            )
    return table


def measure(
    artifact: Artifact, group: str, cases: dict[str, Arrays], asked: argparse.Namespace, table: dict[str, Any]
) -> None:
    """Measure one group on the maps that are missing, and add it to the table."""
    run, size = artifact.path.parent, table["size"]
    print(f"{size} x {size}, {group}: {len(cases)} maps", flush=True)
    result = run_plan(
        artifact,
        BenchPlan(
            candidates_of(artifact, group, asked.baseline, size),
            list(cases.values()),
            names=list(cases),
            rounds=table["rounds_a_map"] * len(cases),
            threads=table["threads"],
            runs_dir=run.parent,
            kept=run / "peers",
            limit_s=asked.limit,
        ),
        progress=Printed(),
    )
    add_group(table, group, result, artifact.manifest.generator, cases)
    add_bounds(table, artifact, result)
    refresh(table)


def candidates_of(artifact: Artifact, group: str, only: Sequence[str] | None, size: int) -> list[Candidate]:
    """The plain export, the group's baselines, its graphs that the artifact has, and its bounds."""
    kinds, graphs = GROUPS[group]
    wanted = [Kind.PLAIN, *(kind for kind in kinds if not only or kind in only)]
    found = [one for one in choose_candidates(artifact, graphs=["dense"], baselines=wanted) if one.is_baseline]
    there = {(graph.precision, graph.kind) for graph in artifact.manifest.graphs}
    for backend, precision, kind in graphs:
        if (precision.exported, kind) in there:
            (one,) = choose_candidates(artifact, [precision], [kind])
            name = f"this artifact, {precision} {kind}, {ENGINES[backend]}"
            found.append(Candidate(Kind.GRAPH, name, precision, one.graph, backend=backend))
    if group == "fp32-graphs":
        file = artifact.path.parent / f"convolutions-{size}.onnx"
        write_convolutions(artifact.manifest.generator, size, file)
        found += [Candidate(Kind.BOUND, CONVOLUTIONS, onnx=file)]
    if group in ("fp32-graphs", "bf16"):
        precision = Precision.BF16 if group == "bf16" else Precision.FP32
        found.append(Candidate(Kind.GEMM, f"matrix product, {precision}", precision))
    return found


def add_bounds(table: dict[str, Any], artifact: Artifact, result: BenchResult) -> None:
    """The time that this CPU's arithmetic alone would need, by the fastest matrix products so far."""
    known = table["bounds"].get("peak_flop_per_s", {})
    found = peaks([result])
    best = {name: max(known.get(name, 0.0), found.get(name, 0.0)) for name in {**known, **found}}
    table["bounds"] = lower_bounds(artifact.manifest.generator, table["size"], best)


def show(table: dict[str, Any]) -> None:
    """Print the table."""
    for name, row in table["over_maps"].items():
        quality = "" if row["psnr_db"] is None else f"{row['psnr_db']} dB"
        times = "" if row["times_plain"] is None else f"{row['times_plain']:.2f} x {PLAIN}"
        print(
            f"  {name:<50} {row['precision']:<5} {row['ms']:9.1f} ms {row['cpu_ms']:9.1f} CPU ms  {quality:<9} {times}"
        )
    for precision, ways in table["bounds"].get("ms", {}).items():
        said = ", ".join(f"{way} {ms:.1f} ms" for way, ms in ways.items())
        print(f"  residual convolutions at this CPU's peak, {precision}: {said}")
    for name, reason in table["not_measured"].items():
        print(f"  {name}: not measured: {reason}")


if __name__ == "__main__":
    main()
