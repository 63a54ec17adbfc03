"""What finding a label map's patterns costs, and how many there are: `extract_patterns` on one core.

Label maps are the COCO-Stuff samples where they are, resized to --size with nearest neighbour, else made up. Each map
is timed --repeats times and stands for its median; edges, pixel codes and every level are in the time, reading and
resizing are not. Noise, every pixel of a random class, is what the lookup graph is not for: there it is the time until
`extract_patterns` gives up that counts. Before anything is timed, the windows of every pixel are rebuilt from the
tables and compared with the map.

    python benchmarks/patterns.py [--labels DIR --instances DIR] [--size 256x256] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from spade_deploy.bench.machine import describe_machine
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.files import list_label_files, read_instance_map, read_label_map, synthetic_label_maps
from spade_deploy.lookup.tables import check_tables, extract_patterns, num_codes, pixel_codes
from spade_deploy.lookup.windows import LevelPatterns
from spade_deploy.spec import GeneratorSpec, LabelSpec, parse_size

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT.parent / "shared" / "data" / "coco_stuff_sample"
MAX_SHARE = 0.5
"""Where the noise map is given up; an artifact's own is in its manifest."""

Maps = list[tuple[str, np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, default=SAMPLES / "train_label")
    parser.add_argument("--instances", type=Path, default=SAMPLES / "train_inst")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "patterns.json")
    options = parser.parse_args()
    use_one_core()
    size = parse_size(options.size)
    result: dict[str, object] = {"machine": describe_machine(), "size": list(size), "repeats": options.repeats}
    for name, has_edges in (("with_edges", True), ("without_edges", False)):
        spec = GeneratorSpec(LabelSpec(182, has_dontcare=True, has_edges=has_edges), height=size[0], width=size[1])
        maps, result["maps"] = load_maps(spec, options.labels, options.instances)
        result[name] = {
            "label_maps": measure_maps(spec, maps, options.repeats),
            "noise": measure_noise(spec, options.repeats),
        }
        print(name, result[name])
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, result)


def load_maps(spec: GeneratorSpec, labels: Path, instances: Path) -> tuple[Maps, str]:
    size = (spec.height, spec.width)
    if labels.is_dir() and instances.is_dir():
        files = list_label_files(labels)
        return [
            (file.stem, read_label_map(file, spec.labels, size), read_instance_map(instances / file.name, size))
            for file in files
        ], f"{len(files)} label maps of {labels.parent.name}"
    made_up = zip(*synthetic_label_maps(spec.labels, *size, 13, seed=0), strict=True)
    return [(f"made up {k}", *pair) for k, pair in enumerate(made_up)], "13 made up label maps"


def measure_maps(spec: GeneratorSpec, maps: Maps, repeats: int) -> dict[str, object]:
    milliseconds, checking, shares, by_level = [], [], [], []
    for name, label, instance in maps:
        label, instance = label[None], instance[None]
        tables = extract_patterns(spec, label, instance)
        assert tables is not None
        codes = pixel_codes(spec, label, instance)
        for stride, level in tables.levels.items():
            if not holds_every_window(spec, level, codes[:, ::stride, ::stride]):
                raise SystemExit(f"{name}: the tables of stride {stride} are not those of the map")
        inputs = tables.to_inputs()
        milliseconds.append(median_ms(partial(extract_patterns, spec, label, instance), repeats))
        checking.append(median_ms(partial(check_tables, spec, inputs), repeats))
        shares.append(tables.unique_share(spec))
        by_level.append({s: len(level.patterns) / level.index.size for s, level in tables.levels.items()})
    return {
        "median_ms": round(statistics.median(milliseconds), 2),
        "max_ms": round(max(milliseconds), 2),
        "check_tables_median_ms": round(statistics.median(checking), 2),
        "unique_share_mean": round(statistics.mean(shares), 3),
        "unique_share_max": round(max(shares), 3),
        "pattern_share_mean_by_stride": {
            str(s): round(statistics.mean(found[s] for found in by_level), 3) for s in by_level[0]
        },
        "ms_by_map": {name: round(ms, 2) for (name, *_), ms in zip(maps, milliseconds, strict=True)},
    }


def measure_noise(spec: GeneratorSpec, repeats: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    shape = (1, spec.height, spec.width)
    label, instance = (rng.integers(0, high, shape).astype(np.int32) for high in (spec.labels.num_ids, 9))
    tables = extract_patterns(spec, label, instance)
    assert tables is not None
    assert extract_patterns(spec, label, instance, max_share=MAX_SHARE) is None
    return {
        "unique_share": round(tables.unique_share(spec), 3),
        "max_share": MAX_SHARE,
        "given_up_median_ms": round(
            median_ms(lambda: extract_patterns(spec, label, instance, max_share=MAX_SHARE), repeats), 2
        ),
        "in_full_median_ms": round(median_ms(lambda: extract_patterns(spec, label, instance), repeats), 2),
    }


def holds_every_window(spec: GeneratorSpec, level: LevelPatterns, codes: np.ndarray) -> bool:
    """Every small window around every tap of every pixel, from the tables and from the map."""
    kernel, outside = spec.kernel_size, num_codes(spec)
    reach = kernel // 2
    padded = np.pad(codes, ((0, 0), (2 * reach,) * 2, (2 * reach,) * 2), constant_values=outside)
    small = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    height, width = codes.shape[1:]
    for tap in range(kernel**2):
        i, j = divmod(tap, kernel)
        expected = small[:, i : i + height, j : j + width].reshape(*codes.shape, -1)
        rows = level.patterns[level.index, tap]
        is_outside = expected[..., kernel**2 // 2] == outside
        if not np.array_equal(rows == len(level.codes), is_outside):
            return False
        if not np.array_equal(level.codes[rows[~is_outside]], expected[~is_outside]):
            return False
    return True


def median_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def use_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
