"""The lookup with its finder as one ONNX graph in ONNX Runtime's CUDA provider, beside the artifact's own graphs.

From a label map on the host to pixels on the host. The graph with the finder has fixed shapes, so that it is recorded
as a CUDA graph, as the dense graph is; the plain lookup graph gets its tables from the CPU and cannot be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpu.lookup_on_card import HEADROOM, capacities
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import Work, host_timer, measure_interleaved, median_ratio, spread
from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays
from spade_deploy.engines.ort.binding import DeviceBinding
from spade_deploy.engines.ort.providers import GpuOptions
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU, CUDA, load_onnxruntime, open_session, provider_loads
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.export.build import build_model
from spade_deploy.export.found_lookup import EXCESS, write_found_lookup
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pattern_finder import PatternFinder
from spade_deploy.spec import GraphKind, Precision

DENSE, LOOKUP, FOUND = "dense", "lookup, patterns found on the CPU", "lookup, patterns found in the graph"
LEAST_PSNR_DB = 35.0
"""Of every half-precision image against the golden one."""


def run_lookup_in_ort(setting: Setting, book: Book, provider: str = CUDA) -> None:
    """At every batch: dense, lookup, and lookup with its finder. provider: the CPU's shows that the step works."""
    if not provider_loads(provider):
        raise RuntimeUnavailableError(
            f"{provider} does not load here", hint="pip uninstall onnxruntime, then pip install 'spade-deploy[gpu]'"
        )
    book.note("headroom of the tables", HEADROOM)
    for batch in setting.batches:
        inputs = setting.batch(batch)
        expected: Any = None
        works: dict[str, Work] = {}
        figures: dict[str, dict[str, float | None]] = {}
        failures: dict[str, str] = {}
        for name, make in _makers(setting, provider, batch).items():
            figures[name], failures[name] = {}, ""
            try:
                run = make()
                made = run(inputs, [PIXELS, IMAGE])
                expected = made[IMAGE] if expected is None else expected  # dense in float32 is the first
                figures[name], failures[name] = judged(made, expected)
                works[name] = partial(run, inputs, [PIXELS])
            except Exception as error:  # a graph that does not run: the others go on
                failures[name] = error_text(error)
        timed = {name: work for name, work in works.items() if not failures[name]}
        measured = measure_interleaved(timed, host_timer(), setting.rounds, warm_up=5)
        base = measured.times_ms.get(f"fp16 {DENSE}", [])
        for name, found in figures.items():
            own = measured.times_ms.get(name, [])
            found |= spread(own, "end_to_end")
            found["end_to_end_faster_than_dense"] = median_ratio(base, own)
            failed = failures[name] or measured.failures.get(name) or ""
            book.add(Row(name, batch, found, {"end_to_end": own}, tuple(filter(None, [failed]))))


def judged(made: Arrays, expected: Any) -> tuple[dict[str, float | None], str]:
    """(The errors of the image against the dense float32 graph's, what is wrong or '')."""
    if EXCESS in made and made[EXCESS].any():
        return {}, f"windows without a place, by level: {made[EXCESS].tolist()}"
    error = np.abs(made[IMAGE].astype(np.float64) - expected)
    square = float(np.mean(error * error))
    psnr = 10 * float(np.log10(4 / square)) if square else None
    found: dict[str, float | None] = {"mean_abs": float(error.mean()), "max_abs": float(error.max()), "psnr_db": psnr}
    if not np.isfinite(square):
        return {}, "the image holds NaN or infinity"
    return found, f"PSNR {psnr:.1f} dB is under {LEAST_PSNR_DB:g} dB" if psnr and psnr < LEAST_PSNR_DB else ""


Run = Callable[[Arrays, list[str]], Arrays]


def _makers(setting: Setting, provider: str, batch: int) -> dict[str, Callable[[], Run]]:
    found: dict[str, Callable[[], Run]] = {}
    for precision in (Precision.FP32, Precision.FP16):
        found[f"{precision} {DENSE}"] = partial(_artifact, setting, provider, precision, GraphKind.DENSE)
    found[f"{Precision.FP16} {LOOKUP}"] = partial(_artifact, setting, provider, Precision.FP16, GraphKind.LOOKUP)
    found[f"{Precision.FP16} {FOUND}"] = partial(_found, setting, provider, batch)
    return found


def _artifact(setting: Setting, provider: str, precision: Precision, kind: GraphKind) -> Run:
    gpu = GpuOptions(cuda_graph=kind is GraphKind.DENSE) if provider != CPU else None
    return OrtRuntime(setting.artifact(precision), precision, provider, kind=kind, gpu=gpu).run


def _found(setting: Setting, provider: str, batch: int) -> Run:
    artifact = setting.artifact(Precision.FP16)
    spec = setting.spec
    path = setting.work / f"found-{batch}.onnx"
    if not path.exists():
        kept = artifact.graph(Precision.FP16, GraphKind.LOOKUP).kept_fp32
        lookup = build_model(setting.generator, GraphKind.LOOKUP, fp16=True, keep_fp32=kept)
        assert isinstance(lookup, LookupModel)
        rooms = capacities(spec, setting.maps, batch)
        finder = PatternFinder(spec, batch, spec.height, spec.width, rooms, by_products=True)
        write_found_lookup(finder, lookup, path)
    options = {"enable_cuda_graph": "1"} if provider == CUDA else {}
    session = open_session(path, providers={provider: options} if provider == CPU else {provider: options, CPU: {}})
    kind = "cpu" if provider == CPU else "cuda"
    binding = DeviceBinding(load_onnxruntime(), session, device=kind, cuda_graph=provider == CUDA)
    # Always all outputs: a recorded graph writes where it wrote first.
    shapes = {value.name: (tuple(value.shape), _NUMPY[value.type]) for value in session.get_outputs()}

    def run(inputs: Arrays, names: list[str]) -> Arrays:
        made = binding.run({name: inputs[name] for name in (LABEL, INSTANCE) if name in inputs}, shapes)
        if made[EXCESS].any():
            raise RuntimeUnavailableError(f"windows without a place, by level: {made[EXCESS].tolist()}")
        return made

    return run


_NUMPY = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int32)": "int32"}
