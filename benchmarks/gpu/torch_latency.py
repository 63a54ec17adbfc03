"""The graphs in PyTorch on the card, against the untouched module: what folding and lookup alone do, without an engine.

All in half precision. The untouched module gets its one-hot map ready-made, and the lookup graph its tables: what is
timed is the card's work between two events.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gpu.numerics import Reference, copy_of, deployed, make_model, on_device, segmap_of
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import Work, device_timer, measure_interleaved, median_ratio, spread
from spade_deploy.artifact import Arrays
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.spec import GraphKind, Precision

BASELINE = "fp16 untouched, channels last"
PATTERN_TRIES = 5


def run_torch_latency(setting: Setting, book: Book) -> None:
    """Latency of every candidate at every batch size, the graphs validated first."""
    reference = Reference.of(setting)
    wrong = {kind: _failures(reference, setting, kind) for kind in setting.kinds}
    timer = device_timer(torch, setting.device)
    for batch in setting.batches:
        inputs = setting.batch(batch)
        works: dict[str, Work] = {}
        failures: dict[str, tuple[str, ...]] = {}
        for name, (make, kind) in _candidates(setting).items():
            failures[name] = wrong.get(kind, ()) if kind else ()
            if failures[name]:
                continue
            try:
                works[name] = make(inputs)
            except Exception as error:  # out of memory: the others go on
                failures[name] = (error_text(error),)
        with torch.inference_mode():
            measured = measure_interleaved(works, timer, setting.rounds, warm_up=3 if setting.quick else 10)
        for name in failures:
            own = measured.times_ms.get(name, [])
            failed = failures[name] or tuple(filter(None, [measured.failures.get(name)]))
            figures = spread(own, "device")
            figures["faster_than_untouched"] = median_ratio(measured.times_ms.get(BASELINE, []), own)
            if name == "fp16 lookup":
                figures["patterns_on_cpu_ms"] = patterns_ms(setting, inputs)
            book.add(Row(name, batch, figures, {"device": own}, failed))
        del works


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
