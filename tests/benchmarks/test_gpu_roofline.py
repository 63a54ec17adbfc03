"""benchmarks/gpu/roofline.py: the work of a graph against what its modules really do, and the floor it makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.export.build import model_inputs
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.spade import DeployModel
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import (
    GeneratorSpec,
    LabelSpec,
    NormType,
    Upsampling,
)
from tests.support.bench_model import load_script, tiny_setting
from tests.support.generators import build_generator, random_inputs

records: Any = load_script("gpu.records")
roofline: Any = load_script("gpu.roofline")


SPECS = [
    {},
    {"labels": LabelSpec(5), "kernel_size": 5, "height": 64, "width": 96},
    {"upsampling": Upsampling.MOST, "height": 256, "width": 256, "norm": NormType.INSTANCE},
    {"z_dim": 6, "hidden_channels": 9},
]


def counted(module: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Multiply-adds by layer, from the shapes that really go through the convolutions and products."""
    found: dict[str, int] = {}

    def count(name: str, layer: Any, _: Any, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found[name] = output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            found[name] = output.numel() * layer.in_features

    handles = [
        layer.register_forward_hook(partial(count, name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("fields", SPECS)
def test_the_dense_graphs_work_is_what_its_modules_do(fields: dict[str, Any]) -> None:
    generator = build_generator(training_steps=0, **fields)
    spec = generator.spec
    label, instance, z = random_inputs(spec, 2)
    products = roofline.dense_products(spec, spec.height, spec.width, 2)
    segmap = make_segmap(label, instance, spec.labels)
    untouched = counted(generator, lambda: generator(segmap, z))
    assert sum(product.multiply_adds for product in products) == sum(untouched.values())
    model = DeployModel(generator)
    inputs = [label, *([instance] if spec.labels.has_edges else []), *([] if z is None else [z])]
    deployed = counted(model, lambda: model(*inputs))
    names = {name.replace(".modulation", "").removesuffix(".0"): work for name, work in deployed.items()}
    assert {product.name: product.multiply_adds for product in products} == names
    weights = {name.replace(".modulation", "").removesuffix(".0"): layer for name, layer in model.named_modules()}
    for product in products:
        assert product.weights == weights[product.name].weight.numel(), product.name
    # Counter-test: another kernel is other work.
    other = GeneratorSpec(**{**vars(spec), "kernel_size": 1})
    wrong = roofline.dense_products(other, spec.height, spec.width, 2)
    assert sum(product.multiply_adds for product in wrong) != sum(untouched.values())


@pytest.mark.parametrize("fields", SPECS)
def test_the_lookup_graphs_work_is_what_its_modules_do(fields: dict[str, Any]) -> None:
    generator = build_generator(training_steps=0, **fields)
    spec = generator.spec
    label, instance, z = random_inputs(spec, 2)
    inputs = {LABEL: label.numpy()}
    inputs |= {INSTANCE: instance.numpy()} if spec.labels.has_edges else {}
    inputs |= {} if z is None else {"z": z.numpy()}
    tables = extract_patterns(spec, inputs[LABEL], inputs.get(INSTANCE))
    assert tables is not None
    patterns = {stride: len(level.patterns) for stride, level in tables.levels.items()}
    products = roofline.lookup_products(spec, spec.height, spec.width, 2, patterns)
    model = LookupModel(generator)
    found = counted(model, lambda: model(*model_inputs(model, inputs)))
    assert sum(product.multiply_adds for product in products) == sum(found.values())
    fewer = roofline.lookup_products(spec, spec.height, spec.width, 2, dict.fromkeys(patterns, 1))
    assert sum(product.multiply_adds for product in fewer) < sum(found.values())


def test_the_floor_is_the_larger_of_work_and_bytes() -> None:
    products = [roofline.Product("a", 500, 10, 40), roofline.Product("b", 1, 100, 900)]
    floor = roofline.floor_of(products, 2, flop_per_s=1000.0, bytes_per_s=1000.0)
    assert (floor.flop, floor.bytes) == (1002, 2100)
    assert (floor.compute_ms, floor.memory_ms) == (1002.0, 2100.0)
    assert floor.floor_ms == 2100.0
    assert floor.by_layer_ms == 1000.0 + 2000.0
    assert roofline.floor_of(products, 2, flop_per_s=100.0, bytes_per_s=1000.0).floor_ms == 10020.0


def test_peaks_are_the_best_of_all_tries() -> None:
    times = iter([4.0, 2.0, 8.0, 1.0, 5.0, 6.0])

    def timer(work: Callable[[], object]) -> float:
        work()
        return next(times)

    peaks = roofline.measure_peaks(torch, "cpu", timer, side=16, repeats=2)
    assert peaks == {
        "fp16_flop_per_s": 2 * 16**3 / 0.002,
        "fp32_flop_per_s": 2 * 16**3 / 0.001,
        "bytes_per_s": 2 * 8 * 16**2 / 0.005,
    }


def test_copies_are_of_bytes_that_differ() -> None:
    copied: list[torch.Tensor] = []

    def timer(work: Callable[[], object]) -> float:
        found = work()
        if isinstance(found, torch.Tensor) and found.dtype is torch.uint8:
            copied.append(found)
        return 1.0

    roofline.measure_peaks(torch, "cpu", timer, side=64, repeats=1)
    counts = torch.bincount(copied[0].long(), minlength=256)
    assert len(copied[0]) == 8 * 64**2
    assert 64 < counts.min() <= counts.max() < 256  # about 128 of each: nothing that memory could compress


def test_the_roofline_of_a_batch(tmp_path: Path) -> None:
    outcome = records.run_step(records.Book("roofline"), partial(roofline.run_roofline, tiny_setting(tmp_path)))
    assert outcome.status == "done", outcome.reason
    rows = {(row.name, row.batch): row.figures for row in outcome.rows}
    assert len(rows) == 8
    dense = rows["fp16 dense", 2]
    assert dense["flop"] == 2 * rows["fp16 dense", 1]["flop"] == rows["fp32 dense", 2]["flop"]
    assert dense["floor_ms"] == max(dense["compute_ms"], dense["memory_ms"]) <= dense["by_layer_ms"]
    assert rows["fp16 lookup", 1]["flop"] < rows["fp16 dense", 1]["flop"]
