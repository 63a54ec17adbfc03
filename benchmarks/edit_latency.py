"""How long a small edit takes beside a full request, over HTTP and over the page's WebSocket, at ADE20K's size.

A server runs in this process. In a round a square of 1 % of the map gets another class. Then the photo of the new map
is asked for twice, by the whole map and by what changed; which of them comes first changes from round to round. Both
photos have to be the same in every pixel, or else the run fails. `timing` are the parts of Server-Timing.

What could be won by keeping rows of gamma and beta from one map to the next is measured beside it, on the runtime
alone: a run with all rows of a map, and one with as many rows as an edit has new ones. The second makes no right image;
it says how long a graph would take that gets all other rows ready-made, so no such graph can win more.

    python benchmarks/edit_latency.py [--sizes 256 512] [--rounds 21] [--work FOLDER] [--backend cpu] [--out FILE]

--work keeps the generator's artifact between runs. --quick: a tiny generator, a few rounds; it shows that it works.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
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

from spade_deploy.artifact import LABEL, Artifact
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.files.atomic import write_json
from spade_deploy.images.image_file import ImageBytes, read_photo
from spade_deploy.lookup.tables import extract_patterns, level_names
from spade_deploy.machine.cores import usable_cores
from spade_deploy.serving.app import make_app
from spade_deploy.serving.live import LIVE, SUBPROTOCOL
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.pictures import ids_png
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import BatchRule
from spade_deploy.spec import GraphKind
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
            with served(model) as port:
                for size in sizes:
                    here = [resized(one, size, size)[LABEL][0] for one in maps.values()]
                    found = {**measure(port, model, here, rounds), "kept_rows": bound(artifact, runtime, here, rounds)}
                    result["sizes"][f"{size}x{size}"] = found  # type: ignore[index]
                    show(size, found)
    write_json(options.out, result)
    print(f"written to {options.out}")


@contextmanager
def served(model: ServedModel) -> Iterator[int]:
    """Serve a model on a free port of this machine."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # as serving/run.py does
    listening.bind(("127.0.0.1", 0))
    app = make_app({model.name: model}, ServeRequest())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


class Http:
    """Full requests and edits over one connection that stays open."""

    def __init__(self, port: int, model: ServedModel) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._edges = model.spec.labels.has_edges

    def begin(self, label: Map) -> dict[str, Any]:
        headers = self._ask("/v1/edits", self._whole(label), "multipart/form-data; boundary=x")[1]
        return {"drawing": headers["Drawing"], "base": int(headers["Drawing-Version"])}

    def full(self, label: Map) -> Answer:
        return self._ask("/v1/synthesize", self._whole(label), "multipart/form-data; boundary=x")[0]

    def edit(self, base: dict[str, Any], patch: dict[str, Any]) -> Answer:
        body = json.dumps({**base, **patches_of(patch, self._edges), **FIELDS}).encode()
        return self._ask("/v1/edits", body, "application/json")[0]

    def _whole(self, label: Map) -> bytes:
        lines = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in FIELDS.items()]
        body = "".join(lines).encode()
        for name in ("label", "instance") if self._edges else ("label",):
            head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="map.png"\r\n\r\n'
            body += head.encode() + ids_png(label) + b"\r\n"
        return body + b"--x--\r\n"

    def _ask(self, path: str, body: bytes, kind: str) -> tuple[Answer, Any]:
        start = time.perf_counter()
        self._connection.request("POST", path, body, {"Content-Type": kind})
        answer = self._connection.getresponse()
        content = answer.read()
        ms = 1000 * (time.perf_counter() - start)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {content[:500]!r}")
        return Answer(ms, len(body), timing_parts(answer.headers["Server-Timing"]), content), answer.headers


class Live:
    """The same as the page does it."""

    def __init__(self, port: int, model: ServedModel) -> None:
        self._url = f"ws://127.0.0.1:{port}{LIVE}"
        self._edges = model.spec.labels.has_edges
        self._number = 0
        # One connection for each, since a whole map on the same one would be the next base.
        self._whole, self._edits = (connect(self._url, subprotocols=[SUBPROTOCOL], max_size=None) for _ in range(2))

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


def measure(port: int, model: ServedModel, maps: list[Map], rounds: int) -> dict[str, Any]:
    """Milliseconds of full requests and of edits, over HTTP and over the WebSocket."""
    found: dict[str, Any] = {}
    ways: dict[str, Any] = {"http": Http(port, model), "live": Live(port, model)}
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
            pixels = [read_photo(ImageBytes("photo", now[kind].photo), label.shape) for kind in ("full", "edit")]  # type: ignore[arg-type]
            if not np.array_equal(*pixels):
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


def bound(artifact: Artifact, runtime: Any, maps: list[Map], rounds: int) -> dict[str, Any]:
    """Milliseconds of the lookup graph with all rows, and with as many rows as an edit has new ones."""
    graph = runtime._lookup if isinstance(runtime, AutoRuntime) else runtime
    if graph.kind is not GraphKind.LOOKUP:
        return {"why": f"{runtime.name} runs no lookup graph"}
    spec, rng = artifact.manifest.generator, np.random.default_rng(0)
    ms: dict[str, list[float]] = {"all_rows": [], "new_rows": []}
    shares = []
    for number in range(rounds + 1):
        label = maps[number % len(maps)]
        edited, _ = an_edit(label, spec.labels.num_labels, rng)
        old, new = (tables_of(spec, one) for one in (label, edited))
        few, share = new_rows_alone(spec, old, new)
        pair = [("all_rows", new), ("new_rows", few)]
        for kind, tables in pair if number % 2 else reversed(pair):
            start = time.perf_counter()
            graph.run_tables(tables, ["pixels"], is_checked=True)
            if number:
                ms[kind].append(1000 * (time.perf_counter() - start))
        shares.append(share)
    ratios = [a / b for a, b in zip(ms["all_rows"], ms["new_rows"], strict=True)]
    return {
        "share_of_new_rows_median": statistics.median(shares),
        **{f"{kind}_median_ms": statistics.median(of) for kind, of in ms.items()},
        "could_be_faster_by_at_most": statistics.median(ratios),
        "ms": ms,
    }


def tables_of(spec: Any, label: Map) -> dict[str, Any]:
    instance = label[None].astype(np.int32) if spec.labels.has_edges else None
    tables = extract_patterns(spec, label[None], instance)
    assert tables is not None
    return dict(tables.to_inputs())


def new_rows_alone(spec: Any, old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The tables with only those patterns that the old map does not have, and their share of all."""
    found, counts = dict(new), [0, 0]
    for stride in {int(name.split("_")[1]) for name in new if name.startswith("index_")}:
        codes, patterns, index = level_names(stride)
        before = set(windows(old[codes], old[patterns]))
        is_new = np.array([one not in before for one in windows(new[codes], new[patterns])])
        kept = new[patterns][is_new] if is_new.any() else new[patterns][:1]
        outside = len(new[codes])
        used = np.unique(kept[kept < outside])
        place = np.full(outside + 1, len(used), np.int32)
        place[used] = np.arange(len(used))
        found[codes], found[patterns] = new[codes][used], place[kept]
        found[index] = new[index] % np.int32(len(kept))
        counts = [counts[0] + int(is_new.sum()), counts[1] + len(is_new)]
    return found, counts[0] / counts[1]


def windows(codes: Map, patterns: Map) -> list[bytes]:
    """The whole window of each pattern."""
    with_outside = np.concatenate([codes, np.full((1, codes.shape[1]), -1, codes.dtype)])
    return [one.tobytes() for one in with_outside[patterns].reshape(len(patterns), -1)]


def show(size: int, found: dict[str, Any]) -> None:
    for way in ("http", "live"):
        full, edit = found[way]["full"], found[way]["edit"]
        print(
            f"{size} {way}: full {full['median_ms']:.1f} ms ({full['sent_bytes_median']:.0f} bytes),"
            f" edit {edit['median_ms']:.1f} ms ({edit['sent_bytes_median']:.0f} bytes),"
            f" x {found[way]['edit_is_faster_by']:.3f}"
        )
        print("   edit:", {part: round(ms, 2) for part, ms in edit["timing_median_ms"].items()})
    print("   kept rows, at most:", {name: value for name, value in found["kept_rows"].items() if name != "ms"})


if __name__ == "__main__":
    main()
