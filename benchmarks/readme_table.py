"""The README's table of figures, made of results/peers-MODEL-SIZE-CPU.json and put between its two markers.

python benchmarks/readme_table.py            # writes README.md
python benchmarks/readme_table.py --check    # exit code 1 where README.md and the results differ
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spade_deploy.files.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NAMES = {"ade20k": "ADE20K", "coco": "COCO-Stuff"}
KINDS = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2"}
"""How people write the names of kinds; others are written as they are."""
CLASSES = ("fp32", "bf16", "fp16", "int8")
PLAIN = "plain export, ONNX Runtime"
COMPARED = ("torch", "onnxruntime", "openvino", "nncf", "ncnn")
OWN = "this artifact"
WAYS = {"direct": "directly", "winograd_2x2": "by Winograd F(2 x 2)", "winograd_4x4": "by Winograd F(4 x 4)"}

Results = dict[str, dict[str, Any]]
"""Results by heading: model and size."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    found = read_results(asked.results)
    text = asked.readme.read_text(encoding="utf-8")
    if not found:
        print(f"{asked.results} holds no peers-MODEL-SIZE-CPU.json; `python benchmarks/peers.py` makes them")
        return 0
    wanted = with_table(text, "\n\n".join(section(kind, results) for kind, results in found.items()))
    if wanted is None:
        print(f"{asked.readme}: the lines {BEGIN} and {END} are missing, each once and in this order", file=sys.stderr)
        return 1
    if wanted == text:
        print(f"{asked.readme} is in step with the results of {', '.join(found)}")
        return 0
    if asked.check:
        print(f"{asked.readme} differs from the results; run: python benchmarks/readme_table.py", file=sys.stderr)
        return 1
    write_text(asked.readme, wanted)
    print(f"{asked.readme} has the tables of {', '.join(found)}")
    return 0


def read_results(folder: Path) -> dict[str, Results]:
    """Results by kind of CPU, each by model and then by size. Older results, which name no kind, are left out."""
    found = []
    for position, (name, shown) in enumerate(NAMES.items()):
        for path in folder.glob(f"peers-{name}-*-*.json"):
            value = json.loads(path.read_text(encoding="utf-8"))
            found.append((value["machine"]["cpu_kind"], position, value["size"], f"{shown}, {value['size']} px", value))
    by_kind: dict[str, Results] = {}
    for kind, _, _, heading, value in sorted(found, key=lambda entry: entry[:3]):
        by_kind.setdefault(kind, {})[heading] = value
    return by_kind


def section(kind: str, results: Results) -> str:
    """The headline, the table and the facts of one kind of CPU."""
    lines = [f"**{KINDS.get(kind, kind)}**: {headline(results)}", "", *table(results), ""]
    return "\n".join([*lines, *(facts(heading, value) for heading, value in results.items())])


def headline(results: Results) -> str:
    """By how much our graph is faster than the fastest other of its precision, from the first result."""
    heading, value = next(iter(results.items()))
    said = []
    for precision in CLASSES:
        others = {
            name: row["ours_is_faster_by"]
            for name, row in value["over_maps"].items()
            if row["precision"] == precision and row["ours_is_faster_by"] and is_other(name, row)
        }
        if others:
            fastest = min(others, key=lambda name: others[name])
            said.append(f"{others[fastest]:.2f} times as fast as {fastest} in {precision}")
    if not said:
        return "nothing is compared yet."
    return (
        f"{heading}: the lookup graph, in the fastest engine for it, is {' and '.join(said)}. Of all other"
        " ways to run the model, these are the fastest."
    )


def is_other(name: str, row: dict[str, Any]) -> bool:
    return not name.startswith(OWN) and row["kind"] not in ("bound", "gemm")


def table(results: Results) -> list[str]:
    """A row for each candidate of any result, by precision: how much faster ours is, the time, the PSNR."""
    headings = list(results)
    lines = [
        f"| precision | candidate | {' | '.join(headings)} |",
        f"|---|---|{'---:|' * len(headings)}",
    ]
    rows = {
        (row["precision"], name)
        for value in results.values()
        for name, row in value["over_maps"].items()
        if row["kind"] != "gemm"
    }
    order = [name for value in results.values() for name in value["over_maps"]]
    for precision, name in sorted(rows, key=lambda entry: (CLASSES.index(entry[0]), order.index(entry[1]))):
        cells = [cell(name, value["over_maps"].get(name), precision) for value in results.values()]
        own = any(value["over_maps"].get(name, {}).get("compared_with") == name for value in results.values())
        lines.append(f"| {precision} | {f'**{name}**' if own else name} | {' | '.join(cells)} |")
    return lines


def cell(name: str, row: dict[str, Any] | None, precision: str) -> str:
    if row is None or row["precision"] != precision:
        return "not measured"
    quality = f", {row['psnr_db']:.0f} dB" if isinstance(row["psnr_db"], float) else ""
    said = f"{milliseconds(row['ms'])}{quality}"
    if row["ours_is_faster_by"] is None or row["compared_with"] == name:
        return said
    return f"{row['ours_is_faster_by']:.2f} x ({said})"


def milliseconds(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def facts(heading: str, value: dict[str, Any]) -> str:
    """One line: where, of what, and what bounds it."""
    machine, rounds = value["machine"], [one for bench in value["bench"] for one in bench["rounds"]]
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in COMPARED if name in machine["packages"])
    quiet = sum(one["is_quiet"] for one in rounds)
    measured = (
        f"- {heading}: batch 1, median over {len(value['per_map'])} COCO-Stuff maps, PSNR of the worst of them,"
        f" {len(rounds)} rounds ({quiet} undisturbed), {value['threads']} threads, {machine['processor']}"
        f" ({machine['cpu_model']}); {versions}."
    )
    return " ".join([measured, *bounds(value["bounds"])])


def bounds(found: dict[str, Any]) -> list[str]:
    """What the residual blocks' convolutions alone need at the CPU's peak, a sentence for each precision."""
    said = []
    for precision, ways in found.get("ms", {}).items():
        rate = found["peak_flop_per_s"][precision] / 1e9
        times = ", ".join(f"{milliseconds(ways[way])} {shown}" for way, shown in WAYS.items())
        said.append(
            f"At the {rate:,.0f} GFLOP/s of a large {precision} matrix product the residual convolutions alone need"
            f" {times}."
        )
    return said


def with_table(readme: str, made: str) -> str | None:
    """The README with the table between its markers; None where these are not there once each and in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        return None
    before, after = readme[: readme.index(BEGIN)], readme[readme.index(END) :]
    return f"{before}{BEGIN}\n{made}\n{after}"


if __name__ == "__main__":
    sys.exit(main())
