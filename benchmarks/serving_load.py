"""What `spade serve` costs beside the bare runtime, and how it bears hostile clients: loopback, one process, batch 1.

1. Throughput: two connections ask without a pause, and the bare runtime makes the same images in this process. They
   take turns; the ratio is the median over rounds.
2. Latency: one connection and the bare runtime make each map in turn. A request decodes a PNG, and encodes one.
3. Load: --requests requests over eight connections, of which 5 % are hostile, of every kind in `load_client.py`. Each
   image has to be the bare runtime's in every pixel, each hostile request has to get the status that docs/serving.md
   names, and the process may hold no more memory, files and threads than before. The run fails otherwise.

    python benchmarks/serving_load.py --artifact FOLDER [--requests 2000] [--backend cpu] [--threads N] [--out FILE]

`spade demo --out demo` makes an artifact of the shipped Earth model: demo/runs/earth-001/artifact. --quick: a tiny
generator and few requests; it shows that it works.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from load_client import LEFT, Address, Answer, Connection, form, get, hostile_requests, send_hostile, timing_parts
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Arrays, Artifact, Z
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.base import Runtime
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.machine.cores import usable_cores
from spade_deploy.serving.pictures import ids_png
from spade_deploy.spec import GeneratorSpec
from spade_deploy.tuning.open import open_runtime

RESULTS = Path(__file__).resolve().parent / "results"
HOSTILE_SHARE = 0.05
CONNECTIONS = 8
MOST_BYTES = 1 << 20
MOST_PIXELS = 4
"""As many times the model's own pixels are taken."""
MOST_GROWTH = 16 << 20
"""Bytes of memory by which the server may grow in the load, after every kind of request came once."""
SETTLED_S = 30.0


@dataclass(frozen=True)
class Case:
    """A label map as a request, and its right image."""

    request: bytes
    inputs: Arrays
    pixels: NDArray[np.uint8]


@dataclass
class Seen:
    """What came back in the load."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    """By kind of request."""
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    """What is not as it should be, a line each."""
    ms: list[float] = field(default_factory=list)
    """Of the images."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7, help="of throughput; and 30 times as many images for latency")
    parser.add_argument("--images", type=int, default=20, help="of a round of throughput")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--timeout", type=float, default=5.0, help="the server's, in seconds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving-load.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if options.artifact is None:
            if not options.quick:
                parser.error("--artifact names what is served; --quick takes a tiny generator")
            options.artifact = small_artifact(work)
        if options.quick:
            options.requests, options.rounds, options.images = min(options.requests, 200), 2, 8
        result = measure(Artifact.open(options.artifact), options, work)
    write_json(options.out, result)
    show(result)
    print(f"written to {options.out}")
    for fault in result["faults"]:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if result["faults"] else 0


def small_artifact(work: Path) -> Path:
    from models import SMALL, make_artifact, synthetic_maps

    return make_artifact(work, SMALL, synthetic_maps(SMALL)).path


def measure(artifact: Artifact, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All three parts, on one server."""
    spec = artifact.manifest.generator
    with (
        open_runtime(artifact, "fp32", options.backend, options.threads) as runtime,
        served(options, spec, work) as (process, address),
    ):
        cases = make_cases(spec, runtime)
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "load_average_before": psutil.getloadavg()[0],
            "run": artifact.manifest.source.run,
            "size": f"{spec.height}x{spec.width}",
            "runtime": runtime.name,
            "threads": options.threads,
        }
        result["throughput"] = asyncio.run(throughput(address, runtime, cases, options.rounds, options.images))
        result["latency"] = asyncio.run(latency(address, runtime, cases, 30 * options.rounds))
        result["load"] = asyncio.run(load(address, process, spec, cases, options.requests))
    return {**result, "faults": faults(result["load"])}


def most_pixels(spec: GeneratorSpec) -> int:
    """The server's limit for an image."""
    return max(64 * 64, MOST_PIXELS * spec.height * spec.width)


@contextmanager
def served(options: argparse.Namespace, spec: GeneratorSpec, work: Path) -> Iterator[tuple[psutil.Process, Address]]:
    """A running `spade serve`, and its address; it has to end with exit code 0."""
    errors = work / "serve.log"
    flags = {
        "--port": 0,
        "--backend": options.backend,
        "--precision": "fp32",
        "--threads": options.threads,
        "--max-batch": 1,
        "--max-bytes": MOST_BYTES,
        "--max-pixels": most_pixels(spec),
        "--timeout": options.timeout,
    }
    command = [sys.executable, "-m", "spade_deploy", "serve", str(options.artifact.absolute())]
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [*command, *(str(part) for pair in flags.items() for part in pair)], stdout=file, stderr=file, cwd=work
        )
    try:
        end = time.monotonic() + 120
        while (address := listening(errors)) is None:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(errors.read_text())
            time.sleep(0.05)
        yield psutil.Process(process.pid), address
        process.terminate()
        if process.wait(60) != 0:
            raise RuntimeError(errors.read_text())
    finally:
        process.kill()
        process.wait()


def listening(log: Path) -> Address | None:
    """The address that the log names, once it takes connections."""
    found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
    if found is None:
        return None
    try:
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=5).close()
    except OSError:
        return None
    return "127.0.0.1", int(found[1])


def make_cases(spec: GeneratorSpec, runtime: Runtime, count: int = 12) -> list[Case]:
    """Label maps of regions, with the images that the bare runtime makes of them."""
    maps, _ = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed=1)
    cases = []
    for label in maps:
        inputs: Arrays = {LABEL: label[None]}
        if spec.labels.has_edges:
            inputs[INSTANCE] = np.zeros((1, spec.height, spec.width), np.int32)
        if spec.z_dim is not None:
            inputs[Z] = np.zeros((1, spec.z_dim), np.float32)
        pixels = runtime.run(inputs, [PIXELS])[PIXELS][0]
        cases.append(Case(form(ids_png(label), size="keep", format="png"), inputs, pixels))
    return cases


def is_right(answer: Answer, case: Case) -> bool:
    if answer.status != 200:
        return False
    with Image.open(io.BytesIO(answer.body)) as image:
        return np.array_equal(np.asarray(image), case.pixels)


def check(answer: Answer, case: Case) -> None:
    if not is_right(answer, case):
        raise RuntimeError(f"a wrong answer, status {answer.status}: {answer.body[:300]!r}")


def run_bare(runtime: Runtime, cases: Sequence[Case]) -> float:
    """Seconds in which the bare runtime makes these images."""
    start = time.perf_counter()
    for case in cases:
        runtime.run(case.inputs, [PIXELS])
    return time.perf_counter() - start


async def throughput(
    address: Address, runtime: Runtime, cases: Sequence[Case], rounds: int, images: int
) -> dict[str, Any]:
    """Images a second of the bare runtime and of the server, which take turns."""
    asked = [cases[number % len(cases)] for number in range(images)]

    async def ask_all(connection: Connection, waiting: Iterator[Case], answers: list[tuple[Answer, Case]]) -> None:
        for case in waiting:
            answers.append((await connection.ask(case.request), case))

    found: list[dict[str, float]] = []
    for number in range(rounds + 1):  # the first one warms up
        bare_s = run_bare(runtime, asked)
        answers: list[tuple[Answer, Case]] = []
        connections = [await Connection.to(address) for _ in range(2)]  # idle ones would be closed
        waiting, start = iter(asked), time.perf_counter()
        await asyncio.gather(*(ask_all(connection, waiting, answers) for connection in connections))
        served_s = time.perf_counter() - start
        for connection in connections:
            await connection.close()
        for answer, case in answers:
            check(answer, case)
        if number:
            found.append(
                {"bare_images_s": images / bare_s, "served_images_s": images / served_s, "ratio": bare_s / served_s}
            )
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    return {**medians, "images": images, "connections": 2, "rounds": found}


async def latency(address: Address, runtime: Runtime, cases: Sequence[Case], images: int) -> dict[str, Any]:
    """Milliseconds of an image of the bare runtime, and of a request that is alone."""
    connection = await Connection.to(address)
    bare, served_ms, timings = [], [], []
    for number in range(images + 5):
        case = cases[number % len(cases)]
        ms = run_bare(runtime, [case]) * 1000
        answer = await connection.ask(case.request)
        check(answer, case)
        if number >= 5:  # the first ones warm up
            bare.append(ms)
            served_ms.append(answer.ms)
            timings.append(timing_parts(answer.headers["server-timing"]))
    await connection.close()
    bare_is, served_is = percentiles(bare), percentiles(served_ms)
    return {
        "images": images,
        "bare": bare_is,
        "served": served_is,
        "overhead_p50_ms": served_is["p50_ms"] - bare_is["p50_ms"],
        "overhead_p99_ms": served_is["p99_ms"] - bare_is["p99_ms"],
        "timing_median_ms": {name: statistics.median(one[name] for one in timings) for name in timings[0]},
    }


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(ms, (50, 99))
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


async def load(
    address: Address, process: psutil.Process, spec: GeneratorSpec, cases: Sequence[Case], count: int
) -> dict[str, Any]:
    """Send the requests, and compare what came back, and what the server holds, with what should be."""
    kinds = hostile_requests(spec, MOST_BYTES, most_pixels(spec), cases[0].request)
    ill = round(count * HOSTILE_SHARE)
    plan: list[Any] = [kinds[number % len(kinds)] for number in range(ill)]
    plan += [cases[number % len(cases)] for number in range(count - ill)]
    random.Random(0).shuffle(plan)
    warm_up = [*kinds, *(cases[number % len(cases)] for number in range(50))]
    await send_all(address, warm_up, Seen())
    before = await settled(process, None)
    images_before = await images_made(address)
    seen, held, start = Seen(), [], time.perf_counter()

    def watched() -> Iterator[Any]:
        for number, one in enumerate(plan):
            if number % max(1, count // 10) == 0:
                held.append(process.memory_info().rss)
            yield one

    await send_all(address, watched(), seen)
    seconds = time.perf_counter() - start
    after = await settled(process, before)
    return {
        "requests": count,
        "hostile": ill,
        "connections": CONNECTIONS,
        "seconds": seconds,
        "right_images": seen.right,
        "images_of_the_server": await images_made(address) - images_before,
        "of_clients_that_go": sum(counts[LEFT] for counts in seen.statuses.values()),
        **percentiles(seen.ms),
        "statuses": {name: dict(counts) for name, counts in sorted(seen.statuses.items())},
        "wrong": seen.wrong,
        "server_before": before,
        "server_after": after,
        "rss_bytes_at_each_tenth": held,
    }


async def send_all(address: Address, plan: Iterable[Any], seen: Seen) -> None:
    """Send everything: cases over a few connections, each hostile request beside them when its turn comes."""
    waiting, beside = iter(plan), []

    async def work() -> None:
        connection = None
        for one in waiting:
            if not isinstance(one, Case):
                beside.append(asyncio.create_task(hostile(address, one, seen)))
                continue
            try:
                connection = connection or await Connection.to(address)
                answer = await connection.ask(one.request)
            except (OSError, TimeoutError) as error:
                seen.wrong.append(f"a request was lost: {error!r}")
                connection = None
                continue
            seen.statuses.setdefault("as it should be", Counter())[answer.status] += 1
            if is_right(answer, one):
                seen.right += 1
                seen.ms.append(answer.ms)
            else:
                seen.wrong.append(f"a wrong answer to a good request, status {answer.status}: {answer.body[:200]!r}")
        if connection is not None:
            await connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    await asyncio.gather(*beside)


async def hostile(address: Address, one: Any, seen: Seen) -> None:
    try:
        answer = await send_hostile(address, one)
    except (OSError, TimeoutError) as error:
        seen.wrong.append(f"{one.name}: {error!r} instead of status {one.status}")
        return
    seen.statuses.setdefault(one.name, Counter())[answer.status] += 1
    if answer.status != one.status:
        seen.wrong.append(f"{one.name}: status {answer.status} instead of {one.status}: {answer.body[:200]!r}")
    if answer.status >= 400 and answer.headers.get("content-type") != "application/problem+json":
        seen.wrong.append(f"{one.name}: the answer is no application/problem+json")


async def settled(process: psutil.Process, before: dict[str, int] | None) -> dict[str, int]:
    """What the server holds once the connections of all that went are closed, or after 30 seconds."""
    end = time.monotonic() + SETTLED_S
    while True:
        await asyncio.sleep(0.3)
        found = {"rss_bytes": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}
        open_now = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))
        if (open_now == 0 and (before is None or found["files"] <= before["files"])) or time.monotonic() > end:
            return found


async def images_made(address: Address) -> int:
    """How many images the server says that it has made; nothing may wait or run then."""
    connection = await Connection.to(address)
    text = (await connection.ask(get("/metrics"))).body.decode()
    await connection.close()
    busy = re.findall(r"^spade_(?:queue_waiting|running) ([\d.e+]+)$", text, re.MULTILINE)
    if [float(value) for value in busy] != [0.0, 0.0]:
        raise RuntimeError(f"the server is not idle: waiting and running are {busy}")
    return int(sum(float(value) for value in re.findall(r"^spade_images_total\{.*\} (\S+)$", text, re.MULTILINE)))


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it should be after the load, a line each."""
    told = list(found["wrong"])
    good = found["requests"] - found["hostile"]
    if found["right_images"] != good:
        told.append(f"{good} good requests got {found['right_images']} right images")
    if not good <= found["images_of_the_server"] <= good + found["of_clients_that_go"]:
        told.append(f"the server made {found['images_of_the_server']} images for {good} good requests")
    before, after = found["server_before"], found["server_after"]
    for name, most in (("files", 0), ("threads", 0), ("rss_bytes", MOST_GROWTH)):
        if after[name] - before[name] > most:
            told.append(f"{name} of the server grew from {before[name]} to {after[name]}")
    return told


def show(result: dict[str, Any]) -> None:
    through, late, found = result["throughput"], result["latency"], result["load"]
    print(
        f"{result['runtime']}, {result['size']}: {through['served_images_s']:.1f} images/s served,"
        f" {through['bare_images_s']:.1f} by the bare runtime, x {through['ratio']:.3f}"
    )
    print(
        f"alone: p50 {late['served']['p50_ms']:.2f} ms, bare {late['bare']['p50_ms']:.2f}; p99"
        f" {late['served']['p99_ms']:.2f} ms, bare {late['bare']['p99_ms']:.2f}; overhead {late['overhead_p50_ms']:.2f}"
        f" and {late['overhead_p99_ms']:.2f} ms"
    )
    growth = (found["server_after"]["rss_bytes"] - found["server_before"]["rss_bytes"]) / 2**20
    print(
        f"load: {found['requests']} requests, {found['hostile']} hostile, {found['right_images']} right images,"
        f" {len(found['wrong'])} wrong answers, {found['seconds']:.1f} s; p50 {found['p50_ms']:.1f} ms,"
        f" p99 {found['p99_ms']:.1f} ms; memory {growth:+.1f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
