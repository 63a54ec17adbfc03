"""The times of the parts of an image on this machine, each alone, and `spade infer` beside their simulation.

`cluster_sums.py --measure` calls this. With the arguments ARTIFACT LABELS THREADS it prints the times of one process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cluster_model import CoreTimes, on_cores
from infer_overlap import CASES, make_setup
from infer_workers import one_run, repeat
from PIL import Image

from spade_deploy.artifact import PIXELS, Artifact
from spade_deploy.engines.open import open_runtime
from spade_deploy.images.image_file import read_photo
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.pipeline import Reader
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.png import encode_png
from spade_deploy.inference.work import Crew, Desk, Work
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.machine.cores import usable_cores
from spade_deploy.spec import LabelSpec

RESULTS = Path(__file__).parent / "results"
WORKERS = (1, 2, 3)
COUNTED = 5000
"""Label maps of which none is made, to time what the process that plans does for each."""


def check(rounds: int) -> dict[str, Any]:
    """The simulation beside `spade infer`, for the Earth generator."""
    cores, runs, alone = usable_cores(), [], []  # type: tuple[int, list[dict[str, Any]], list[dict[str, Any]]]
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder), CASES["earth"])
        repeat(setup.labels, 4)
        images = len(list(setup.labels.iterdir()))
        for _ in range(rounds):
            alone.append({str(n): child(setup.artifact.path, setup.labels, n) for n in {1, cores}})
            runs.append({str(count): one_run(setup, count) for count in WORKERS})
    counted = count_seconds()

    def median(threads: int, name: str) -> float:
        return float(statistics.median(one[str(threads)][name] for one in alone))

    times = CoreTimes(
        decode_s=median(1, "decode_s"),
        run_s={threads: median(threads, "run_s") for threads in {1, cores}},
        encode_s=median(1, "encode_s"),
        write_wait_s=median(1, "write_wait_s"),
        count_s=counted,
        start_s=median(1, "start_s"),
    )
    compared = {}
    for count in WORKERS:
        measured = statistics.median(one[str(count)]["images_per_s"] for one in runs)
        simulated = on_cores(times, count, cores, images)
        compared[str(count)] = {
            "measured_images_per_s": measured,
            "simulated_images_per_s": simulated,
            "simulated_over_measured": simulated / measured,
        }
    return {
        "generator": CASES["earth"].spec.to_json(),
        "images": images,
        "cores": cores,
        "times": asdict(times),
        "workers": compared,
        "rounds": [{"alone": one, "infer": run} for one, run in zip(alone, runs, strict=True)],
    }


def child(artifact: Path, labels: Path, threads: int) -> dict[str, float]:
    """`times_alone` in a process of its own, on as many cores as it has threads."""

    def pin() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    command = [sys.executable, __file__, str(artifact), str(labels), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=pin)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def times_alone(artifact: Path, labels: Path, threads: int) -> dict[str, float]:
    """Seconds of each part of an image, one after another."""
    opened = Artifact.open(artifact)
    spec = opened.manifest.generator
    runtime = open_runtime(opened, backend="cpu", graph="dense", threads=threads)
    start_s = time.process_time()
    reader = Reader(spec, (spec.height, spec.width), None)
    jobs = [Job(path.stem, path, None, f"{path.stem}.png") for path in sorted(labels.iterdir())[:60]]
    inputs = [reader.read(job).inputs for job in jobs]
    found = {"start_s": start_s, "decode_s": processor_s(lambda: [reader.read(job) for job in jobs], len(jobs))}
    pixels = [runtime.run(one, [PIXELS])[PIXELS][0] for one in inputs]
    began = time.perf_counter()
    for one in inputs:
        runtime.run(one, [PIXELS])
    found["run_s"] = (time.perf_counter() - began) / len(inputs)
    return {**found, **writing(pixels)}


def writing(pixels: Sequence[Any]) -> dict[str, float]:
    """Seconds of encoding and writing an image: of the processor, and of waiting for the disk; and its file's size."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        target = Folder(Path(folder))

        def write() -> None:
            for number, image in enumerate(pixels):
                target.put(f"{number}.png", encode_png(image))

        began = time.perf_counter()
        encode_s = processor_s(write, len(pixels))
        wall_s = (time.perf_counter() - began) / len(pixels)
        sizes = [path.stat().st_size for path in Path(folder).iterdir()]
    return {"encode_s": encode_s, "write_wait_s": max(0.0, wall_s - encode_s), "photo_bytes": statistics.mean(sizes)}


def processor_s(action: Callable[[], Any], count: int) -> float:
    """The time of the processor for one of `count`."""
    before = time.process_time()
    action()
    return (time.process_time() - before) / count


class Nobody(Crew):
    """Makes no image, and says that all are made."""

    seconds = 0.0

    def make(self, work: Work, jobs: Sequence[Job], desk: Desk) -> None:
        maker = replace(work.maker, precision="fp32", engine="none")
        desk.admit(maker, "none")
        outcomes = [Outcome(job.id, job.label, job.result, sha256="0" * 64, seconds=0.1) for job in jobs]
        before = time.process_time()
        for outcome in outcomes:
            desk.done(outcome)
        self.seconds = (time.process_time() - before) / len(jobs)


def count_seconds() -> float:
    """What the process that plans does for each image: its line in the list, the counts, the bar."""
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder), replace(CASES["earth"], images=1))
        (file,) = setup.labels.iterdir()
        for number in range(COUNTED):
            (setup.labels / f"x{number}.png").hardlink_to(file)
        found = []
        for number in range(3):
            nobody = Nobody()
            infer(setup.artifact, InferRequest(setup.labels, Path(folder) / f"none{number}"), crew=nobody)
            found.append(nobody.seconds)
    return statistics.median(found)


def parts_at_256(count_s: float) -> dict[str, float]:
    """Times of the parts at 256 x 256 that run on cores, for ADE20K's 150 labels, on one core. count_s: see `check`."""
    spec = LabelSpec(150, has_dontcare=True)
    ids, _ = synthetic_label_maps(spec, 256, 256, 40, seed=1)
    photo = read_photo(Path(__file__).parents[1] / "docs" / "images" / "demo.png")
    photos = [np.ascontiguousarray(photo[y : y + 256, x : x + 256]) for y, x in places(photo.shape, 40)]
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for number, label in enumerate(ids):
            path = Path(folder) / f"{number}.png"
            Image.fromarray(label).save(path)
            jobs.append(Job(str(number), path, None, f"{number}.png"))
        reader = Reader(replace(CASES["earth"].spec, labels=spec, height=256, width=256), (256, 256), None)
        decode_s = processor_s(lambda: [reader.read(job) for job in jobs], len(jobs))
        label_bytes = statistics.mean(job.label.stat().st_size for job in jobs)  # type: ignore[union-attr]
    patterns = json.loads((RESULTS / "patterns.json").read_text())["without_edges"]["label_maps"]["median_ms"]
    return {
        "decode_s": decode_s,
        "label_bytes": label_bytes,
        "patterns_s": patterns / 1000,
        "count_s": count_s,
        **writing(photos),
    }


def places(shape: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    """Corners of squares of 256 in a picture."""
    rng = np.random.default_rng(0)
    return [(int(rng.integers(0, shape[0] - 255)), int(rng.integers(0, shape[1] - 255))) for _ in range(count)]


if __name__ == "__main__":
    print(json.dumps(times_alone(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
