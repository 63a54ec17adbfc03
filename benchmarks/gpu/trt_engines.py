"""TensorRT: engines of every graph and precision, built, proved, validated, timed, against what else there is.

Two times are taken. `device`: between CUDA events, inputs on the card; baselines get the one-hot map ready-made.
`end_to_end`: label map on the host to pixels on the host, finding of patterns and copies inside, as `spade infer` runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu.graphs import judged
from gpu.numerics import copy_of, segmap_of
from gpu.plain import write_plain
from gpu.records import Book, Row, error_text
from gpu.reference import Reference
from gpu.setting import Setting
from gpu.timing import Measured, Work, captured, cuda_timer, host_timer, measure_interleaved, median_ratio, spread
from gpu.trt_device import DeviceEngine
from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays
from spade_deploy.bench.inputs import SEGMAP
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.cuda.driver import require_gpu
from spade_deploy.engines.cuda.open import open_device
from spade_deploy.engines.tensorrt.build import build
from spade_deploy.engines.tensorrt.builder import RTX_CAPABILITIES, build_engine
from spade_deploy.engines.tensorrt.engine import EngineModel
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.engines.tensorrt.library import Library, load_library
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.engines.tensorrt.runtime import TrtRuntime
from spade_deploy.engines.tensorrt.store import capability_text
from spade_deploy.errors import RuntimeUnavailableError, ValidationFailedError
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.spade import to_pixels
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile

EAGER = "PyTorch fp16 eager, channels last"
EAGER_GRAPH = f"{EAGER}, CUDA graph"
"""The same kernels launched at once: at batch 1 the launches take PyTorch longer than the card's work."""
COMPILED = {"torch.compile fp16": None, "torch.compile fp16, CUDA graphs": "reduce-overhead"}
STREAM_LENGTH = 20
"""Batches of the throughput figure."""


def plain_name(precision: Precision) -> str:
    return f"plain export {precision}"


def run_trt_engines(setting: Setting, book: Book) -> None:
    """All batch sizes, one after another; engines that were built before are taken from the artifact."""
    library = load_library()
    require_card(library)
    book.note("library", library.title)
    reference = Reference.of(setting)
    for batch in setting.batches:
        _BatchSize(setting, book, library, reference, batch).measure()


def require_card(library: Library) -> None:
    """Raise RuntimeUnavailableError for a card that TensorRT for RTX does not build for, before minutes of exports."""
    if library.flavour is not Flavour.RTX:
        return
    gpu = require_gpu()
    capability = capability_text(gpu.compute_capability)
    if capability not in RTX_CAPABILITIES:
        raise RuntimeUnavailableError(
            f"{library.title} does not build for {gpu.name} ({capability}): it knows {', '.join(RTX_CAPABILITIES)}",
            hint="pip install 'spade-deploy[trt]' brings TensorRT, which does",
        )


class _BatchSize:
    """One batch size: the candidates that are ready to run, and what is known of all."""

    def __init__(self, setting: Setting, book: Book, library: Library, reference: Reference, batch: int) -> None:
        self._setting, self._book, self._library, self._reference = setting, book, library, reference
        self._size = batch
        self._inputs = setting.batch(batch)
        self._options = BuildOptions(setting.optimization_level)
        self._device: dict[str, Work] = {}
        self._end_to_end: dict[str, Work] = {}
        self._figures: dict[str, dict[str, float | None]] = {}
        self._failures: dict[str, tuple[str, ...]] = {}
        self._notes: dict[str, str] = {}
        self._runtimes: list[TrtRuntime] = []

    def measure(self) -> None:
        """Make every candidate ready, time them side by side, write their rows, give everything back.

        All of it on a stream of its own: TensorRT waits more often on the default one.
        """
        cuda: Any = torch.cuda
        with cuda.stream(cuda.Stream()):
            self._prepare()
            self._time()
        for runtime in self._runtimes:
            runtime.close()

    def _prepare(self) -> None:
        for name, add in self._candidates().items():
            print(f"  {name}, batch {self._size}", flush=True)
            self._figures[name], self._failures[name] = {}, ()
            try:
                add(name)
            except Exception as error:  # an engine that is not built, memory that is short: the others go on
                self._failures[name] = (error_text(error),)
                self._device.pop(name, None)
                self._end_to_end.pop(name, None)

    def _time(self) -> None:
        warm_up = 3 if self._setting.quick else 20
        with torch.inference_mode():
            device = measure_interleaved(self._device, cuda_timer(torch), self._setting.rounds, warm_up)
            wall = host_timer(torch.cuda.synchronize)
            whole = measure_interleaved(self._end_to_end, wall, self._setting.rounds, warm_up)
        for name in self._figures:
            self._write(name, device, whole)

    def _candidates(self) -> dict[str, Callable[[str], None]]:
        setting = self._setting
        found: dict[str, Callable[[str], None]] = {}
        for precision in setting.precisions:
            for kind in setting.kinds:
                found[f"{precision} {kind}"] = partial(self._add_ours, precision, kind)
        for precision in (Precision.FP32, Precision.FP16):
            if precision in setting.precisions:
                found[plain_name(precision)] = partial(self._add_plain, precision)
        found |= {EAGER: self._add_eager, EAGER_GRAPH: self._add_eager_graph}
        return found | {name: partial(self._add_compiled, mode) for name, mode in COMPILED.items()}

    def _write(self, name: str, device: Measured, whole: Measured) -> None:
        times = {"device": device.times_ms.get(name, []), "end_to_end": whole.times_ms.get(name, [])}
        found = self._figures[name] | spread(times["device"], "device") | spread(times["end_to_end"], "end_to_end")
        plain = plain_name(Precision.FP16)
        for against, prefix in ((EAGER, "eager"), (EAGER_GRAPH, "eager_graph"), (plain, "plain_fp16")):
            found[f"faster_than_{prefix}"] = median_ratio(device.times_ms.get(against, []), times["device"])
        found["faster_than_eager_end_to_end"] = median_ratio(whole.times_ms.get(EAGER, []), times["end_to_end"])
        late = tuple(measured.failures[name] for measured in (device, whole) if name in measured.failures)
        failures, note = self._failures[name] or late, self._notes.get(name, "")
        if failures and not self._is_ours(name):  # that a baseline does not run here is no fault of ours
            note, failures = f"not measured: {failures[0]}", ()
        self._book.add(Row(name, self._size, found, times, failures, note))

    def _is_ours(self, name: str) -> bool:
        return name in (f"{precision} {kind}" for precision in self._setting.precisions for kind in self._setting.kinds)

    def _add_ours(self, precision: Precision, kind: GraphKind, name: str) -> None:
        spec, library = self._setting.spec, self._library
        artifact = self._setting.artifact(precision)
        profile = ShapeProfile.parse(f"{self._size}x{spec.height}x{spec.width}")
        choice = GraphChoice(kind.value)
        (built,) = build(artifact, BuildRequest(precision, choice, profile, library.flavour, options=self._options))
        self._book.note(f"proof of {name}, batch {self._size}", built.described)
        content = built.path.read_bytes()
        device = open_device()
        model = EngineModel(spec, precision, kind, profile)
        runtime = TrtRuntime(library, content, model, device=device, owns_device=True)
        self._runtimes.append(runtime)
        errors, wrong = judged(artifact, precision, kind, runtime, self._size)
        self._figures[name] = {**errors, "build_s": built.seconds, "engine_bytes": float(built.bytes)}
        if wrong:
            raise ValidationFailedError("; ".join(wrong))
        self._figures[name]["images_per_s"] = throughput(runtime, self._inputs)
        self._end_to_end[name] = partial(runtime.run, self._inputs, [PIXELS])
        fed = graph_inputs(spec, kind, self._inputs)
        on_card = {key: torch.from_numpy(array.copy()).to(self._setting.device) for key, array in fed.items()}
        self._device[name], self._notes[name] = launched(DeviceEngine(library, content, on_card))

    def _add_plain(self, precision: Precision, name: str) -> None:
        """The same builder and options, of the untouched module: as `trtexec`, but without TensorFloat-32 in fp32."""
        setting, library = self._setting, self._library
        dtype = torch.float16 if precision is Precision.FP16 else torch.float32
        path = setting.work / f"plain.{precision}.onnx"
        if not path.exists():
            write_plain(setting.generator, path, half=precision is Precision.FP16)
        segmap = segmap_of(setting, self._inputs, dtype).contiguous()
        shape = tuple(segmap.shape)
        start = time.perf_counter()
        built = build_engine(library, path, {SEGMAP: (shape, shape, shape)}, self._options)
        seconds = time.perf_counter() - start
        engine = DeviceEngine(library, built.engine, {SEGMAP: segmap})

        def run(one: Arrays) -> Arrays:
            # As many copies of the map as the engine's batch has.
            segmap.copy_(segmap_of(setting, one, dtype).expand(shape))
            engine.run()
            image = engine.outputs[IMAGE][:1].float()
            return {IMAGE: image.cpu().numpy(), PIXELS: to_pixels(image).cpu().numpy()}

        errors, _ = self._reference.judge(run, precision)  # a baseline's error is told, not judged
        segmap.copy_(segmap_of(setting, self._inputs, dtype))
        self._figures[name] = {**errors, "build_s": seconds, "engine_bytes": float(len(built.engine))}
        self._device[name], self._notes[name] = launched(engine)

    def _add_eager(self, name: str) -> None:
        module, segmap = self._half()

        def whole() -> Any:
            made = segmap_of(self._setting, self._inputs, torch.float16)
            return to_pixels(module(made.contiguous(memory_format=torch.channels_last))).cpu()

        self._device[name] = partial(module, segmap)
        self._end_to_end[name] = whole

    def _add_eager_graph(self, name: str) -> None:
        module, segmap = self._half()
        with torch.inference_mode():
            self._device[name], _ = captured(torch, partial(module, segmap))

    def _add_compiled(self, mode: str | None, name: str) -> None:
        module, segmap = self._half()
        compiled: Any = torch.compile(module, dynamic=False, mode=mode)
        with torch.inference_mode():
            compiled(segmap)  # here, so that a compiler that is missing is a reason of its own
        self._device[name] = partial(compiled, segmap)

    def _half(self) -> tuple[Any, torch.Tensor]:
        """The untouched module and its input, in half precision, channels last."""
        module: Any = copy_of(self._setting, torch.float16)
        module.to(memory_format=torch.channels_last)
        segmap = segmap_of(self._setting, self._inputs, torch.float16)
        return module, segmap.contiguous(memory_format=torch.channels_last)


def launched(engine: DeviceEngine) -> tuple[Callable[[], object], str]:
    """One launch of the engine: as a CUDA graph where it can be captured, as the product's runtime runs it."""
    try:
        replay, _ = captured(torch, engine.run)
        return replay, "as a CUDA graph"
    except Exception as error:  # what cannot be captured is launched kernel by kernel
        return engine.run, f"without a CUDA graph: {error_text(error)}"


def throughput(runtime: TrtRuntime, inputs: Arrays) -> float:
    """Images a second over a stream of batches, copies overlapping; the median of three streams."""
    batch = len(inputs[LABEL])

    def stream() -> None:
        for _ in runtime.run_many([inputs] * STREAM_LENGTH, [PIXELS]):
            pass

    stream()
    timer = host_timer()
    return batch * STREAM_LENGTH * 1000 / statistics.median(timer(stream) for _ in range(3))
