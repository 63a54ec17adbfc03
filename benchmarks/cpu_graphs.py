"""The graphs of one generator in the engines for CPUs, taking turns in one process: where the milliseconds go.

Generator: of ADE20K's size, random weights (benchmarks/models.py). Maps: the 13 COCO-Stuff samples. Candidates: the
plain export and the artifact's graphs, in ONNX Runtime and in OpenVINO with f32 and with bf16. OpenVINO gets the size
of the map; the numbers of patterns stay open. A lookup graph's time includes that of finding the patterns; a plain
export is given its one-hot map ready-made.

In a round every candidate runs the same map once; the order turns round. A ratio is taken within a round, and its
median over rounds is given. CPU time counts all threads, so on a busy machine it says more than the wall clock.
PSNR is against the plain export in ONNX Runtime, over the floats of the image, whose range is 2.

    python benchmarks/cpu_graphs.py [--size 256] [--maps 13] [--rounds 1] [--work FOLDER] [--add NAME=FILE] [--out FILE]

"OpenVINO f32, Winograd" is the graph as the engine changes it in float32 (engines/openvino/winograd.py).
--add measures another lookup graph of the same generator, such as that of an earlier export.
--layers measures the convolutions of one layer each instead, directly and with Winograd's tiles, in OpenVINO f32.
--profile CANDIDATE prints the time of each of OpenVINO's steps instead; CANDIDATE is a name out of the table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from models import ADE20K, DATA, RESULTS, coco_maps, make_artifact, resized
from openvino import opset13 as op

from spade_deploy.artifact import IMAGE, LABEL, Arrays
from spade_deploy.bench.inputs import SEGMAP, make_segmap
from spade_deploy.bench.machine import describe_machine
from spade_deploy.bench.plain_export import write_plain_export
from spade_deploy.engines.openvino.winograd import use_winograd
from spade_deploy.engines.ort.session import SessionSetup, open_session
from spade_deploy.files.atomic import write_json
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.runs import checkpoint_folder
from spade_deploy.spec import GraphKind

PLAIN = "plain"
WINOGRAD = "f32, Winograd"
BASES = (f"{PLAIN}, ONNX Runtime", f"{PLAIN}, OpenVINO bf16", "lookup, ONNX Runtime")
"""What ratios are given to."""


@dataclass(frozen=True)
class Candidate:
    name: str
    prepare: Callable[[Arrays], Any]
    """Turns a label map into what `run` takes; not timed."""
    run: Callable[[Any], Arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--maps", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=1, help="a map")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", action="append", default=[], help="a candidate's name; all by default")
    parser.add_argument("--profile", metavar="CANDIDATE")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--work", type=Path, help="keeps the generator and its graphs between runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = {**describe_machine(), "openvino": openvino.__version__}
    if options.layers:
        out = options.out or RESULTS / "winograd-layers.json"
        write_json(out, {"machine": machine, "threads": options.threads, "layers": measure_layers(options)})
        print(f"written to {out}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        files, maps = make_files(options, options.work or Path(temporary))
        if options.profile:
            name, engine = options.profile.rsplit(", OpenVINO ", 1)
            print_profile(OpenVino(files[name], engine, options, profile=True), next(iter(maps.values())), name)
            return
        candidates = [one for one in open_all(files, options) if not options.only or one.name in options.only]
        result = measure(candidates, maps, options.rounds)
    for name, row in result["candidates"].items():
        ratios = "  ".join(f"{base}: x {x['cpu']:.2f} ({x['wall']:.2f})" for base, x in row["is_faster_by"].items())
        print(f"{name:28} {row['wall_ms']:8.1f} ms, CPU {row['cpu_ms']:8.1f}  {row['psnr_db']:6.1f} dB  {ratios}")
    out = options.out or RESULTS / f"cpu-graphs-{options.size}.json"
    write_json(out, {"machine": machine, "size": options.size, "threads": options.threads, **result})
    print(f"written to {out}")


def make_files(options: argparse.Namespace, work: Path) -> tuple[dict[str, Path], dict[str, Arrays]]:
    maps = coco_maps(ADE20K, options.data)
    artifact = make_artifact(work, ADE20K, maps)
    plain = artifact.path.parent / "plain.onnx"
    if not plain.exists():
        write_plain_export(checkpoint_folder(artifact.path.parent, 0), plain)
    files = {PLAIN: plain}
    for graph in artifact.manifest.graphs:
        files[str(graph.kind)] = artifact.path / graph.file
    files |= {name: Path(file) for name, file in (one.split("=", 1) for one in options.add)}
    chosen = list(maps.items())[: options.maps]
    return files, {name: resized(one, options.size, options.size) for name, one in chosen}


def open_all(files: dict[str, Path], options: argparse.Namespace) -> list[Candidate]:
    found = []
    for name, file in files.items():
        for engine in ("ONNX Runtime", "OpenVINO f32", f"OpenVINO {WINOGRAD}", "OpenVINO bf16"):
            full = f"{name}, {engine}"
            if options.only and full not in options.only:
                continue
            is_ort = engine == "ONNX Runtime"
            infer = Ort(file, options) if is_ort else OpenVino(file, engine.removeprefix("OpenVINO "), options)
            found.append(Candidate(full, *steps(name, infer)))
    return found


def steps(name: str, infer: Callable[[Arrays], Arrays]) -> tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]:
    if name == PLAIN:
        return lambda inputs: {SEGMAP: make_segmap(ADE20K, inputs)}, infer
    if name == GraphKind.DENSE:
        return lambda inputs: {LABEL: inputs[LABEL].astype(np.int32)}, infer
    return lambda inputs: inputs, lambda inputs: infer(graph_inputs(ADE20K, GraphKind.LOOKUP, inputs))


class Ort:
    def __init__(self, file: Path, options: argparse.Namespace) -> None:
        self._session = open_session(file, SessionSetup(options.threads))

    def __call__(self, feeds: Arrays) -> Arrays:
        return dict(zip([IMAGE], self._session.run([IMAGE], feeds), strict=True))


class OpenVino:
    def __init__(self, file: Path, precision: str, options: argparse.Namespace, *, profile: bool = False) -> None:
        core = openvino.Core()
        model = core.read_model(str(file))
        model.reshape({port.get_any_name(): fixed_shape(port, options.size) for port in model.inputs})
        if precision == WINOGRAD:
            use_winograd(model, GraphKind.LOOKUP if "patterns_1" in names_of(model) else GraphKind.DENSE)
        settings = {**told(options, precision), "PERF_COUNT": profile}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, feeds: Arrays) -> Arrays:
        self.request.infer(feeds, share_inputs=True)
        return {IMAGE: self.request.get_tensor(IMAGE).data.copy()}


def told(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads,
        "INFERENCE_PRECISION_HINT": precision.split(",")[0],
    }


def names_of(model: Any) -> list[str]:
    return [port.get_any_name() for port in model.inputs]


def fixed_shape(port: Any, size: int) -> list[int]:
    """The shape with batch, height and width as numbers; -1 for the numbers of windows and patterns."""
    name, shape = port.get_any_name(), [-1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]
    if name.startswith(("codes_", "patterns_")):
        return shape
    stride = int(name.split("_")[1]) if name.startswith("index_") else ADE20K.stride if name == "latent" else 1
    open_axes = [axis for axis, length in enumerate(shape) if length == -1]
    for axis, length in zip(open_axes, [1, size // stride, size // stride], strict=True):
        shape[axis] = length
    return shape


def measure(candidates: list[Candidate], maps: dict[str, Arrays], rounds: int) -> dict[str, Any]:
    names = [one.name for one in candidates]
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    psnr: dict[str, list[float]] = {name: [] for name in names}
    cases = []
    first = next(iter(maps.values()))
    for one in candidates:
        one.run(one.prepare(first))
    for round_ in range(rounds):
        for case, inputs in maps.items():
            cases.append(case)
            images = {}
            for one in candidates if len(cases) % 2 else reversed(candidates):
                prepared = one.prepare(inputs)
                started, used = time.perf_counter(), time.process_time()
                images[one.name] = one.run(prepared)[IMAGE]
                wall[one.name].append(1000 * (time.perf_counter() - started))
                cpu[one.name].append(1000 * (time.process_time() - used))
            if not round_:
                reference = images[names[0]].astype(np.float64)
                for name, image in images.items():
                    error = float(np.mean((image - reference) ** 2))
                    psnr[name].append(10 * math.log10(4 / error) if error else math.inf)
    rows = {}
    for name in names:
        faster = {
            base: {"wall": ratio(wall[base], wall[name]), "cpu": ratio(cpu[base], cpu[name])}
            for base in BASES
            if base in names
        }
        rows[name] = {
            "wall_ms": statistics.median(wall[name]),
            "cpu_ms": statistics.median(cpu[name]),
            "psnr_db": min(psnr[name]) if min(psnr[name]) < math.inf else 999.0,
            "is_faster_by": faster,
        }
    return {"candidates": rows, "maps": cases, "wall_ms": wall, "cpu_ms": cpu}


RESIDUAL = [(1024, 1024, 8), (1024, 1024, 16), (1024, 512, 32), (512, 512, 32), (512, 256, 64), (256, 256, 64)]
RESIDUAL += [(256, 128, 128), (128, 128, 128), (128, 64, 256), (64, 64, 256)]
OTHERS = [(512, 512, 16), (256, 256, 16), (256, 256, 32), (128, 128, 64), (64, 64, 32), (64, 64, 128), (32, 32, 256)]
"""Input channels, output channels, side: the residual convolutions at 256 x 256 with 64 base channels, then others."""


def measure_layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each layer with its leaky relu before and its bias after, channels last, as in a lookup graph."""
    found = []
    for inputs, outputs, side in RESIDUAL + OTHERS:
        rng = np.random.default_rng(0)
        weights = (rng.standard_normal((outputs, inputs, 3, 3)) / math.sqrt(9 * inputs)).astype(np.float32)
        values = rng.standard_normal((1, side, side, inputs)).astype(np.float32)
        requests = {tile: layer_request(weights, side, tile, options) for tile in (None, 2, 4)}
        cpu: dict[int | None, list[float]] = {tile: [] for tile in requests}
        images = {tile: request.infer([values])[0].astype(np.float64) for tile, request in requests.items()}
        for round_ in range(max(options.rounds, 9)):
            for tile in list(requests) if round_ % 2 else reversed(requests):
                used = time.process_time()
                requests[tile].infer([values], share_inputs=True)
                cpu[tile].append(1000 * (time.process_time() - used))
        row: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "side": side, "direct_cpu_ms": cpu[None]}
        for tile in (2, 4):
            error = float(np.sqrt(np.mean((images[tile] - images[None]) ** 2)) / images[None].std())
            row[f"tiles_of_{tile}"] = {"cpu_ms": cpu[tile], "is_faster_by": ratio(cpu[None], cpu[tile]), "error": error}
        found.append(row)
        faster = "  ".join(f"tiles of {tile}: x {row[f'tiles_of_{tile}']['is_faster_by']:.2f}" for tile in (2, 4))
        print(
            f"{inputs:5} -> {outputs:4} at {side:3}: {statistics.median(cpu[None]):7.2f} ms of CPU  {faster}",
            flush=True,
        )
    return found


def layer_request(weights: Any, side: int, tile: int | None, options: argparse.Namespace) -> Any:
    outputs, inputs = weights.shape[:2]
    fed = op.parameter([1, side, side, inputs], np.float32)
    node = op.transpose(op.prelu(fed, op.constant(np.array([0.2], np.float32))), op.constant([0, 3, 1, 2]))
    node = op.convolution(node, op.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])
    node = op.add(node, op.constant(np.ones((1, outputs, 1, 1), np.float32)))
    model = openvino.Model([op.transpose(node, op.constant([0, 2, 3, 1]))], [fed])
    if tile is not None:
        use_winograd(model, GraphKind.LOOKUP, lambda *_: tile)
    return openvino.Core().compile_model(model, "CPU", told(options, "f32")).create_infer_request()


def ratio(base: list[float], mine: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(base, mine, strict=True))


def print_profile(engine: OpenVino, inputs: Arrays, name: str, runs: int = 25) -> None:
    """The least time of every step over some runs, in the order they run."""
    prepare, run = steps(name, engine)
    prepared = prepare(inputs)
    least: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for _ in range(runs):
        run(prepared)
        for step in engine.request.profiling_info:
            ms = 1000 * step.real_time.total_seconds()
            least[step.node_name] = min(ms, least.get(step.node_name, math.inf))
            kinds[step.node_name] = f"{step.node_type} {step.exec_type}"
    for kind in sorted(set(kinds.values()), key=lambda kind: -total(least, kinds, kind)):
        print(f"{total(least, kinds, kind):8.2f} ms  {kind}")
    for step, ms in least.items():
        if ms >= 0.2:
            print(f"    {ms:8.2f} ms  {kinds[step]:45} {step}")


def total(least: dict[str, float], kinds: dict[str, str], kind: str) -> float:
    return sum(ms for step, ms in least.items() if kinds[step] == kind)


if __name__ == "__main__":
    main()
