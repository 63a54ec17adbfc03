"""What a map of other numbers of rows costs a lookup graph in OpenVINO, with and without rounded numbers.

The held-out tiles of the shipped Earth model, whose tables all differ: first as maps that the process has not met
('new'), then once more ('again'). Both candidates have a runtime of their own and take turns; the image of each map has
to be the same. CPU seconds stand beside the time: other work on the machine disturbs them less.

    python benchmarks/row_counts.py [--precision P] [--artifact FOLDER] [--work FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from choosing import shipped_artifact
from models import RESULTS

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays, Artifact
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.lookup.row_counts import STEPS, with_rounded_counts
from spade_deploy.lookup.tables import graph_inputs, level_names, modulated_channels
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision
from spade_deploy.tuning.timing import in_turn

PRECISIONS = (Precision.BF16, Precision.INT8, Precision.FP32)
PASSES = ("new", "again")
EXACT, ROUNDED = "as they are", "rounded"
Change = Callable[[GeneratorSpec, Arrays], Arrays]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated; all by default")
    parser.add_argument("--maps", type=int, help="the first so many; all by default")
    parser.add_argument("--artifact", type=Path, help="of the Earth model; exported where it is not given")
    parser.add_argument("--work", type=Path, help="keeps the exported model between runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "row-counts.json")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        artifact = Artifact.open(asked.artifact or shipped_artifact(asked.work or Path(temporary)))
        spec = artifact.manifest.generator
        tiles = [tile for split in ("test", "val") for tile in earth_tiles(split)][: asked.maps]
        tables = [graph_inputs(spec, GraphKind.LOOKUP, {LABEL: cut(tile)[0][None]}) for tile in tiles]
        longer = [with_rounded_counts(spec, one) for one in tables]
        found = {}
        for precision in asked.precision or PRECISIONS:
            found[str(precision)] = measured(artifact, Precision(precision), tables)
            print(precision, found[str(precision)]["ratios"], flush=True)
    facts = {"machine": describe_machine(), "threads": usable_cores(), "maps": len(tables), "steps": STEPS}
    before, after = (sum(rows_of(spec, one) for one in given) for given in (tables, longer))
    write_json(asked.out, {**facts, "rows_over_rows": round(after / before, 4), "precisions": found})
    print(f"written to {asked.out}")


def measured(artifact: Artifact, precision: Precision, tables: list[Arrays]) -> dict[str, Any]:
    """The milliseconds of every run, and medians of the ratios of runs of the same map."""
    change: dict[str, Change] = {EXACT: lambda _, one: one, ROUNDED: with_rounded_counts}
    times: dict[str, dict[str, dict[str, list[float]]]] = {
        name: {pass_: {"ms": [], "cpu_ms": []} for pass_ in PASSES} for name in change
    }
    spec, largest = artifact.manifest.generator, 0.0
    runtimes = {name: OpenVinoRuntime(artifact, precision, usable_cores(), GraphKind.LOOKUP) for name in change}
    for runtime in runtimes.values():
        runtime._rounds_counts = False  # it is done here, for one of them
        for _ in range(3):
            runtime.run_tables(tables[-1], [PIXELS], is_checked=True)
    for pass_ in PASSES:
        for number, one in enumerate(tables[:-1]):
            images = []
            for name in in_turn(list(change), number):
                fed = change[name](spec, one)
                start, cpu_start = time.perf_counter(), time.process_time()
                images.append(runtimes[name].run_tables(fed, [PIXELS, IMAGE], is_checked=True)[IMAGE])
                times[name][pass_]["ms"].append(1e3 * (time.perf_counter() - start))
                times[name][pass_]["cpu_ms"].append(1e3 * (time.process_time() - cpu_start))
            largest = max(largest, float(np.abs(images[0] - images[1]).max()))
    for runtime in runtimes.values():
        runtime.close()

    def ratio(what: str, over: tuple[str, str], under: tuple[str, str]) -> float:
        pairs = zip(times[over[0]][over[1]][what], times[under[0]][under[1]][what], strict=True)
        return round(float(statistics.median(a / b for a, b in pairs)), 3)

    ratios = {
        f"{what}, {name}": value
        for what in ("ms", "cpu_ms")
        for name, value in {
            "new over again, as they are": ratio(what, (EXACT, "new"), (EXACT, "again")),
            "new over again, rounded": ratio(what, (ROUNDED, "new"), (ROUNDED, "again")),
            "new, as they are over rounded": ratio(what, (EXACT, "new"), (ROUNDED, "new")),
            "again, as they are over rounded": ratio(what, (EXACT, "again"), (ROUNDED, "again")),
        }.items()
    }
    medians = {
        name: {pass_: {what: statistics.median(ms) for what, ms in found.items()} for pass_, found in passes.items()}
        for name, passes in times.items()
    }
    return {"ratios": ratios, "medians": medians, "largest_difference": largest, "times": times}


def rows_of(spec: GeneratorSpec, tables: Arrays) -> int:
    return sum(len(tables[name]) for stride in modulated_channels(spec) for name in level_names(stride)[:2])


if __name__ == "__main__":
    main()
