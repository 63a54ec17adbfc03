"""Does lookup beat dense on the card, once the patterns are found there?

At each size and batch: the dense module and the lookup module as CUDA graphs, the lookup with its tables ready-made (as
`extract_patterns` makes them on the CPU), with the tables found on the card in the same graph, and the finding alone.
Every image is held to that of the untouched module in exact float32 before anything is timed. Times are the card's
between two events ('device'), and from a label map on the host to pixels on the host ('end_to_end'), where the finding
on the CPU is in the time. The modules are built directly; nothing is exported. Where Triton is, finding and lookup with
its kernels (`fused_lookup.py`) are measured, too.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from models import coco_maps, resized
from torch import Tensor, nn

from gpu.numerics import copy_of, exact_float32, segmap_of
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import Work, device_timer, host_timer, measure_interleaved, median_ratio, spread
from gpu.timing import captured as as_graph
from spade_deploy.artifact import INSTANCE, LABEL, Arrays, joined
from spade_deploy.export.build import ExportedModel, build_model, unit_names
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pattern_finder import Capacity, PatternFinder, needed_capacities
from spade_deploy.export.precision import unit_ranges, units_to_keep
from spade_deploy.export.spade import DeployModel
from spade_deploy.lookup.tables import graph_inputs, modulated_channels
from spade_deploy.networks.spade import to_pixels
from spade_deploy.spec import GraphKind, Precision

SIDES = (256, 512, 1024)
TIME_S = 45.0
"""Cases that would begin later than this are left out, and the book says so."""
HEADROOM = 1.1
"""Capacity over what the fullest of the maps at hand needs."""
LEAST_PSNR_DB = {Precision.FP32: 70.0, Precision.FP16: 35.0}
"""Of the dense module. Others may have twice its mean error."""
DENSE = "dense"
CONTIGUOUS = "dense, contiguous"
GIVEN = "lookup, patterns given"
FOUND = "lookup, patterns found on the card"
FINDING = "finding the patterns on the card"
FUSED = "lookup, found on the card, Triton"
GATHERED = "lookup, found on the card, Triton, gathered products"
HYBRID = "dense where coarse, lookup where fine, Triton"
HYBRID_GATHERED = "dense where coarse, lookup where fine, Triton, gathered products"
PAYING_SHARE = 0.62
"""Rows over pixels, under which the hybrid looks a level up."""
FUSED_FINDING = "finding the patterns on the card, Triton"
FINDINGS = (FINDING, FUSED_FINDING)
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    side: int
    batch: int
    precision: Precision
    is_fused: bool = False
    """Triton's kernels, which come last: a kernel that reads where it may not ends the process."""


@dataclass
class Bench:
    """What the cases share: the models by kind and precision, and the maps by side."""

    setting: Setting
    models: dict[tuple[GraphKind, Precision], ExportedModel] = field(default_factory=dict)
    maps: dict[int, list[Arrays]] = field(default_factory=dict)
    untouched: nn.Module | None = None

    @property
    def device(self) -> str:
        return self.setting.device

    @property
    def sides(self) -> tuple[int, ...]:
        return (self.setting.spec.height,) if self.setting.quick else SIDES

    def model(self, kind: GraphKind, precision: Precision) -> ExportedModel:
        """Built once in float32; its half is rounded from that, with the units in float32 that the export keeps."""
        if (kind, Precision.FP32) not in self.models:
            self.models[kind, Precision.FP32] = build_model(self.setting.generator, kind).to(self.device)
        if (kind, precision) not in self.models:
            wide = self.models[kind, Precision.FP32]
            fed = self.fed(kind, self.batch(self.setting.spec.height, 1))
            kept = units_to_keep(unit_ranges(wide, fed))
            half = copy.deepcopy(wide)
            for name in unit_names(self.setting.spec):
                if name not in kept:
                    half.get_submodule(name).half()
            self.models[kind, precision] = half
        return self.models[kind, precision]

    def maps_at(self, side: int) -> list[Arrays]:
        if side not in self.maps:
            setting = self.setting
            source = coco_maps(setting.spec).values() if setting.has_samples else setting.maps
            self.maps[side] = [resized(one, side, side) for one in source]
        return self.maps[side]

    def batch(self, side: int, size: int) -> Arrays:
        maps = self.maps_at(side)
        return joined([maps[index % len(maps)] for index in range(size)])

    def fed(self, kind: GraphKind, inputs: Arrays) -> list[Tensor]:
        """The inputs of the model of that kind, on the device."""
        arrays = graph_inputs(self.setting.spec, kind, inputs).values()
        return [torch.from_numpy(array.copy()).to(self.device) for array in arrays]

    def reference(self, inputs: Arrays) -> Tensor:
        """The untouched module's image in float32, without TensorFloat-32."""
        if self.untouched is None:
            self.untouched = copy_of(self.setting, torch.float32)
        tuned = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)  # it runs once
        with exact_float32(), tuned, torch.inference_mode():
            image: Tensor = self.untouched(segmap_of(self.setting, inputs, torch.float32))
        return image


def run_lookup(setting: Setting, book: Book) -> None:
    """All cases that there is time for; see the module."""
    start, bench = time.perf_counter(), Bench(setting)
    # Making the generator takes longer than all else where no one has made it before: it does not count.
    setting.generator  # noqa: B018
    book.note("seconds for the generator", round(time.perf_counter() - start, 1))
    book.note("Triton", has_triton(setting.device))
    start = time.perf_counter()
    left_out = []
    for case in cases(bench):
        if time.perf_counter() - start > TIME_S:
            left_out.append(f"{case.precision} {case.side} batch {case.batch}{' Triton' if case.is_fused else ''}")
            continue
        try:
            run_case(bench, case, book)
        except Exception as error:  # out of memory: smaller cases go on
            book.add(Row(f"{case.precision} {case.side}", case.batch, failures=(error_text(error),)))
        if setting.is_cuda:
            torch.cuda.empty_cache()
    book.note("left out for lack of time", left_out)


def cases(bench: Bench) -> list[Case]:
    """What is measured, the most telling first."""
    sides, batches = bench.sides, bench.setting.batches
    found = [
        Case(side, batch, Precision.FP16)
        for side in sides
        for batch in batches
        if side * side * batch <= 1024 * 1024 * 2
    ]
    fused = [replace(case, is_fused=True) for case in found] if has_triton(bench.device) else []
    return [
        *found[:4],
        *fused[:4],
        *found[4:],
        *fused[4:],
        *(Case(side, batches[0], Precision.FP32) for side in sides[:2]),
    ]


def run_case(bench: Bench, case: Case, book: Book) -> None:
    inputs = bench.batch(case.side, case.batch)
    expected = bench.reference(inputs)
    figures: dict[str, dict[str, float | None]] = {}
    failures: dict[str, str] = {}
    on_device: dict[str, Work] = {}
    from_host: dict[str, Work] = {}
    exact = exact_float32() if case.precision is Precision.FP32 else nullcontext()
    with torch.inference_mode(), exact:
        for name, make in candidates(bench, case, inputs).items():
            try:
                outputs, on_device[name], from_host[name] = make()
                figures[name], failures[name] = judged(outputs, expected, case.precision, figures)
            except Exception as error:  # out of memory, a kernel that does not compile: the others go on
                figures[name], failures[name] = {}, error_text(error)
        device = {name: work for name, work in on_device.items() if not failures[name]}
        ends = {
            name: work
            for name, work in from_host.items()
            if not failures[name] and name not in (FINDING, FUSED_FINDING)
        }
        rounds, warm_up = bench.setting.rounds, 3
        timed = measure_interleaved(device, device_timer(torch, bench.device), rounds, warm_up)
        waits = torch.cuda.synchronize if bench.device.startswith("cuda") else lambda: None
        whole = measure_interleaved(ends, host_timer(waits), min(rounds, 12), warm_up=2)
    for name, found in figures.items():
        own, end = timed.times_ms.get(name, []), whole.times_ms.get(name, [])
        found |= spread(own, "device") | spread(end, "end_to_end")
        found["faster_than_dense"] = median_ratio(timed.times_ms.get(DENSE, []), own)
        found["end_to_end_faster_than_dense"] = median_ratio(whole.times_ms.get(DENSE, []), end)
        times = {"device": own, "end_to_end": end}
        failed = failures[name] or timed.failures.get(name) or whole.failures.get(name) or ""
        again = ", beside Triton" if case.is_fused and name == DENSE else ""
        book.add(
            Row(f"{case.precision} {case.side} {name}{again}", case.batch, found, times, tuple(filter(None, [failed])))
        )


Make = Callable[[], tuple[Outputs, Work, Work]]
"""Prepares a candidate: its outputs, its work on the device, and its work from the host."""


def candidates(bench: Bench, case: Case, inputs: Arrays) -> dict[str, Make]:
    def dense(memory_format: torch.memory_format = torch.channels_last) -> DeployModel:
        module = in_format(bench.model(GraphKind.DENSE, case.precision), memory_format)
        assert isinstance(module, DeployModel)
        return module

    def lookup() -> LookupModel:
        module = in_format(bench.model(GraphKind.LOOKUP, case.precision), torch.channels_last)
        assert isinstance(module, LookupModel)
        return module

    def found(finder: nn.Module, module: nn.Module) -> tuple[Outputs, Work, Work]:
        return on_maps(bench, Found(finder, module), inputs)

    finder = finder_of(bench, case)
    made: dict[str, Make] = {DENSE: lambda: on_maps(bench, dense(), inputs)}
    if case.is_fused:
        from gpu.fused_lookup import FusedFinder, FusedLookup, Hybrid

        def hybrid(gathers: bool) -> tuple[Outputs, Work, Work]:
            hybrid = Hybrid(FusedFinder(finder), lookup(), dense(), paying(finder), gathers=gathers)
            return on_maps(bench, hybrid, inputs)

        made[FUSED] = lambda: found(FusedFinder(finder), FusedLookup(lookup()))
        made[GATHERED] = lambda: found(FusedFinder(finder), FusedLookup(lookup(), gathers=True))
        made[HYBRID] = lambda: hybrid(False)
        made[HYBRID_GATHERED] = lambda: hybrid(True)
        made[FUSED_FINDING] = lambda: on_maps(bench, FusedFinder(finder), inputs)
        return made
    if case.side == bench.sides[0]:  # each shape's convolutions are tuned anew, which takes seconds
        made[CONTIGUOUS] = lambda: on_maps(bench, dense(torch.contiguous_format), inputs)
    made[GIVEN] = lambda: on_tables(bench, lookup(), inputs)
    made[FOUND] = lambda: found(finder, lookup())
    made[FINDING] = lambda: on_maps(bench, finder, inputs)
    return made


def paying(finder: PatternFinder) -> tuple[int, ...]:
    """The strides at which a lookup has far fewer rows than pixels."""
    levels: dict[int, Any] = {
        stride: finder.get_submodule(f"level_{stride}") for stride in modulated_channels(finder.spec)
    }
    return tuple(
        stride
        for stride, level in levels.items()
        if not level.is_all_own and level.large.count < PAYING_SHARE * level.own_index.numel()
    )


def has_triton(device: str) -> bool:
    """Whether Triton's kernels run: on a card, or on a CPU under its interpreter, which is very slow."""
    is_served = device.startswith("cuda") or bool(os.environ.get("TRITON_INTERPRET"))
    return is_served and importlib.util.find_spec("triton") is not None


class Found(nn.Module):
    """A finder and the lookup module behind it: label map in, (pixels, image, windows without a place) out."""

    def __init__(self, finder: nn.Module, lookup: nn.Module) -> None:
        super().__init__()
        self.finder, self.lookup = finder, lookup

    def forward(self, *maps: Tensor) -> Outputs:
        *tables, excess = self.finder(*maps)
        pixels, image = self.lookup(*tables)
        return pixels, image, excess


def finder_of(bench: Bench, case: Case) -> PatternFinder:
    """With room for as many of the fullest map as the batch has maps, and a tenth more."""
    spec, side = bench.setting.spec, case.side
    rooms = capacities(spec, bench.maps_at(side), case.batch)
    return PatternFinder(spec, case.batch, side, side, rooms).to(bench.device)


def capacities(spec: Any, maps: list[Arrays], batch: int) -> dict[int, Capacity]:
    """What the fullest of the maps needs at each level, with the headroom, times the batch."""
    needed = [needed_capacities(spec, *map_tensors(one, "cpu")) for one in maps]

    def rows(counts: list[int]) -> int:
        return math.ceil(HEADROOM * batch * max(counts))

    return {
        stride: Capacity(rows([one[stride].codes for one in needed]), rows([one[stride].patterns for one in needed]))
        for stride in modulated_channels(spec)
    }


def map_tensors(inputs: Arrays, device: str) -> list[Tensor]:
    return [torch.from_numpy(inputs[name].copy()).to(device) for name in (LABEL, INSTANCE) if name in inputs]


def in_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    own: Any = copy.deepcopy(module)  # nn.Module's annotations do not know memory_format
    formed: nn.Module = own.to(memory_format=memory_format)
    return formed


def on_maps(bench: Bench, module: nn.Module, inputs: Arrays) -> tuple[Outputs, Work, Work]:
    """A module that takes label maps. From the host: maps copied to the card, the graph, what it made copied back."""
    on_host = map_tensors(inputs, "cpu")
    if bench.device.startswith("cuda"):
        on_host = [tensor.pin_memory() for tensor in on_host]
    fed = [tensor.to(bench.device) for tensor in on_host]
    outputs, replay = captured(partial(module, *fed), bench.device)

    def whole() -> None:
        for target, source in zip(fed, on_host, strict=True):
            target.copy_(source, non_blocking=True)
        replay()
        outputs[0].cpu()
        outputs[-1].cpu() if len(outputs) > 2 else None

    return outputs, replay, whole


def on_tables(bench: Bench, module: nn.Module, inputs: Arrays) -> tuple[Outputs, Work, Work]:
    """The lookup module on ready-made tables. From the host: with finding them; no graph, since their sizes vary."""
    outputs, replay = captured(partial(module, *bench.fed(GraphKind.LOOKUP, inputs)), bench.device)

    def whole() -> None:
        module(*bench.fed(GraphKind.LOOKUP, inputs))[0].cpu()

    return outputs, replay, whole


def captured(work: Callable[[], Outputs], device: str) -> tuple[Outputs, Work]:
    """(What it makes, what makes it again): a CUDA graph on a card, the work itself elsewhere.

    The outputs are those of a replay: what is judged is what is timed.
    """
    if not device.startswith("cuda"):
        return work(), work
    replay, outputs = as_graph(torch, work)
    replay()
    torch.cuda.synchronize()
    return outputs, replay


def judged(
    outputs: Outputs, expected: Tensor, precision: Precision, before: dict[str, dict[str, float | None]]
) -> tuple[dict[str, float | None], str]:
    """(Errors of the image, what is wrong with it or ''). Tables are judged by the image they give."""
    excess = outputs[-1]
    if len(outputs) > 2 and bool(excess.any()):
        return {}, f"windows without a place, by level: {excess.tolist()}"
    if outputs[0].dtype is not torch.uint8:
        return {}, ""
    pixels, image = outputs[:2]
    error = (image.double() - expected.double()).abs()
    mean, square = float(error.mean()), float((error * error).mean())
    figures: dict[str, float | None] = {"mean_abs": mean, "max_abs": float(error.max())}
    figures["psnr_db"] = 10 * math.log10(4 / square) if square else None
    if not math.isfinite(mean):
        return {}, "the image holds NaN or infinity"
    if not torch.equal(pixels, to_pixels(image)):
        return figures, "its pixels are not those of its image"
    limit = before.get(DENSE, {}).get("mean_abs")
    if limit is None:
        psnr, least = figures["psnr_db"], LEAST_PSNR_DB[precision]
        return figures, f"PSNR {psnr:.1f} dB is under {least:g} dB" if psnr is not None and psnr < least else ""
    return (
        figures,
        f"its mean error {mean:.2e} is over twice the dense module's {limit:.2e}" if mean > 2 * limit else "",
    )
