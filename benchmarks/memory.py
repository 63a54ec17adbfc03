"""Memory and cold start of the plain export and of the artifact's graphs, in ONNX Runtime and in OpenVINO.

Generators of ADE20K's, COCO-Stuff's and Cityscapes' size, with random weights, batch 1, on the COCO-Stuff samples with
the most patterns, which are the worst for the lookup graphs. Each candidate has a process of its own and the machine to
itself: its peak is the most physical memory of that process, libraries included (VmHWM). Its first image is compared
with that of the plain export in ONNX Runtime. At 1024 x 2048 a candidate needs up to 12 GB.

    python benchmarks/memory.py [--point coco-256x256] [--resume] [--work FOLDER]

Cold starts are measured in turn, --starts processes a candidate, from starting the process to the first image; the
first start of OpenVINO, which compiles and fills the cache, stands apart. cpu_s is the processor time of a process, all
threads together: it counts where others use the machine meanwhile. The result is written after every candidate;
--resume leaves those that are there, --work keeps the models between calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from models import ADE20K, COCO, DATA, RESULTS, SMALL, coco_maps, make_artifact, resized, synthetic_maps
from numpy.typing import NDArray
from printed import Printed

from spade_deploy.artifact import IMAGE, Arrays, Artifact
from spade_deploy.bench import BenchPlan, Candidate, Kind, describe_machine
from spade_deploy.bench.files import BaselineFiles
from spade_deploy.bench.job import Job, read_arrays, write_arrays
from spade_deploy.bench.process import Worker
from spade_deploy.errors import SpadeError
from spade_deploy.files.atomic import write_json
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.labels.sets import label_set
from spade_deploy.lookup.tables import unique_share
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import Backend, GeneratorSpec, GraphChoice, Precision, Upsampling

CITYSCAPES = GeneratorSpec(label_set("cityscapes"), height=128, width=256, upsampling=Upsampling.MORE)
"""As the preset of that name makes it; its size here only says at which one the export proves itself."""
PLAIN = Candidate(Kind.PLAIN, "plain export, ONNX Runtime")


def graph(choice: GraphChoice, backend: Backend, precision: Precision = Precision.FP32) -> Candidate:
    """A graph of the artifact in an engine."""
    engine = {Backend.CPU: "ONNX Runtime", Backend.OPENVINO: "OpenVINO"}[backend]
    return Candidate(Kind.GRAPH, f"{precision} {choice}, {engine}", precision, choice, backend=backend)


CANDIDATES = (
    PLAIN,
    graph(GraphChoice.DENSE, Backend.CPU),
    graph(GraphChoice.LOOKUP, Backend.CPU),
    Candidate(Kind.OPENVINO_F32, "plain export, OpenVINO f32"),
    graph(GraphChoice.DENSE, Backend.OPENVINO),
    graph(GraphChoice.LOOKUP, Backend.OPENVINO),
    Candidate(Kind.OPENVINO, "plain export, OpenVINO's default"),
    graph(GraphChoice.LOOKUP, Backend.OPENVINO, Precision.BF16),
)
STARTED = (
    graph(GraphChoice.LOOKUP, Backend.CPU),
    graph(GraphChoice.LOOKUP, Backend.OPENVINO),
    graph(GraphChoice.LOOKUP, Backend.OPENVINO, Precision.BF16),
)
"""The candidates whose cold starts are compared."""


@dataclass(frozen=True)
class Point:
    """A generator at a size."""

    name: str
    """Its name in the result."""
    spec: GeneratorSpec
    """The generator."""
    height: int
    """The height of the label maps in pixels."""
    width: int
    """The width of the label maps in pixels."""
    maps: int = 3
    """How many label maps are run."""
    has_starts: bool = False
    """Whether cold starts are compared."""


POINTS = (
    Point("coco-256x256", COCO, 256, 256, maps=13, has_starts=True),
    Point("ade20k-256x256", ADE20K, 256, 256, maps=13, has_starts=True),
    Point("ade20k-512x512", ADE20K, 512, 512),
    Point("cityscapes-256x512", CITYSCAPES, 256, 512),
    Point("cityscapes-1024x2048", CITYSCAPES, 1024, 2048, maps=1),
)
QUICK = (Point("quick", SMALL, 64, 96, maps=2, has_starts=True),)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", choices=[point.name for point in POINTS], action="append", help="all by default")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--starts", type=int, default=5, help="cold starts of a candidate")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a small generator on synthetic maps: a try-out")
    asked = parser.parse_args(arguments)
    target = asked.out / ("memory-quick.json" if asked.quick else "memory.json")
    found = json.loads(target.read_text(encoding="utf-8")) if asked.resume and target.exists() else {}
    table = {"machine": describe_machine(), "threads": asked.threads, "points": {}, **found}
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        for point in QUICK if asked.quick else POINTS:
            if not asked.point or point.name in asked.point:
                measure(point, asked, work, table, target)
    show(table)
    print(f"written to {target}")


def measure(point: Point, asked: argparse.Namespace, work: Path, table: dict[str, Any], target: Path) -> None:
    """All candidates of a point, one after another, then its cold starts."""
    spec = point.spec
    maps = synthetic_maps(spec) if asked.quick else coco_maps(spec, asked.data)
    artifact = make_artifact(work, spec, maps)
    cases = worst_maps(spec, {name: resized(one, point.height, point.width) for name, one in maps.items()}, point.maps)
    row = table["points"].setdefault(point.name, {"generator": spec.to_json(), "candidates": {}, "cold_starts": {}})
    row["unique_shares"] = {name: unique_share(spec, one) for name, one in cases.items()}
    with tempfile.TemporaryDirectory() as folder:
        starter = Starter(artifact, list(cases.values()), asked, Path(folder), work)
        for candidate in CANDIDATES:
            if candidate.name not in row["candidates"]:
                print(f"{point.name}: {candidate.name}", flush=True)
                image = work / f"{point.name}-plain.npz"
                row["candidates"][candidate.name] = starter.run(candidate, image)
                write_json(target, table)
        if point.has_starts and not row["cold_starts"]:
            row["cold_starts"] = starter.cold_starts(STARTED, asked.starts)
            write_json(target, table)


def worst_maps(spec: GeneratorSpec, maps: dict[str, Arrays], count: int) -> dict[str, Arrays]:
    """Those with the most patterns, the worst first."""
    ordered = sorted(maps, key=lambda name: unique_share(spec, maps[name]), reverse=True)
    return {name: maps[name] for name in ordered[:count]}


class Starter:
    """Starts the candidates of a point, each in a process of its own."""

    def __init__(
        self, artifact: Artifact, cases: list[Arrays], asked: argparse.Namespace, folder: Path, work: Path
    ) -> None:
        self._folder = folder
        self._count = 0
        paths = tuple(write_arrays(folder / f"case-{number}.npz", case) for number, case in enumerate(cases))
        self._job = Job(
            candidate=PLAIN,
            artifact=artifact.path,
            manifest_sha256=artifact.manifest.to_json()["manifest_sha256"],
            spec=artifact.manifest.generator,
            backend=Backend.CPU,
            threads=asked.threads,
            checkpoint=None,
            model=None,
            cases=paths,
            golden=(),
            golden_outputs=folder / "golden.npz",
        )
        kept = work / "kept" / artifact.path.parent.name
        self._files = BaselineFiles(artifact, folder, BenchPlan([PLAIN], cases, kept=kept), Printed())
        os.environ[VARIABLE] = str(folder / "cache")  # it begins empty

    def run(self, candidate: Candidate, plain_image: Path) -> dict[str, Any]:
        """One candidate on every map. plain_image: where the image of the plain export is, or is written."""
        try:
            with self._started(candidate) as worker:
                image = self._folder / "image.npz"
                runs = [worker.ask(do="run", case=0, image_to=str(image))]
                runs += [worker.ask(do="run", case=number) for number in range(1, len(self._job.cases))]
                peak = worker.ask(do="stop")["peak_memory_bytes"]
        except SpadeError as error:
            return {"failed": error.message}
        if candidate is PLAIN:
            write_arrays(plain_image, read_arrays(image))
        return {
            "peak_memory_bytes": peak,
            "imports_bytes": worker.imports_bytes,
            "runtime": worker.runtime,
            "ms": statistics.median(run["seconds"] for run in runs) * 1000,
            "cpu_ms": statistics.median(run["cpu_s"] for run in runs) * 1000,
            "seconds": [run["seconds"] for run in runs],
            "cpu_s": [run["cpu_s"] for run in runs],
            **compared(read_arrays(image)[IMAGE], read_arrays(plain_image)[IMAGE]),
        }

    def cold_starts(self, candidates: Sequence[Candidate], count: int) -> dict[str, Any]:
        """Start the candidates in turn, `count` times after a first time that is kept apart."""
        found: dict[str, Any] = {one.name: {"first": None, "later": []} for one in candidates}
        os.environ[VARIABLE] = str(self._folder / "cache-of-starts")
        for number in range(count + 1):
            shift = number % len(candidates)
            for candidate in (*candidates[shift:], *candidates[:shift]):
                before = children_cpu_s()
                with self._started(candidate) as worker:
                    worker.ask(do="stop")
                parts = {
                    "imports_s": worker.imports_s,
                    "load_s": worker.load_s,
                    "first_run_s": worker.first_run_s,
                    "total_s": worker.imports_s + worker.load_s + worker.first_run_s,
                    "cpu_s": children_cpu_s() - before,
                }
                if number == 0:
                    found[candidate.name]["first"] = parts
                else:
                    found[candidate.name]["later"].append(parts)
        first = found[candidates[0].name]["later"]
        for values in found.values():
            for key in ("total_s", "cpu_s"):
                ratios = [one[key] / other[key] for one, other in zip(values["later"], first, strict=True)]
                values[f"{key[:-2]}_ratio"] = statistics.median(ratios)
        return found

    def _started(self, candidate: Candidate) -> Worker:
        self._count += 1
        job = self._files.give(replace(self._job, candidate=candidate))
        worker = Worker(job, self._folder / f"worker-{self._count}")
        try:
            worker.start()
        except SpadeError:
            worker.close()
            raise
        return worker


def children_cpu_s() -> float:
    """Processor time of all processes that were started and have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(image: NDArray[np.float32], plain: NDArray[np.float32]) -> dict[str, float]:
    """How far an image is from the plain export's, and the share of its pixels' values that differ after truncation."""
    ours, theirs = (((one + 1) / 2 * 255).clip(0, 255).astype(np.uint8) for one in (image, plain))
    error = float(np.mean((image.astype(np.float64) - plain) ** 2))
    return {
        "largest_difference": float(np.abs(image - plain).max()),
        "psnr_db": float(10 * np.log10(4 / error)) if error else 999.0,
        "other_pixel_values": float((ours != theirs).mean()),
    }


def show(table: dict[str, Any]) -> None:
    """Print the table."""
    for point, row in table["points"].items():
        print(f"\n{point}")
        for name, one in row["candidates"].items():
            if "failed" in one:
                print(f"  {name:36} failed: {one['failed']}")
                continue
            figures = f"{one['peak_memory_bytes'] / 1e6:7,.0f} MB {one['ms']:8,.0f} ms, cpu {one['cpu_ms']:8,.0f} ms"
            print(f"  {name:36} {figures} {one['psnr_db']:6.1f} dB")
        for name, one in row["cold_starts"].items():
            later = statistics.median(start["total_s"] for start in one["later"])
            ratios = f"{one['total_ratio']:.2f} x ONNX Runtime's, cpu {one['cpu_ratio']:.2f} x"
            print(f"  cold start of {name:30} {one['first']['total_s']:5.1f} s, then {later:5.1f} s: {ratios}")


if __name__ == "__main__":
    main()
