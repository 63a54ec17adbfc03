"""The README's table of figures, made of results/peers-*.json and put between its two markers.

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
OURS = "fp32 lookup"
PLAIN = "plain export, ONNX Runtime"
COMPARED = ("torch", "onnxruntime", "openvino")
ROWS = {"fp32 dense": "this artifact, dense graph", OURS: "**this artifact, lookup graph**"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    found = read_results(asked.results)
    text = asked.readme.read_text(encoding="utf-8")
    if not found:
        print(f"{asked.results} holds no peers-*.json; `python benchmarks/peers.py` makes them")
        return 0
    wanted = with_table(text, table(found))
    if wanted is None:
        print(f"{asked.readme}: the lines {BEGIN} and {END} are missing, each once and in this order", file=sys.stderr)
        return 1
    if wanted == text:
        print(f"{asked.readme} is in step with {len(found)} results")
        return 0
    if asked.check:
        print(f"{asked.readme} differs from the results; run: python benchmarks/readme_table.py", file=sys.stderr)
        return 1
    write_text(asked.readme, wanted)
    print(f"{asked.readme} has the table of {len(found)} results")
    return 0


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by heading, by model and then by size."""
    found = []
    for name in NAMES:
        for path in folder.glob(f"peers-{name}-*.json"):
            value = json.loads(path.read_text(encoding="utf-8"))
            found.append((list(NAMES).index(name), value["size"], f"{NAMES[name]}, {value['size']} px", value))
    return {heading: value for _, _, heading, value in sorted(found, key=lambda entry: entry[:2])}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each candidate of any result: by how much the lookup graph is faster, and the time of an image."""
    headings = list(results)
    candidates = dict.fromkeys(name for value in results.values() for name in value["over_maps"])
    lines = [
        f"| the lookup graph is faster than ... by | {' | '.join(headings)} |",
        f"|---|{'---:|' * len(headings)}",
    ]
    for name in candidates:
        cells = [cell(value["over_maps"].get(name), is_ours=name == OURS) for value in results.values()]
        lines.append(f"| {ROWS.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(facts(heading, value) for heading, value in results.items())])


def cell(row: dict[str, Any] | None, *, is_ours: bool) -> str:
    if row is None:
        return "not measured"
    if is_ours or row["ours_is_faster_by"] is None:
        return f"{milliseconds(row['ms'])}"
    return f"{row['ours_is_faster_by']:.2f} x ({milliseconds(row['ms'])})"


def milliseconds(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def facts(heading: str, value: dict[str, Any]) -> str:
    """One line: where and of what."""
    bench = value["bench"]
    packages = bench["machine"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in COMPARED if name in packages)
    quiet = sum(entry["is_quiet"] for entry in bench["rounds"])
    return (
        f"- {heading}: batch {bench['batch_size']}, fp32, median over {value['maps']} COCO-Stuff maps,"
        f" {len(bench['rounds'])} rounds ({quiet} undisturbed), {bench['threads']} threads,"
        f" {bench['machine']['processor']}; {versions}. {memory(value['over_maps'])}".rstrip()
    )


def memory(rows: dict[str, dict[str, Any]]) -> str:
    """Peak memory of the lookup graph's process and of the plain export's."""
    ours, plain = (rows.get(name, {}).get("peak_memory_bytes") for name in (OURS, PLAIN))
    if ours is None or plain is None:
        return ""
    return f"Peak memory of the process: lookup graph {ours / 1e6:,.0f} MB, plain export {plain / 1e6:,.0f} MB."


def with_table(readme: str, made: str) -> str | None:
    """The README with the table between its markers; None where these are not there once each and in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        return None
    before, after = readme[: readme.index(BEGIN)], readme[readme.index(END) :]
    return f"{before}{BEGIN}\n{made}\n{after}"


if __name__ == "__main__":
    sys.exit(main())
