"""What an image costs, against its size, the number of labels, and the share of unique patterns.

ADE20K-size generators (base 64), one COCO-Stuff map, batch 1, fp32; the dense graph, the lookup graph, and the choice
that the runtime makes itself:
- size: the map resized to squares of 128..1024 pixels, and to one of an odd aspect; at 1024 the graphs run one after
  the other, each alone in memory ("interleaved": false), and one that does not fit is named with its reason;
- labels: generators of 10 to 500 labels on the same regions, 256 x 256;
- patterns: from a map of one class over the sample to pure noise, by giving a growing share of pixels a random id.

    python benchmarks/cost_curve.py [--curve size] [--resume] [--work FOLDER]

The result is written after every point; --resume leaves the points that are in it. Three plots lie beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from models import ADE20K, DATA, RESULTS, SMALL, coco_maps, make_artifact, resized, synthetic_maps, with_noise

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.bench import CONDITIONS, BenchPlan, BenchResult, choose_candidates, run_plan
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.base import GraphChoice
from spade_deploy.files.atomic import atomic_file, write_json
from spade_deploy.lookup.tables import unique_share
from spade_deploy.spec import GeneratorSpec

SIZES = ((128, 128), (256, 256), (512, 512), (1024, 1024), (192, 608))
LABELS = (10, 50, 150, 500)
NOISE = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
ROUNDS, LIMIT_S = 9, 45.0
ALONE_FROM = 1024 * 1024
"""Pixels from which on the graphs do not fit into memory side by side."""
GRAPHS = {"fp32 dense": "tab:gray", "fp32 lookup": "tab:blue", "fp32 auto": "tab:orange"}
AXES = {
    "size": "pixels",
    "labels": "labels",
    "patterns": "share of unique patterns",
}


@dataclass(frozen=True)
class Plan:
    """What a run covers; the quick one is small in every way."""

    name: str
    spec: GeneratorSpec
    maps: Callable[[GeneratorSpec], dict[str, Arrays]]
    sizes: Sequence[tuple[int, int]] = SIZES
    labels: Sequence[int] = LABELS
    noise: Sequence[float] = NOISE
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Point:
    """One place of a curve: x is its place on the axis, None where that is measured."""

    curve: str
    name: str
    spec: GeneratorSpec
    inputs: Arrays
    x: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", choices=list(AXES), action="append", help="all by default")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds a point for rounds; one is always done")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small generators on a synthetic map: a try-out")
    asked = parser.parse_args(arguments)
    plan = Plan("cost_curve", ADE20K, lambda spec: coco_maps(spec, asked.data))
    if asked.quick:
        plan = Plan("cost_curve-quick", SMALL, synthetic_maps, [(32, 32), (32, 96)], [12], [1.0], rounds=2)
    target = asked.out / f"{plan.name}.json"
    found = json.loads(target.read_text(encoding="utf-8")) if asked.resume and target.exists() else {}
    curves: dict[str, dict[str, Any]] = found.get("curves", {})
    with tempfile.TemporaryDirectory() as temporary:
        for point in points(plan, asked.curve or list(AXES)):
            if point.name in curves.setdefault(point.curve, {}):
                continue
            curves[point.curve][point.name] = measure(point, plan, asked, asked.work or Path(temporary))
            value = {"generator": plan.spec.to_json(), "machine": describe_machine(), "conditions": list(CONDITIONS)}
            write_json(target, {**value, "curves": curves})
    for curve, values in curves.items():
        write_plot(curve, values, asked.out / f"{plan.name}-{curve}.png")
    print(f"written to {target}")


def points(plan: Plan, curves: Sequence[str]) -> Iterator[Point]:
    """Every point of the curves that were asked for."""
    spec = plan.spec
    if "size" in curves:
        (sample, *_) = plan.maps(spec).values()
        for height, width in plan.sizes:
            yield Point("size", f"{height}x{width}", spec, resized(sample, height, width), height * width)
    if "labels" in curves:
        for count in plan.labels:
            own = replace(spec, labels=replace(spec.labels, num_labels=count))
            (sample, *_) = plan.maps(own).values()
            yield Point("labels", str(count), own, resized(sample, spec.height, spec.width), count)
    if "patterns" in curves:
        (sample, *_) = plan.maps(spec).values()
        sample = resized(sample, spec.height, spec.width)
        one_class = {name: np.zeros_like(array) for name, array in sample.items()}  # one object too: no edges
        yield Point("patterns", "one class", spec, one_class)
        for share in plan.noise:
            noisy = with_noise(sample, share, spec.labels.num_ids)
            yield Point("patterns", f"{share:.0%} noise", spec, noisy)


def measure(point: Point, plan: Plan, asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One point's figures, with every raw time."""
    artifact = make_artifact(work, point.spec, plan.maps(point.spec))
    candidates = choose_candidates(artifact, graphs=list(GraphChoice))
    is_alone = point.inputs[LABEL].size >= ALONE_FROM
    graphs: dict[str, Any] = {}
    missing: dict[str, str | None] = {}
    rounds = []
    for group in [[one] for one in candidates] if is_alone else [candidates]:
        result = run_plan(
            artifact,
            BenchPlan(
                group,
                [point.inputs],
                names=[point.name],
                rounds=asked.rounds or plan.rounds,
                threads=asked.threads,
                backend="cpu",
                limit_s=asked.limit,
            ),
        )
        if not is_alone:
            result.require_right()
        graphs |= {entry.candidate.name: graph_facts(result, entry.candidate.name) for entry in result.measured}
        missing |= {entry.candidate.name: entry.reason for entry in result.entries if entry.is_fault}
        rounds += [{"others": entry.others, "is_quiet": entry.is_quiet} for entry in result.rounds]
    times = [f"{name} {facts['ms']:.1f} ms" for name, facts in graphs.items()]
    print(f"{point.curve} {point.name}: {', '.join([*times, *(f'{k}: {v}' for k, v in missing.items())])}", flush=True)
    share = unique_share(point.spec, point.inputs)
    return {
        "x": share if point.x is None else point.x,
        "unique_share": share,
        "interleaved": not is_alone,
        "graphs": graphs,
        "not_measured": missing,
        "rounds": rounds,
    }


def graph_facts(result: BenchResult, name: str) -> dict[str, Any]:
    """Of one graph: its median, its ratio to dense within the rounds, what was chosen, its memory, its times."""
    by_name = {entry.candidate.name: entry for entry in result.measured}
    entry, figures, dense = by_name[name], result.figures(by_name[name]), by_name.get("fp32 dense")
    return {
        "ms": figures.p50_ms,
        "times_dense": None if dense is None else 1 / result.ratio(entry, dense),
        "patterns_ms": figures.patterns_p50_ms,
        "lookup_share": figures.lookup_share,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "seconds": [run.seconds for run in entry.runs],
    }


def write_plot(curve: str, values: dict[str, Any], path: Path) -> None:
    """A line a graph; both axes logarithmic, except where x is a share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = sorted(values.items(), key=lambda item: item[1]["x"])
    for name, color in GRAPHS.items():
        places = [(row["x"], row["graphs"][name]["ms"]) for _, row in rows if name in row["graphs"]]
        axes.plot(*zip(*places, strict=True), "o-", color=color, label=name, alpha=0.8)
    if curve == "size":
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([row["x"] for _, row in rows], [name for name, _ in rows], rotation=30, fontsize=8)
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[curve])
    axes.set_ylabel("ms an image, median")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
