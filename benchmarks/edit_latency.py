"""How long a small edit takes beside a full request, over HTTP and over the page's WebSocket, at ADE20K's size.

Two servers run in this process, on one runtime: one keeps rows of gamma and beta from edit to edit, the other none. In
a round a square of 1 % of the map gets another class. Then the photo of the new map is asked for twice, as a whole map
of the server that keeps nothing, and by what changed of the other; which of them comes first changes from round to
round. Both photos have to be the same in every pixel, or else the run fails. `timing` are the parts of Server-Timing.

`runtime` is the same without a server, with processor time (all threads) beside the clock, which says more where other
programs run. There both images have to be the same in every bit. `memory` is what the process holds before and after
the first drawing: the graph that is cut in two has the weights once more.

    python benchmarks/edit_latency.py [--sizes 256 512] [--rounds 21] [--work FOLDER] [--backend cpu] [--out FILE]

--work keeps the generator's artifact between runs. --quick: a tiny generator, a few rounds; it shows that it works.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from load_client import timing_parts
from models import ADE20K, DATA, RESULTS, SMALL, coco_maps, make_artifact, resized, synthetic_maps
from numpy.typing import NDArray
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.base import KeepsRows, Runtime
from spade_deploy.files.atomic import write_json
from spade_deploy.images.image_file import ImageBytes, read_photo
from spade_deploy.lookup.kept_rows import pattern_keys
from spade_deploy.lookup.tables import graph_inputs, modulated_channels
from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.memory import memory_bytes
from spade_deploy.serving.app import make_app
from spade_deploy.serving.live import LIVE, SUBPROTOCOL
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.pictures import ids_png
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import BatchRule
from spade_deploy.spec import GeneratorSpec, GraphKind
from spade_deploy.tuning.open import open_runtime

SHARE = 0.01
"""Of the map's pixels that an edit changes."""
FIELDS = {"size": "keep", "format": "png"}
Map = NDArray[Any]


@dataclass(frozen=True)
class Answer:
    """One photo, and what it took."""

    ms: float
    sent_bytes: int
    timing: dict[str, float]
    photo: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "edit-latency.json")
    options = parser.parse_args()
    spec = SMALL if options.quick else ADE20K
    sizes, rounds = ([64], 3) if options.quick else (options.sizes, options.rounds)
    maps = coco_maps(spec, options.data) if options.data.is_dir() and not options.quick else synthetic_maps(spec)
    with tempfile.TemporaryDirectory() as temporary:
        artifact = make_artifact(options.work or Path(temporary), spec, maps)
        with open_runtime(artifact, "fp32", options.backend, options.threads) as runtime:
            result = {
                "machine": describe_machine(),
                "threads": options.threads,
                "runtime": runtime.name,
                "maps": list(maps),
                "edited_share": SHARE,
                "rounds": rounds,
                "sizes": {},
            }
            model = ServedModel("model", artifact, runtime, BatchRule())
            with served(model, 0) as whole, served(model, ServeRequest().max_row_bytes) as keeping:
                for size in sizes:
                    here = [resized(one, size, size)[LABEL][0] for one in maps.values()]
                    found = {
                        "runtime": on_runtime(model, here, rounds),
                        **measure(Ports(whole, keeping), model, here, rounds),
                        "load_average": list(os.getloadavg()),
                    }
                    result["sizes"][f"{size}x{size}"] = found
                    show(size, found)
                    write_json(options.out, result)  # what is measured is kept, whatever the next size does
    print(f"written to {options.out}")


@dataclass(frozen=True)
class Ports:
    """Where the two servers listen."""

    whole: int
    """The one that keeps no rows."""
    keeping: int
    """The one that does."""


@contextmanager
def served(model: ServedModel, max_row_bytes: int) -> Iterator[int]:
    """Serve a model on a free port of this machine."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # as serving/run.py does
    listening.bind(("127.0.0.1", 0))
    app = make_app({model.name: model}, ServeRequest(max_row_bytes=max_row_bytes))
    config = uvicorn.Config(app, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=1)
    config.timeout_keep_alive = 3600  # the connections wait while the other parts are measured
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


class Http:
    """Full requests and edits, each over one connection that stays open."""

    def __init__(self, ports: Ports, model: ServedModel) -> None:
        self._whole_map, self._edits = (
            http.client.HTTPConnection("127.0.0.1", port) for port in (ports.whole, ports.keeping)
        )
        self._edges = model.spec.labels.has_edges

    def begin(self, label: Map) -> dict[str, Any]:
        headers = self._ask(self._edits, "/v1/edits", self._whole(label), "multipart/form-data; boundary=x")[1]
        return {"drawing": headers["Drawing"], "base": int(headers["Drawing-Version"])}

    def full(self, label: Map) -> Answer:
        return self._ask(self._whole_map, "/v1/synthesize", self._whole(label), "multipart/form-data; boundary=x")[0]

    def edit(self, base: dict[str, Any], patch: dict[str, Any]) -> Answer:
        body = json.dumps({**base, **patches_of(patch, self._edges), **FIELDS}).encode()
        return self._ask(self._edits, "/v1/edits", body, "application/json")[0]

    def _whole(self, label: Map) -> bytes:
        lines = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in FIELDS.items()]
        body = "".join(lines).encode()
        for name in ("label", "instance") if self._edges else ("label",):
            head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="map.png"\r\n\r\n'
            body += head.encode() + ids_png(label) + b"\r\n"
        return body + b"--x--\r\n"

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: bytes, kind: str) -> tuple[Answer, Any]:
        start = time.perf_counter()
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        content = answer.read()
        ms = 1000 * (time.perf_counter() - start)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {content[:500]!r}")
        return Answer(ms, len(body), timing_parts(answer.headers["Server-Timing"]), content), answer.headers


class Live:
    """The same as the page does it."""

    def __init__(self, ports: Ports, model: ServedModel) -> None:
        self._edges = model.spec.labels.has_edges
        self._number = 0
        self._whole, self._edits = (
            connect(f"ws://127.0.0.1:{port}{LIVE}", subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=None)
            for port in (ports.whole, ports.keeping)
        )

    def begin(self, label: Map) -> int:
        self._send(self._edits, self._head(label), ids_png(label))
        return self._number

    def full(self, label: Map) -> Answer:
        return self._send(self._whole, self._head(label), ids_png(label))

    def edit(self, base: int, patch: dict[str, Any]) -> Answer:
        return self._send(self._edits, {"base": base, **patches_of(patch, self._edges)}, b"")

    def _head(self, label: Map) -> dict[str, Any]:
        return {"instance": base64.b64encode(ids_png(label)).decode()} if self._edges else {}

    def _send(self, where: Any, head: dict[str, Any], png: bytes) -> Answer:
        self._number += 1
        message = json.dumps({"id": self._number, **FIELDS, **head}).encode() + b"\n" + png
        start = time.perf_counter()
        where.send(message)
        answer = where.recv()
        ms = 1000 * (time.perf_counter() - start)
        if not isinstance(answer, bytes):
            raise SystemExit(answer)
        line, _, photo = answer.partition(b"\n")
        return Answer(ms, len(message), timing_parts(json.loads(line)["timing"]), photo)


def patches_of(patch: dict[str, Any], has_edges: bool) -> dict[str, Any]:
    return {"patches": [patch], **({"instance_patches": [patch]} if has_edges else {})}


def an_edit(label: Map, num_ids: int, rng: np.random.Generator) -> tuple[Map, dict[str, Any]]:
    """A map with a square of 1 % in another class, and the patch that makes it."""
    side = max(1, round((SHARE * label.size) ** 0.5))
    y, x = (int(rng.integers(0, size - side + 1)) for size in label.shape)
    value = (int(label[y, x]) + int(rng.integers(1, num_ids))) % num_ids
    edited = label.copy()
    edited[y : y + side, x : x + side] = value
    return edited, {"x": x, "y": y, "height": side, "width": side, "runs": [value, side * side]}


def measure(ports: Ports, model: ServedModel, maps: list[Map], rounds: int) -> dict[str, Any]:
    """Milliseconds of full requests and of edits, over HTTP and over the WebSocket."""
    found: dict[str, Any] = {}
    ways: dict[str, Any] = {"http": Http(ports, model), "live": Live(ports, model)}
    for name, way in ways.items():
        answers: dict[str, list[Answer]] = defaultdict(list)
        rng = np.random.default_rng(0)
        for number in range(rounds + 1):
            label = maps[number % len(maps)]
            base = way.begin(label)
            edited, patch = an_edit(label, model.spec.labels.num_labels, rng)
            asked: list[tuple[str, Callable[[], Answer]]] = [
                ("full", partial(way.full, edited)),
                ("edit", partial(way.edit, base, patch)),
            ]
            now = {kind: ask() for kind, ask in (asked if number % 2 else reversed(asked))}
            full, edit = (read_photo(ImageBytes("photo", now[kind].photo), label.shape) for kind in ("full", "edit"))
            if not np.array_equal(full, edit):
                raise SystemExit(f"{name}: the photo of an edit is not that of the whole map")
            if number:  # the first round warms up
                for kind, answer in now.items():
                    answers[kind].append(answer)
        found[name] = {kind: summary(of) for kind, of in answers.items()}
        ratios = [a.ms / b.ms for a, b in zip(answers["full"], answers["edit"], strict=True)]
        found[name]["edit_is_faster_by"] = statistics.median(ratios)
    return found


def summary(answers: list[Answer]) -> dict[str, Any]:
    ms = [one.ms for one in answers]
    return {
        "median_ms": statistics.median(ms),
        "timing_median_ms": {
            part: statistics.median(one.timing[part] for one in answers) for part in answers[0].timing
        },
        "sent_bytes_median": statistics.median(one.sent_bytes for one in answers),
        "ms": ms,
    }


def on_runtime(model: ServedModel, maps: list[Map], rounds: int) -> dict[str, Any]:
    """Milliseconds of the runtime as it is, and of the one that keeps rows; what the latter keeps."""
    spec, rng, whole = model.spec, np.random.default_rng(1), model.runtime
    whole.run(inputs_for(spec, maps[0]))
    before = memory_bytes()
    kept = whole.keeping_rows(ServeRequest().max_row_bytes) if isinstance(whole, KeepsRows) else None
    if kept is None:
        return {"why": f"{whole.name} keeps no rows"}
    start = time.perf_counter()
    kept.run(inputs_for(spec, maps[0]))
    opened_s, after = time.perf_counter() - start, memory_bytes()
    wall: dict[str, list[float]] = {"full": [], "edit": []}
    processor: dict[str, list[float]] = {"full": [], "edit": []}
    shares = []
    for number in range(rounds + 1):
        label = maps[number % len(maps)]
        kept.run(inputs_for(spec, label))
        edited, _ = an_edit(label, spec.labels.num_labels, rng)
        images = {}
        pair: list[tuple[str, Runtime]] = [("full", whole), ("edit", kept)]
        for kind, runtime in pair if number % 2 else reversed(pair):
            start, start_cpu = time.perf_counter(), time.process_time()
            images[kind] = runtime.run(inputs_for(spec, edited))[IMAGE]
            if number:  # the first round warms up
                wall[kind].append(1000 * (time.perf_counter() - start))
                processor[kind].append(1000 * (time.process_time() - start_cpu))
        if not np.array_equal(images["full"], images["edit"]):
            raise SystemExit("the image that is made from kept rows is not that of the whole graph")
        shares.append(share_of_new(spec, label, edited))
    return {
        "share_of_new_patterns_median": statistics.median(shares),
        **{f"{kind}_median_ms": statistics.median(ms) for kind, ms in wall.items()},
        "edit_is_faster_by": ratio(wall),
        "edit_is_faster_by_in_processor_time": ratio(processor),
        "memory": {"before_bytes": before, "after_bytes": after, "first_map_of_this_size_s": opened_s},
        "ms": wall,
        "processor_ms": processor,
    }


def ratio(ms: dict[str, list[float]]) -> float:
    """The median of how many times as fast an edit is."""
    return statistics.median(a / b for a, b in zip(ms["full"], ms["edit"], strict=True))


def inputs_for(spec: GeneratorSpec, label: Map) -> dict[str, Any]:
    return {LABEL: label[None], **({INSTANCE: label[None].astype(np.int32)} if spec.labels.has_edges else {})}


def share_of_new(spec: GeneratorSpec, old: Map, new: Map) -> float:
    """The share of a map's patterns, of all levels, that another one does not have."""
    before, after = (graph_inputs(spec, GraphKind.LOOKUP, inputs_for(spec, one)) for one in (old, new))
    found = {stride: [set(pattern_keys(one, stride)) for one in (before, after)] for stride in modulated_channels(spec)}
    return sum(len(b - a) for a, b in found.values()) / sum(len(b) for _, b in found.values())


def show(size: int, found: dict[str, Any]) -> None:
    for way in ("http", "live"):
        full, edit = found[way]["full"], found[way]["edit"]
        print(
            f"{size} {way}: full {full['median_ms']:.1f} ms ({full['sent_bytes_median']:.0f} bytes),"
            f" edit {edit['median_ms']:.1f} ms ({edit['sent_bytes_median']:.0f} bytes),"
            f" x {found[way]['edit_is_faster_by']:.3f}"
        )
        print("   edit:", {part: round(ms, 2) for part, ms in edit["timing_median_ms"].items()})
    print("   runtime:", {name: value for name, value in found["runtime"].items() if not name.endswith("ms")})


if __name__ == "__main__":
    main()
