"""What each choice for a CPU costs and what it keeps: quality against milliseconds, of the Earth model.

    python benchmarks/choosing.py --extractor FEATURES.onnx [--student NAME=ARTIFACT ...] [--work FOLDER]

A point is a graph (dense, lookup) in an engine (ONNX Runtime, OpenVINO) and a precision. Beside them stand plain
exports of the same weights, and the graphs of students. Every point has a process of its own; in a round each of them
runs the same held-out tile once, in an order that rotates. A graph that fails its validation is not timed.

Quality is of the images of all tiles: PSNR against the untouched module in PyTorch float32, and the kernel distance of
the extractor's features from those of the real photos (and, in the result, from those of PyTorch's images).

Writes results/choosing.json, docs/images/choosing.svg and the table in docs/choosing.md. --redraw makes the latter two
of the result that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from choosing_page import draw, write_table
from numpy.typing import NDArray
from printed import Printed

from spade_deploy.artifact import IMAGE, LABEL, Arrays, Artifact, Golden, one_by_one
from spade_deploy.bench.candidates import BASELINES, Candidate, Kind
from spade_deploy.bench.files import BaselineFiles
from spade_deploy.bench.job import Job, read_arrays, write_arrays
from spade_deploy.bench.judging import judge
from spade_deploy.bench.machine import describe_machine
from spade_deploy.bench.process import Worker
from spade_deploy.bench.request import BenchPlan
from spade_deploy.bench.run import SETTLE_S
from spade_deploy.errors import SpadeError
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.machine.cores import at_most_cores, usable_cores
from spade_deploy.machine.memory import busy_seconds
from spade_deploy.metrics.distances import kernel_distance
from spade_deploy.metrics.extractor import OnnxExtractor
from spade_deploy.metrics.pixels import PixelError
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import Int8Options, ReleaseRequest
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.shipped import save_shipped
from spade_deploy.spec import Backend, GraphChoice, Precision
from spade_deploy.training.presets import preset
from spade_deploy.tuning.timing import in_turn

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "Earth model"
PLAIN = BASELINES[Kind.PLAIN]
PEERS = (Kind.EAGER, Kind.PLAIN, Kind.OPENVINO)
CHOICES = {
    ("ONNX Runtime", Backend.CPU): (Precision.FP32, Precision.FP16, Precision.INT8),
    ("OpenVINO", Backend.OPENVINO): (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8),
}
"""The precisions of each engine. Both compute fp16 graphs in float32."""
SHOWN_RANGE = 2.0
"""The range of an image's floats, that PSNR refers to."""


@dataclass
class Point:
    """One choice while it is measured."""

    model: str
    candidate: Candidate
    engine: str
    job: Job
    worker: Worker
    images: list[NDArray[np.float32]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Tiles:
    """The held-out tiles: label maps, each with N = 1, and photos."""

    names: list[str]
    maps: list[Arrays]
    photos: NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", type=Path, help="an ONNX feature extractor; needed unless --redraw")
    parser.add_argument("--artifact", type=Path, help="of the Earth model, beside its checkpoint; made if left out")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=ARTIFACT")
    parser.add_argument("--tiles", type=int, help="of the test split, evenly spaced; all if left out")
    parser.add_argument("--passes", type=int, default=2, help="over the tiles: a round each tile")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help="keeps the exported model between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of choosing.md and images/")
    parser.add_argument("--redraw", action="store_true")
    asked = parser.parse_args(arguments)
    target = asked.out / "choosing.json"
    if not asked.redraw:
        if asked.extractor is None:
            parser.error("--extractor is needed: the kernel distance is of its features")
        with tempfile.TemporaryDirectory() as temporary:
            write_json(target, measured(asked, asked.work or Path(temporary), Path(temporary) / "files"))
    value = json.loads(target.read_text(encoding="utf-8"))
    draw(value, asked.docs / "images" / "choosing.svg")
    if (asked.docs / "choosing.md").exists():
        write_table(value, asked.docs / "choosing.md")
    for point in value["points"]:
        print(point["name"], point.get("p50_ms"), point.get("psnr_db"), point.get("kernel"), point.get("reason", ""))


def measured(asked: argparse.Namespace, work: Path, folder: Path) -> dict[str, Any]:
    """The result: every point with its times and its quality, and what they compare with."""
    folder.mkdir(parents=True)
    tiles, extractor = held_out(asked.tiles), OnnxExtractor(asked.extractor)
    teacher = asked.artifact or shipped_artifact(work)
    models = {TEACHER: teacher} | {name: Path(path) for name, path in (each.split("=", 1) for each in asked.student)}
    threads = at_most_cores(asked.threads or usable_cores(), "threads")
    cases = tuple(write_arrays(folder / f"case-{k}.npz", one) for k, one in enumerate(tiles.maps))
    points: list[Point] = []
    failed: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for name, path in models.items():
            artifact = Artifact.open(path)
            golden = artifact.golden()
            files = baseline_files(artifact, tiles, folder, name)
            for candidate, engine in candidates(artifact, is_teacher=name == TEACHER):
                job = job_of(artifact, golden, candidate, cases, threads, folder / f"point-{len(points) + len(failed)}")
                point = started(name, engine, artifact, golden, files, job, stack)
                (points if isinstance(point, Point) else failed).append(point)  # type: ignore[arg-type]
            if name == TEACHER:
                references = [read_arrays(path)[IMAGE] for path in files.reference_images(job)]
        others = [one_round(points, number, len(cases), folder) for number in range(asked.passes * len(cases))]
    photos, reference = features(extractor, tiles.photos), np.concatenate(references)
    of_reference = features(extractor, pixels_of(reference))
    plain = next((point for point in points if point.candidate.kind is Kind.PLAIN), None)
    made = [
        facts(point, plain, len(cases))
        | quality(np.concatenate(point.images), reference, tiles.photos, extractor, photos, of_reference)
        for point in points
    ]
    return {
        "machine": describe_machine(),
        "threads": threads,
        "tiles": tiles.names,
        "passes": asked.passes,
        "others_share": [round(share, 4) for share in others],
        "extractor": extractor.describe(),
        "models": {name: model_facts(Artifact.open(path)) for name, path in models.items()},
        "reference": {"name": "PyTorch float32", **distance(of_reference, photos)},
        "points": [*made, *failed],
    }


def shipped_artifact(work: Path) -> Path:
    """The artifact of the shipped model with graphs of all precisions; one that is there is kept."""
    run = work / "earth"
    if not (run / "artifact" / "manifest.json").exists():
        save_shipped(checkpoint_folder(run, 0), preset("earth"))
        request = ReleaseRequest(run, fp16=True, int8=Int8Options(wanted=True))
        export_checkpoint(request, runs_dir=work, progress=Printed())
    return run / "artifact"


def held_out(count: int | None) -> Tiles:
    tiles = earth_tiles("test")
    if count is not None:
        tiles = tuple(tiles[int(index)] for index in np.linspace(0, len(tiles) - 1, count))
    pairs = [cut(tile) for tile in tiles]
    return Tiles(
        [tile.stem for tile in tiles], [{LABEL: label[None]} for label, _ in pairs], np.stack([p for _, p in pairs])
    )


def candidates(artifact: Artifact, *, is_teacher: bool) -> list[tuple[Candidate, str]]:
    """What is measured of a model, each with its engine's name. Of students fp16 is left out: it runs in float32."""
    found = [(Candidate(kind, BASELINES[kind]), "plain export") for kind in PEERS] if is_teacher else []
    there = {(graph.precision, str(graph.kind)) for graph in artifact.manifest.graphs}
    for (engine, backend), precisions in CHOICES.items():
        for precision in precisions:
            for graph in (GraphChoice.DENSE, GraphChoice.LOOKUP):
                is_there = (precision.exported, str(graph)) in there
                if is_there and (is_teacher or precision is not Precision.FP16):
                    name = f"{engine} {precision} {graph}"
                    found.append((Candidate(Kind.GRAPH, name, precision, graph, backend=str(backend)), engine))
    return found


def baseline_files(artifact: Artifact, tiles: Tiles, folder: Path, name: str) -> BaselineFiles:
    own = folder / f"files-{name}"
    own.mkdir()
    plan = BenchPlan(
        [Candidate(Kind.PLAIN, PLAIN)], tiles.maps, names=tiles.names, runs_dir=artifact.path.parent.parent
    )
    return BaselineFiles(artifact, own, plan, Printed())


def job_of(
    artifact: Artifact, golden: Golden, candidate: Candidate, cases: tuple[Path, ...], threads: int, folder: Path
) -> Job:
    folder.mkdir()
    singles = enumerate(one_by_one(golden.inputs))
    return Job(
        candidate=candidate,
        artifact=artifact.path.absolute(),
        manifest_sha256=artifact.manifest.to_json()["manifest_sha256"],
        spec=artifact.manifest.generator,
        backend=str(Backend.CPU),
        threads=threads,
        checkpoint=None,
        model=None,
        cases=cases,
        golden=tuple(write_arrays(folder / f"golden-{k}.npz", single) for k, single in singles),
        golden_outputs=folder / "answers.npz",
    )


def started(
    model: str, engine: str, artifact: Artifact, golden: Golden, files: BaselineFiles, job: Job, stack: ExitStack
) -> Point | dict[str, Any]:
    """The point, ready to run and validated; the reason where it fails."""
    candidate = job.candidate
    print(f"  {model}: {candidate.name}", flush=True)
    named = {"model": model, "name": candidate.name, "engine": engine}
    try:
        with ExitStack() as own:
            worker = own.enter_context(Worker(files.give(job), job.golden_outputs.parent / "worker"))
            worker.start()
            worker.ask(do="golden")
            ran = replace(candidate, precision=worker.precision)  # OpenVINO's default is its own choice
            verdict = judge(artifact, ran, golden, read_arrays(job.golden_outputs))
            if verdict.failures:
                return {**named, "reason": f"its images are wrong: {'; '.join(verdict.failures)}"}
            stack.push(own.pop_all())
    except SpadeError as error:
        return {**named, "reason": error.message}
    return Point(model, candidate, engine, job, worker)


def one_round(points: list[Point], number: int, cases: int, folder: Path) -> float:
    """Every point runs one tile once. In the first pass its image is kept. Returns the share that other work took."""
    case = number % cases
    before, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    cpu_s, target = 0.0, folder / "image.npz"
    for point in in_turn(points, number):
        time.sleep(SETTLE_S)
        image_to = str(target) if number < cases else None
        answer = point.worker.ask(do="run", case=case, image_to=image_to)
        cpu_s += answer["all_cpu_s"]
        point.seconds.append(answer["seconds"])
        if image_to is not None:
            point.images.append(read_arrays(target)[IMAGE])
    if number % 50 == 0:
        print(f"  round {number}", flush=True)
    after, wall = busy_seconds(), time.perf_counter() - start
    return max(0.0, after - before - cpu_s - (time.process_time() - own)) / (wall * (os.cpu_count() or 1))


def facts(point: Point, plain: Point | None, cases: int) -> dict[str, Any]:
    """What it is, and its times. The ratio is the median over rounds.

    `p50_ms` is of the first pass, in which every map is new to the process, as in a folder of label maps; `again_ms` is
    of the passes after it. Sizes of tables that an engine has not met before may cost it time.
    """
    candidate, first, later = point.candidate, point.seconds[:cases], point.seconds[cases:]
    found = {
        "model": point.model,
        "name": candidate.name,
        "kind": str(candidate.kind),
        "engine": point.engine,
        "precision": str(point.worker.precision),
        "graph": None if candidate.graph is None else str(candidate.graph),
        "runtime": point.worker.runtime,
        "p50_ms": statistics.median(first) * 1e3,
        "p90_ms": float(np.percentile(first, 90)) * 1e3,
        "again_ms": statistics.median(later) * 1e3 if later else None,
        "seconds": [round(second, 6) for second in point.seconds],
    }
    if plain is not None:
        pairs = zip(plain.seconds[:cases], first, strict=True)
        found["times_as_fast_as_plain"] = statistics.median(base / own for base, own in pairs)
    return found


def quality(
    images: NDArray[np.float32],
    reference: NDArray[np.float32],
    photos: NDArray[np.uint8],
    extractor: OnnxExtractor,
    of_photos: NDArray[np.float64],
    of_reference: NDArray[np.float64],
) -> dict[str, Any]:
    squared = float(((images.astype(np.float64) - reference) ** 2).mean())
    pixels, error = pixels_of(images), PixelError()
    error.add(pixels, photos)
    found = features(extractor, pixels)
    return {
        "psnr_db": 10 * np.log10(SHOWN_RANGE**2 / squared) if squared else None,
        **distance(found, of_photos),
        "kernel_to_pytorch": kernel_distance(found, of_reference).value,
        "psnr_to_photos_db": error.psnr,
    }


def distance(found: NDArray[np.float64], photos: NDArray[np.float64]) -> dict[str, float]:
    kernel = kernel_distance(found, photos)
    return {"kernel": kernel.value, "kernel_std": kernel.std}


def features(extractor: OnnxExtractor, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.concatenate([extractor.features(pixels[k : k + 4]) for k in range(0, len(pixels), 4)])


def pixels_of(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """N x 3 x H x W in [-1, 1] -> N x H x W x 3, truncated as the graphs do."""
    scaled = (images.astype(np.float32) + np.float32(1)) / np.float32(2) * np.float32(255)
    pixels: NDArray[np.uint8] = np.floor(scaled.clip(0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def model_facts(artifact: Artifact) -> dict[str, Any]:
    spec = artifact.manifest.generator
    dense = artifact.graph(Precision.FP32)
    return {
        "generator": spec.to_json(),
        "generator_sha256": artifact.manifest.source.generator_sha256,
        "bytes_fp32": (artifact.path / dense.file).stat().st_size,
    }


if __name__ == "__main__":
    main()
