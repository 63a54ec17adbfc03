"""The lookup and the dense graph in a browser, in WebAssembly: which is faster there, and whether both are right.

The web folder of an artifact is written, and served with the headers that threads need. A worker of the page, as the
paint page has one, opens both fp32 graphs. In a round every graph runs every map once; the order turns round. The maps
are the artifact's golden ones and noise, of which every window is another. Before that, what each graph makes of each
map is held to the fp32 tolerance against ONNX Runtime in Python. `patterns_ms` is the time for finding the patterns of
a map; it is part of `lookup_ms`. A ratio is taken within a round, and its median over rounds is given.

`break_even_share` is the share of unique patterns from which on the dense graph is the better one, as the export
measures it, with the times of the browser; `exported_share` is what the export measured in Python.

    python benchmarks/web_engine.py ARTIFACT [--rounds 5] [--threads 1 2] [--onnxruntime-web FILE] [--chromium FILE]

ARTIFACT has fp32 graphs of both kinds: `spade demo` leaves one in demo/runs/earth-001/artifact.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from local_page import installed_chromium, static_host
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, LOGITS, PIXELS, Arrays, Artifact, Z, one_by_one
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.files.atomic import write_json
from spade_deploy.lookup.tables import unique_share
from spade_deploy.machine.cores import usable_cores
from spade_deploy.metrics.judge import Judge
from spade_deploy.serving.web.folder import write_web
from spade_deploy.serving.web.onnxruntime_web import VERSION, runtime_files
from spade_deploy.spec import GraphKind, Precision
from spade_deploy.tuning.break_even import BreakEven, noisy

ROOT = Path(__file__).resolve().parents[1]
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""The headers without which a browser allows no threads."""
KINDS = (GraphKind.LOOKUP, GraphKind.DENSE)
WORKER = """
onmessage = async ({data: {runtime, model, maps, kinds, rounds, threads}}) => {
  try {
    const {Runtime} = await import(runtime);
    const facts = await (await fetch(model)).json();
    const opened = {};
    for (const kind of kinds) opened[kind] = await Runtime.open(model, facts, {provider: "wasm", kind, threads});
    const images = [];
    for (const map of maps) {
      for (const kind of kinds) {
        const {pixels, image} = await opened[kind].run(map, map, ["pixels", "image"]);
        images.push({kind, pixels: [...pixels], image: [...image]});
      }
    }
    const times = [];
    for (let round = 0; round < rounds; round++) {
      for (const number of maps.keys()) {
        for (const kind of round % 2 ? kinds : [...kinds].reverse()) {
          const {patternsMs, runMs} = await opened[kind].run(maps[number], maps[number]);
          times.push({round, number, kind, patternsMs, runMs});
        }
      }
    }
    postMessage({images, times});
  } catch (error) {
    postMessage({problem: String(error)});
  }
};
"""
PAGE = """(asked) => new Promise((resolve) => {
  const worker = new Worker("/measure.js", {type: "module"});
  worker.onmessage = ({data}) => resolve(data);
  worker.onerror = ({message}) => resolve({problem: message});
  worker.postMessage(asked);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(8, usable_cores())}))
    parser.add_argument("--onnxruntime-web", type=Path, help="the npm package, where there is no network")
    parser.add_argument("--chromium", default=installed_chromium())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "web-engine.json")
    asked = parser.parse_args()
    artifact = Artifact.open(asked.artifact)
    maps = maps_of(artifact)
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        host = Path(work) / "host"
        write_web(artifact, host, runtime_files(asked.onnxruntime_web))
        parts = [in_browser(host, asked.chromium, maps, asked.rounds, threads) for threads in asked.threads]
    result = {
        "browser": f"chromium {parts[0]['version']}",
        "onnxruntime_web": VERSION,
        "provider": "wasm",
        "rounds": asked.rounds,
        "model": str(artifact.manifest.source.run),
        "size": list(maps[0][LABEL].shape[1:]),
        "exported_share": next(g.break_even_share for g in artifact.manifest.graphs if g.kind is GraphKind.LOOKUP),
        "runs": [run_of(artifact, maps, threads, part) for threads, part in zip(asked.threads, parts, strict=True)],
        "load_average_before": busy,
        "machine": describe_machine(),
    }
    write_json(asked.out, result)
    print(f"written to {asked.out}")


def run_of(artifact: Artifact, maps: list[Arrays], threads: int, part: dict[str, Any]) -> dict[str, Any]:
    """The figures of one number of threads; they are printed."""
    rows = [row_of(artifact, number, one, part["times"]) for number, one in enumerate(maps)]
    for row in rows:
        print({key: value for key, value in row.items() if key != "ms"})
    run = {
        "threads": threads,
        "judged": judged_images(artifact, maps, part["images"]),
        "break_even_share": round(break_even(rows).crossing, 3),
    }
    print(run, flush=True)
    return {**run, "maps": rows}


def maps_of(artifact: Artifact) -> list[Arrays]:
    """The golden inputs one by one, and noise."""
    golden = artifact.golden().inputs
    maps = list(one_by_one(golden))
    return [*maps, noisy(artifact.manifest.generator, maps[0])]


def in_browser(host: Path, path: str, maps: list[Arrays], rounds: int, threads: int) -> dict[str, Any]:
    """What WORKER tells, and chromium's `version`. Raises RuntimeError for what fails there."""
    (host / "measure.js").write_text(WORKER, encoding="utf-8")
    (host / "empty.html").write_text("<!doctype html><title>measure</title>", encoding="utf-8")
    with static_host(host, ISOLATED) as url, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page()
        tab.goto(f"{url}/empty.html")
        asked = {
            "runtime": address(host, url, "runtime.js"),
            "model": address(host, url, "model.json"),
            "maps": [to_page(one) for one in maps],
            "kinds": [str(kind) for kind in KINDS],
            "rounds": rounds,
            "threads": threads,
        }
        found, version = tab.evaluate(PAGE, asked), chromium.version
        chromium.close()
    if "problem" in found:
        raise RuntimeError(found["problem"])
    return {**found, "version": version}


def address(host: Path, url: str, name: str) -> str:
    (path,) = host.rglob(name)
    return f"{url}/{path.relative_to(host).as_posix()}"


def to_page(one: Arrays) -> dict[str, Any]:
    """A map as `Runtime.run` takes it, its style with it."""
    height, width = one[LABEL].shape[1:]
    style = {"style": one[Z][0].tolist()} if Z in one else {}
    ids, instances = one[LABEL].ravel().tolist(), one.get(INSTANCE, one[LABEL]).ravel().tolist()
    return {"width": width, "height": height, "ids": ids, "instances": instances, **style}


def judged_images(artifact: Artifact, maps: list[Arrays], images: list[dict[str, Any]]) -> dict[str, Any]:
    """Each graph's verdict against ONNX Runtime in Python. Raises RuntimeError for a wrong one."""
    manifest = artifact.manifest
    judges = {str(kind): Judge(manifest.generator.labels, Precision.FP32, manifest.rounding) for kind in KINDS}
    most: dict[str, int] = dict.fromkeys(judges, 0)
    with open_runtime(artifact, Precision.FP32, "cpu", None, "dense") as runtime:
        right = [runtime.run(one) for one in maps]
    for number, made in enumerate(images):
        one, trusted = maps[number // len(KINDS)], right[number // len(KINDS)]
        pixels = np.array(made["pixels"], np.uint8).reshape(trusted[PIXELS].shape)
        image = np.array(made["image"], np.float32).reshape(trusted[IMAGE].shape)
        judges[made["kind"]].add(
            one[LABEL], {**trusted, LOGITS: logits(trusted[IMAGE])}, {PIXELS: pixels, IMAGE: image}
        )
        apart = int(np.abs(pixels.astype(int) - trusted[PIXELS]).max())
        most[made["kind"]] = max(most[made["kind"]], apart)
    found = {}
    for kind, judge in judges.items():
        verdict = judge.verdict()
        if not verdict.passed:
            raise RuntimeError(f"{kind}: {verdict.failures}")
        found[kind] = {
            "images": judge.images,
            "psnr_db": None if verdict.diff.psnr_db is None else round(verdict.diff.psnr_db, 1),
            "max_abs": verdict.diff.max_abs,
            "largest_pixel_difference": most[kind],
        }
    return found


def logits(image: NDArray[Any]) -> NDArray[Any]:
    """What the tanh at the end of the generator was given."""
    return np.arctanh(np.clip(image.astype(np.float64), -1 + 1e-12, 1 - 1e-12))


def row_of(artifact: Artifact, number: int, one: Arrays, times: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one map in milliseconds, and the ratio of dense to lookup."""
    mine = {str(kind): [t for t in times if t["number"] == number and t["kind"] == kind] for kind in KINDS}
    whole = {kind: [t["patternsMs"] + t["runMs"] for t in rows] for kind, rows in mine.items()}
    lookup, dense = whole[GraphKind.LOOKUP], whole[GraphKind.DENSE]
    golden = len(artifact.golden().inputs[LABEL])
    return {
        "map": f"golden {number}" if number < golden else "noise",
        "unique_share": round(unique_share(artifact.manifest.generator, one), 3),
        "lookup_ms": round(statistics.median(lookup), 1),
        "patterns_ms": round(statistics.median(t["patternsMs"] for t in mine[GraphKind.LOOKUP]), 2),
        "dense_ms": round(statistics.median(dense), 1),
        "dense_to_lookup": round(statistics.median(d / k for d, k in zip(dense, lookup, strict=True)), 2),
        "ms": {kind: [round(value, 2) for value in values] for kind, values in whole.items()},
    }


def break_even(rows: list[dict[str, Any]]) -> BreakEven:
    """From the map with the fewest windows and noise, as the export does it."""
    few, many = min(rows, key=lambda row: row["unique_share"]), max(rows, key=lambda row: row["unique_share"])
    dense = statistics.median(row["dense_ms"] for row in rows)
    return BreakEven(few["unique_share"], many["unique_share"], few["lookup_ms"], many["lookup_ms"], dense)


if __name__ == "__main__":
    main()
