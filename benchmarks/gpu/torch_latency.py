"""The graphs in PyTorch on the card, against the untouched module: what folding and lookup alone do, without an engine.

All in half precision. The untouched module gets its one-hot map ready-made, and the lookup graph its tables: what is
timed lies between two events on the card. At batch 1 that is mostly PyTorch launching its operators, 169 to 319 of
them; so each candidate has a second row, where it runs as a CUDA graph, and that is the card's own work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from gpu.numerics import copy_of, deployed, make_model, on_device, segmap_of
from gpu.records import Book, Row, error_text
from gpu.reference import Reference
from gpu.setting import Setting
from gpu.timing import Measured, Work, captured, device_timer, measure_interleaved, median_ratio, spread
from spade_deploy.artifact import Arrays
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.spec import GraphKind, Precision

BASELINE = "fp16 untouched, channels last"
PATTERN_TRIES = 5
AS_GRAPH = ", CUDA graph"
"""Ends the name of a row whose kernels are launched at once."""
SAME_IMAGE = 0.01
"""How far a replay's image may be off its module's, in [-1, 1]: the same kernels add up in another order at most."""


def run_torch_latency(setting: Setting, book: Book) -> None:
    """Latency of every candidate at every batch size, the graphs validated first."""
    reference = Reference.of(setting)
    wrong = {kind: _failures(reference, setting, kind) for kind in setting.kinds}
    timer = device_timer(torch, setting.device)
    for batch in setting.batches:
        made = _made(setting, setting.batch(batch), wrong)
        with torch.inference_mode():
            measured = measure_interleaved(made.works, timer, setting.rounds, warm_up=3 if setting.quick else 10)
        for name in made.names:
            book.add(_row(setting, name, batch, made, measured))
        del made  # the memory of this batch size


@dataclass
class _Made:
    """The candidates of a batch size that are ready to run, and why others are not."""

    names: list[str] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)
    failures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def _made(setting: Setting, inputs: Arrays, wrong: dict[GraphKind, tuple[str, ...]]) -> _Made:
    made = _Made()
    for name, (make, kind) in _candidates(setting).items():
        made.names.append(name)
        if kind and wrong[kind]:
            made.failures[name] = wrong[kind]
            continue
        try:
            made.works[name] = make(inputs)
        except Exception as error:  # out of memory: the others go on
            made.failures[name] = (error_text(error),)
            continue
        if setting.is_cuda:
            _add_as_graph(made, name)
    return made


def _add_as_graph(made: _Made, name: str) -> None:
    """The candidate's second row. One that cannot be captured is told; a replay of another image is a failure."""
    work, again = made.works[name], name + AS_GRAPH
    made.names.append(again)
    try:
        with torch.inference_mode():
            replay, returned = captured(torch, work)
            replay()
            is_same = torch.allclose(_image(returned), _image(work()), rtol=0, atol=SAME_IMAGE, equal_nan=True)
    except Exception as error:
        made.notes[again] = f"not measured: {error_text(error)}"
        return
    if is_same:
        made.works[again] = replay
    else:
        made.failures[again] = ("its replay makes another image than the module",)


def _image(returned: Any) -> torch.Tensor:
    """The image of what a module returned: our graphs return the pixels before it."""
    image: torch.Tensor = returned[-1] if isinstance(returned, tuple) else returned
    return image.float()


def _row(setting: Setting, name: str, batch: int, made: _Made, measured: Measured) -> Row:
    """Its times, and how much faster it is than the untouched module, launched as it is launched."""
    own = measured.times_ms.get(name, [])
    failed = made.failures.get(name) or tuple(filter(None, [measured.failures.get(name)]))
    figures = spread(own, "device")
    against = BASELINE + (AS_GRAPH if name.endswith(AS_GRAPH) else "")
    figures["faster_than_untouched"] = median_ratio(measured.times_ms.get(against, []), own)
    if name == "fp16 lookup":
        figures["patterns_on_cpu_ms"] = patterns_ms(setting, setting.batch(batch))
    return Row(name, batch, figures, {"device": own}, failed, made.notes.get(name, ""))


def patterns_ms(setting: Setting, inputs: Arrays) -> float:
    """What finding the patterns takes on the CPU, which the lookup graph needs before it: the median of a few."""
    times = []
    for _ in range(PATTERN_TRIES):
        start = time.perf_counter()
        graph_inputs(setting.spec, GraphKind.LOOKUP, inputs)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def _failures(reference: Reference, setting: Setting, kind: GraphKind) -> tuple[str, ...]:
    try:
        return reference.judge(deployed(setting, kind, Precision.FP16), Precision.FP16)[1]
    except Exception as error:
        return (error_text(error),)


Make = Callable[[Arrays], Work]


def _candidates(setting: Setting) -> dict[str, tuple[Make, GraphKind | None]]:
    """How each is made ready for a batch, and of which graph it is."""
    found: dict[str, tuple[Make, GraphKind | None]] = {
        "fp16 untouched": (partial(_untouched, setting, False), None),
        BASELINE: (partial(_untouched, setting, True), None),
    }
    for kind in setting.kinds:
        found[f"fp16 {kind}"] = (partial(_graph, setting, kind, False), kind)
        if kind is GraphKind.DENSE:  # the lookup graph keeps its channels last by itself
            found[f"fp16 {kind}, channels last"] = (partial(_graph, setting, kind, True), kind)
    return found


def _untouched(setting: Setting, is_last: bool, inputs: Arrays) -> Work:
    module = _in_format(copy_of(setting, torch.float16), is_last)
    segmap = segmap_of(setting, inputs, torch.float16)
    segmap = segmap.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    return partial(module, segmap)


def _graph(setting: Setting, kind: GraphKind, is_last: bool, inputs: Arrays) -> Work:
    model = make_model(setting, kind, Precision.FP16)
    return partial(_in_format(model, is_last), *on_device(setting, model, inputs))


def _in_format(module: Any, is_last: bool) -> nn.Module:
    formatted: nn.Module = module.to(memory_format=torch.channels_last) if is_last else module
    return formatted
