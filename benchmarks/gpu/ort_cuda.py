"""The artifact's graphs in ONNX Runtime's CUDA provider, beside a plain export there and the untouched module.

Two times are taken. `device`: inputs and outputs lie on the card; the plain export and PyTorch get the one-hot map
ready-made, the lookup graph its tables. `end_to_end`: label map on the host to pixels on the host, finding of patterns
and copies inside, as `spade infer` runs. Each size of SIDES is measured: the model's, then twice as large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.graphs import judged
from gpu.numerics import copy_of, segmap_of
from gpu.plain import write_plain
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import Measured, Work, host_timer, measure_interleaved, median_ratio, spread
from spade_deploy.artifact import IMAGE, PIXELS, Arrays
from spade_deploy.bench.inputs import SEGMAP
from spade_deploy.engines.ort.providers import ConvSearch, GpuOptions
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CUDA, load_onnxruntime, open_session, provider_loads
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.spade import to_pixels
from spade_deploy.spec import GraphKind, Precision

PRECISIONS = (Precision.FP32, Precision.FP16)
"""int8 graphs are made for TensorRT; what this provider makes of them is not measured. float32 is timed in one case."""
SIDES = (1, 2)
"""Times the model's own size."""
EAGER = "PyTorch fp16 eager, channels last"
TUNED = {
    GraphKind.DENSE: (
        (", tuned, CUDA graph", GpuOptions(cuda_graph=True, conv_search=ConvSearch.EXHAUSTIVE)),
        (", channels first", GpuOptions(channels_last=False)),
    ),
    GraphKind.LOOKUP: ((", channels first", GpuOptions(channels_last=False)),),
}
"""Variants of the fp16 graphs on a GPU: cuDNN's algorithms all tried and replayed as a CUDA graph; channels first."""
FEW_ROUNDS = 15
"""Of a batch with more pixels than MANY_PIXELS."""
MANY_PIXELS = 8 * 256 * 256
MOST_OFF = 2
"""Of 255: two runs of the same kernels may add up in another order, and half precision is truncated to pixels."""
Size = tuple[int, int]
TYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class OnCard:
    """A session whose inputs and outputs stay on the device. outputs: [(name, NumPy type, shape)].

    With CUDA graphs each of these has a graph of its own: a session that replayed another's would use its memory.
    """

    _numbers = itertools.count(1000)  # the product's runtime takes numbers from 1 on

    def __init__(
        self, session: Any, inputs: dict[str, torch.Tensor], outputs: list[tuple[str, str, tuple[int, ...]]]
    ) -> None:
        self._session, self._inputs = session, inputs  # the tensors' memory is in use
        self._options = load_onnxruntime().RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        self.outputs = {
            name: torch.empty(shape, dtype=TYPES[dtype], device=next(iter(inputs.values())).device)
            for name, dtype, shape in outputs
        }
        self._binding = session.io_binding()
        for bind, tensors in ((self._binding.bind_input, inputs), (self._binding.bind_output, self.outputs)):
            for name, tensor in tensors.items():
                dtype = np.dtype(str(tensor.dtype).removeprefix("torch.")).type
                bind(name, tensor.device.type, 0, dtype, tuple(tensor.shape), tensor.data_ptr())

    def run(self) -> None:
        """Run to the end: ONNX Runtime waits for the card."""
        self._session.run_with_iobinding(self._binding, self._options)


def plain_name(precision: Precision) -> str:
    return f"plain export {precision}"


def plain_path(setting: Setting, precision: Precision, size: Size) -> Path:
    """The plain export of that size, made where it is not there yet."""
    path = setting.work / f"plain.{precision}.{size[0]}x{size[1]}.onnx"
    if not path.exists():
        write_plain(setting.generator, path, half=precision is Precision.FP16, size=size)
    return path


def plain_cases(setting: Setting) -> list[tuple[Precision, Size]]:
    """The plain exports that are measured: float32 at the model's size alone."""
    own, *_ = sizes = sizes_of(setting)
    precisions = [one for one in PRECISIONS if one in setting.precisions]
    return [(one, size) for size in sizes for one in precisions if size == own or one is precisions[-1]]


def sizes_of(setting: Setting) -> tuple[Size, ...]:
    """(Height, width) in pixels. A model of one size has only its own."""
    spec = setting.spec
    return tuple((spec.height * times, spec.width * times) for times in (SIDES if spec.is_dynamic else SIDES[:1]))


def run_ort_cuda(setting: Setting, book: Book) -> None:
    """Every graph that the provider loads, validated on the golden maps, then timed beside the baselines."""
    if not provider_loads(CUDA):
        raise RuntimeUnavailableError(
            f"{CUDA} does not load here", hint="pip uninstall onnxruntime, then pip install 'spade-deploy[gpu]'"
        )
    graphs = _Graphs(setting, book)
    for size in sizes_of(setting):
        for batch in setting.batches:
            _Case(setting, graphs, size, batch).measure(book)
    graphs.close()


class _Graphs:
    """The artifact's graphs that passed, opened once; and what is wrong with the others."""

    def __init__(self, setting: Setting, book: Book) -> None:
        self.runtimes: dict[str, OrtRuntime] = {}
        self.failures: dict[str, tuple[str, ...]] = {}
        self.errors: dict[str, dict[str, float | None]] = {}
        for precision in PRECISIONS:
            for kind in setting.kinds if precision in setting.precisions else ():
                variants = TUNED[kind] if setting.is_cuda and precision is Precision.FP16 else ()
                for suffix, gpu in (("", None), *variants):
                    name = f"{precision} {kind}{suffix}"
                    try:
                        artifact = setting.artifact(precision)
                        self._open(setting, book, name, OrtRuntime(artifact, precision, CUDA, None, kind, gpu))
                    except Exception as error:  # one graph that does not run: the others go on
                        if suffix:
                            book.note(f"{name}: not measured", error_text(error))
                        else:
                            self.failures[name] = (error_text(error),)

    def _open(self, setting: Setting, book: Book, name: str, runtime: OrtRuntime) -> None:
        precision, kind = runtime.precision, runtime.kind
        self.errors[name], self.failures[name] = judged(setting.artifact(precision), precision, kind, runtime)
        if not self.failures[name]:
            self.runtimes[name] = runtime
            book.note(f"runtime of {name}", runtime.name)

    def close(self) -> None:
        for runtime in self.runtimes.values():
            runtime.close()


class _Case:
    """One size and batch size: the candidates that are ready to run, and what is known of each."""

    def __init__(self, setting: Setting, graphs: _Graphs, size: Size, batch: int) -> None:
        self._setting, self._graphs, self._size, self._batch = setting, graphs, size, batch
        self._inputs = setting.batch(batch, size)
        self._device: dict[str, Work] = {}
        self._end_to_end: dict[str, Work] = {}
        self._figures: dict[str, dict[str, float | None]] = {}
        self._failures: dict[str, tuple[str, ...]] = {}
        self._notes: dict[str, str] = {}

    def measure(self, book: Book) -> None:
        """Make every candidate ready, time them side by side, and write their rows."""
        is_first = (self._size, self._batch) == (sizes_of(self._setting)[0], self._setting.batches[0])
        for name in self._graphs.failures:
            if self._is_timed(is_first, name):
                self._figures[name], self._failures[name] = dict(self._graphs.errors.get(name, {})), ()
                self._failures[name] = self._graphs.failures[name]
                if name in self._graphs.runtimes:
                    self._try(name, partial(self._add_ours, self._graphs.runtimes[name]))
        for name, add in self._baselines(is_first).items():
            self._figures[name], self._failures[name] = {}, ()
            self._try(name, add)
        synchronize = torch.cuda.synchronize if self._setting.is_cuda else lambda: None
        rounds, warm_up = self._setting.rounds, 3 if self._setting.quick else 10
        if self._batch * self._size[0] * self._size[1] > MANY_PIXELS:
            rounds, warm_up = min(rounds, FEW_ROUNDS), 3
        with torch.inference_mode():
            device = measure_interleaved(self._device, host_timer(synchronize), rounds, warm_up)
            whole = measure_interleaved(self._end_to_end, host_timer(synchronize), min(FEW_ROUNDS, rounds), warm_up=2)
        for name in self._figures:
            self._write(book, name, device, whole)

    def _is_timed(self, is_first: bool, name: str) -> bool:
        """float32 is timed once, where half precision is timed too."""
        return is_first or not name.startswith(Precision.FP32) or Precision.FP16 not in self._setting.precisions

    def _try(self, name: str, add: Callable[[str], None]) -> None:
        try:
            add(name)
        except Exception as error:  # memory that is short, a shape that is refused: the others go on
            self._device.pop(name, None)
            self._end_to_end.pop(name, None)
            if name in self._graphs.failures:
                self._failures[name] = (error_text(error),)
            else:  # that a baseline does not run here is no fault of ours
                self._notes[name] = f"not measured: {error_text(error)}"

    def _add_ours(self, runtime: OrtRuntime, name: str) -> None:
        self._end_to_end[name] = partial(runtime.run, self._inputs, [PIXELS])
        fed = graph_inputs(self._setting.spec, runtime.kind, self._inputs)
        shape = (self._batch, *self._size, 3)
        on_card = OnCard(runtime.session, self._on_card(fed), [(PIXELS, "uint8", shape)])
        on_card.run()
        pixels = on_card.outputs[PIXELS].cpu().numpy().astype(int)
        off = int(np.abs(pixels - runtime.run(self._inputs, [PIXELS])[PIXELS]).max())
        if off > MOST_OFF:
            raise ValueError(f"with its tensors on the card a pixel is {off} of 255 off")
        self._device[name] = on_card.run

    def _baselines(self, is_first: bool) -> dict[str, Callable[[str], None]]:
        setting = self._setting
        found: dict[str, Callable[[str], None]] = {}
        if setting.is_cuda:  # half precision on a CPU is no baseline
            found[EAGER] = self._add_eager
        for precision, size in plain_cases(setting):
            if size == self._size and self._is_timed(is_first, precision):
                found[plain_name(precision)] = partial(self._add_plain, precision)
        return found

    def _add_eager(self, name: str) -> None:
        module: Any = copy_of(self._setting, torch.float16)
        module.to(memory_format=torch.channels_last)

        def segmap() -> torch.Tensor:
            made = segmap_of(self._setting, self._inputs, torch.float16)
            return made.contiguous(memory_format=torch.channels_last)

        self._device[name] = partial(module, segmap())
        self._end_to_end[name] = lambda: to_pixels(module(segmap())).cpu()

    def _add_plain(self, precision: Precision, name: str) -> None:
        """At the provider's own defaults: a float32 graph may use TensorFloat-32 there."""
        dtype = torch.float16 if precision is Precision.FP16 else torch.float32
        session = open_session(plain_path(self._setting, precision, self._size), providers={CUDA: {}})
        segmap = segmap_of(self._setting, self._inputs, dtype).contiguous()
        shape = (self._batch, 3, *self._size)
        on_card = OnCard(session, {SEGMAP: segmap}, [(IMAGE, str(dtype).removeprefix("torch."), shape)])

        def whole() -> torch.Tensor:
            segmap.copy_(segmap_of(self._setting, self._inputs, dtype))
            on_card.run()
            return to_pixels(on_card.outputs[IMAGE]).cpu()

        self._device[name], self._end_to_end[name] = on_card.run, whole

    def _on_card(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array.copy()).to(self._setting.device) for name, array in arrays.items()}

    def _write(self, book: Book, name: str, device: Measured, whole: Measured) -> None:
        times = {"device": device.times_ms.get(name, []), "end_to_end": whole.times_ms.get(name, [])}
        found = self._figures[name] | spread(times["device"], "device") | spread(times["end_to_end"], "end_to_end")
        for against, prefix in ((EAGER, "eager"), (plain_name(Precision.FP16), "plain_fp16")):
            found[f"faster_than_{prefix}"] = median_ratio(device.times_ms.get(against, []), times["device"])
            found[f"faster_than_{prefix}_end_to_end"] = median_ratio(
                whole.times_ms.get(against, []), times["end_to_end"]
            )
        late = tuple(measured.failures[name] for measured in (device, whole) if name in measured.failures)
        note, failures = self._notes.get(name, ""), self._failures[name] or late
        if failures and name not in self._graphs.failures:
            note, failures = f"not measured: {failures[0]}", ()
        spec, (height, width) = self._setting.spec, self._size
        row = name if (height, width) == (spec.height, spec.width) else f"{name}, {height} x {width}"
        book.add(Row(row, self._batch, found, times, failures, note))
