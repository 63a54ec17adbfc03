"""The result of benchmarks/peers.py: what is kept of each group and map, and the figures over all maps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from spade_deploy.artifact import Arrays
from spade_deploy.bench import BASELINES, BenchResult, Kind, said_db
from spade_deploy.lookup.tables import unique_share
from spade_deploy.spec import GeneratorSpec

PLAIN = BASELINES[Kind.PLAIN]
OURS = {
    "fp32": ("this artifact, fp32 lookup, OpenVINO", "this artifact, fp32 lookup, ONNX Runtime"),
    "bf16": ("this artifact, bf16 lookup, OpenVINO",),
    "int8": ("this artifact, int8 lookup, OpenVINO", "this artifact, int8 lookup, ONNX Runtime"),
}
"""Our graph that each precision class is compared with: the first of these that was measured."""
GOALS = {
    256: (
        (OURS["fp32"][0], PLAIN, 4.5),
        (OURS["fp32"][0], OURS["fp32"][1], 1.3),
        (OURS["bf16"][0], BASELINES[Kind.OPENVINO], 2.3),
    ),
    512: ((OURS["bf16"][0], BASELINES[Kind.OPENVINO], 2.7),),
}
"""What was aimed at, by size: how many times as fast the first should be as the second, side by side."""


def new_table(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A result without figures. facts: the generator, the size, the machine."""
    empty: dict[str, Any] = {name: {} for name in ("over_maps", "bounds", "not_measured", "per_map", "groups")}
    return {**facts, **empty, "bench": []}


def add_group(
    table: dict[str, Any], group: str, result: BenchResult, spec: GeneratorSpec, cases: dict[str, Arrays]
) -> None:
    """Put the figures of one bench into the table, map by map, and its raw times behind them."""
    plain = next((entry for entry in result.measured if entry.candidate.name == PLAIN), None)
    ours = {name: entry for entry in result.measured if (name := entry.candidate.name) in sum(OURS.values(), ())}
    for case in sorted({one.case for one in result.rounds}):
        stem = result.cases[case]
        table["per_map"].setdefault(stem, {"unique_share": unique_share(spec, cases[stem])})
        rows = table["groups"].setdefault(group, {}).setdefault(stem, {})
        for entry in result.measured:
            figures = result.figures(entry, case)
            rows[entry.candidate.name] = {
                "kind": entry.candidate.kind,
                "precision": entry.precision,
                "ms": figures.p50_ms,
                "cpu_ms": figures.cpu_p50_ms,
                "psnr_db": said_db(entry.psnr_db.get(case)),
                "times_plain": None if plain is None else result.ratio(entry, plain, case),
                "times_plain_cpu": None if plain is None else result.cpu_ratio(entry, plain, case),
                "ours_is_faster_by": {name: result.ratio(one, entry, case) for name, one in ours.items()},
                "ours_is_faster_by_cpu": {name: result.cpu_ratio(one, entry, case) for name, one in ours.items()},
            }
    for entry in result.entries:
        if entry.reason:
            table["not_measured"][entry.candidate.name] = f"{entry.reason}{f' ({entry.hint})' if entry.hint else ''}"
    table["bench"].append({"group": group, **result.to_json(), "artifact": "made by benchmarks/models.py"})


def refresh(table: dict[str, Any]) -> None:
    """Make the figures over all maps anew: medians of what was measured side by side on each map.

    A candidate of several groups counts in the first one. One that was not measured on all maps of its group, since
    a later call lacked it, has no figure over the maps.
    """
    over_maps: dict[str, Any] = {}
    for group, by_map in table["groups"].items():
        names = dict.fromkeys(name for rows in by_map.values() for name in rows)
        for name in names:
            rows = [rows[name] for rows in by_map.values() if name in rows]
            if name in over_maps or len(rows) < len(by_map):
                continue
            over_maps[name] = {"group": group, "maps": len(rows), **_over(rows), **_process(table, group, name)}
    table["over_maps"] = over_maps
    for row in over_maps.values():
        own = next((name for name in OURS.get(row["precision"], ()) if name in row["by_ours"]), None)
        row["compared_with"], row["ours_is_faster_by"] = own, None if own is None else row["by_ours"][own]
    table["goals"] = [
        {"ours": ours, "other": other, "goal": goal, "reached": reached, "is_reached": reached >= goal}
        for ours, other, goal in GOALS.get(table["size"], ())
        if (reached := over_maps.get(other, {}).get("by_ours", {}).get(ours)) is not None
    ]


def _over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    measured_db = [row["psnr_db"] for row in rows if isinstance(row["psnr_db"], float)]
    return {
        "kind": first["kind"],
        "precision": first["precision"],
        **{name: _median(rows, name) for name in ("ms", "cpu_ms", "times_plain", "times_plain_cpu")},
        "psnr_db": round(min(measured_db), 1) if measured_db else first["psnr_db"],
        "by_ours": {
            name: statistics.median(row["ours_is_faster_by"][name] for row in rows)
            for name in first["ours_is_faster_by"]
            if all(name in row["ours_is_faster_by"] for row in rows)
        },
    }


def _median(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows]
    return None if None in values else statistics.median(values)


def _process(table: dict[str, Any], group: str, name: str) -> dict[str, Any]:
    """Memory and cold start of the candidate's process: the most memory of its calls, and the median cold start."""
    found = [
        one
        for bench in table["bench"]
        if bench["group"] == group
        for one in bench["candidates"]
        if one["name"] == name and "cold_start" in one
    ]
    memory = [one["peak_memory_bytes"] for one in found if one["peak_memory_bytes"] is not None]
    return {
        "runtime": found[0]["runtime"],
        "peak_memory_bytes": max(memory, default=None),
        "cold_start_s": statistics.median(one["cold_start"]["total_s"] for one in found),
    }
