"""`spade infer` with one process and with several: images a second, and whether the files are the same.

Every count of workers makes the same images in turn, round after round, in an order that alternates; each worker has
its share of the cores. `images_per_s` is measured from the first image on, without loading the model, which each worker
does once; `seconds` is all of it. One worker more than there are cores is measured too, since `--workers` takes no more
than there are. What other processes take of the machine is noted for each run on Linux; medians are over all rounds.

    python benchmarks/infer_workers.py [--case earth] [--rounds 5] [--out benchmarks/results/infer_workers.json]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from infer_overlap import CASES, Setup, make_setup

from spade_deploy.bench.machine import describe_machine
from spade_deploy.files.atomic import write_json
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.work import Crew
from spade_deploy.inference.workers import LocalWorkers
from spade_deploy.inference.workers.places import Place
from spade_deploy.machine.cores import core_shares, usable_cores
from spade_deploy.machine.memory import busy_seconds

IMAGES = {"earth": 4, "coco": 2}
"""How often the label maps of the case are made in one run, so that it takes long enough."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=IMAGES, action="append", help="all of them by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "infer_workers.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.case or list(IMAGES):
        results[name] = measure(name, arguments.rounds)
        write_json(arguments.out, {"machine": describe_machine(), "cores": usable_cores(), "cases": results})
    print(f"written to {arguments.out}")


def measure(name: str, rounds: int) -> dict[str, Any]:
    cores = usable_cores()
    counts = sorted({1, 2, cores, cores + 1})
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder), CASES[name])
        repeat(setup.labels, IMAGES[name])
        if setup.instances is not None:
            repeat(setup.instances, IMAGES[name])
        first: dict[str, bytes] = {}
        for number in range(rounds):
            for count in counts if number % 2 == 0 else reversed(counts):
                runs[count].append(one_run(setup, count))
                made = {path.name: path.read_bytes() for path in setup.out.glob("*.png")}
                first = first or made
                if made != first:
                    raise SystemExit(f"{name}: the images of {count} workers differ from those of others")
    found = {
        str(count): {
            "images_per_s": statistics.median(run["images_per_s"] for run in runs[count]),
            "seconds": statistics.median(run["seconds"] for run in runs[count]),
            "runs": runs[count],
        }
        for count in counts
    }
    for workers, entry in found.items():
        print(f"{name}: {workers} workers, {entry['images_per_s']:.2f} images/s, {entry['seconds']:.1f} s", flush=True)
    return {"images": len(first), "are_same_bytes": True, "rounds": rounds, "workers": found}


def repeat(folder: Path, times: int) -> None:
    """Each file under more names."""
    for path in sorted(folder.iterdir()):
        for number in range(1, times):
            shutil.copy(path, path.with_name(f"{number}-{path.name}"))


def one_run(setup: Setup, count: int) -> dict[str, float]:
    shutil.rmtree(setup.out, ignore_errors=True)
    request = InferRequest(setup.labels, setup.out, instances=setup.instances, backend="cpu", graph="dense")
    busy, start = busy_seconds(), time.perf_counter()
    done = infer(setup.artifact, request, crew=crew_of(count))
    seconds = time.perf_counter() - start
    return {
        "images_per_s": done.images_per_s,
        "seconds": seconds,
        "busy_cores": (busy_seconds() - busy) / seconds,  # of all processes on the machine
    }


def crew_of(count: int) -> Crew | None:
    if count == 1:
        return None
    shares = core_shares(min(count, usable_cores()))
    return LocalWorkers([Place(share, len(share)) for share in (*shares, *shares)[:count]])


if __name__ == "__main__":
    main()
