"""benchmarks/gpu/triton_kernels.py and benchmarks/gpu/fused_lookup.py, by Triton's interpreter, or on a card."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pattern_finder import Capacity, PatternFinder
from spade_deploy.export.spade import DeployModel
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType
from tests.export.test_pattern_finder import assert_same_windows, blocks_of, rooms
from tests.support.bench_model import load_script, tiny_setting
from tests.support.generators import build_generator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # it is read when the kernels are defined
pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA only")
kernels: Any = load_script("gpu.triton_kernels")
fused: Any = load_script("gpu.fused_lookup")


@pytest.mark.parametrize("has_edges", [True, False])
def test_the_finders_tables_hold_every_window(has_edges: bool) -> None:
    spec = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=has_edges), height=64, width=64)
    label, instance = blocks_of(spec, 2, 32, 64)
    finder = PatternFinder(spec, 2, 32, 64, rooms(spec, label)).to(DEVICE)
    maps = [label.to(DEVICE), *([instance.to(DEVICE)] if has_edges else [])]
    own = fused.FusedFinder(finder)
    for _ in range(2):  # its memory is used again
        *tables, excess = own(*maps)
        assert not excess.any()
        assert_same_windows(spec, [table.cpu() for table in tables], label, instance)


def test_windows_without_a_place_are_counted_and_stay_inside() -> None:
    spec = GeneratorSpec(LabelSpec(7), height=64, width=64)
    label, _ = blocks_of(spec, 1, 32, 64)
    few = {**rooms(spec, label, is_searched=False), 1: Capacity(20, 30)}
    finder = PatternFinder(spec, 1, 32, 64, few).to(DEVICE)
    *expected, excess = finder(label.to(DEVICE))
    *tables, own_excess = fused.FusedFinder(finder)(label.to(DEVICE))
    assert own_excess.tolist() == excess.tolist()
    assert own_excess[-1] > 0
    assert [table.shape for table in tables] == [table.shape for table in expected]
    assert tables[-1].max() == len(tables[-2]) - 1


@pytest.mark.parametrize("gathers", [False, True])
def test_the_fused_module_gives_the_same_image(gathers: bool) -> None:
    generator = build_generator(height=32, width=32, base_channels=4, hidden_channels=8, labels=LabelSpec(7))
    spec = generator.spec
    label, _ = blocks_of(spec, 2, 32, 32)
    model = LookupModel(generator).to(DEVICE)
    *tables, _ = PatternFinder(spec, 2, 32, 32).to(DEVICE)(label.to(DEVICE))
    with torch.inference_mode():
        expected = model(*tables)[1]
        image = fused.FusedLookup(model, gathers=gathers)(*tables)[1]
    # Measured 3e-7; without beta, or with the rows of another pixel, over 1e-2.
    assert (image - expected).abs().max() < 1e-5


@pytest.mark.parametrize("strides", [(), (1,), (1, 2, 32)])
def test_the_hybrid_gives_the_same_image(strides: tuple[int, ...]) -> None:
    generator = build_generator(
        height=32, width=32, base_channels=4, hidden_channels=8, labels=LabelSpec(7, has_edges=True)
    )
    label, instance = blocks_of(generator.spec, 1, 32, 32)
    model, dense = LookupModel(generator).to(DEVICE), DeployModel(generator).to(DEVICE)
    finder = fused.FusedFinder(PatternFinder(generator.spec, 1, 32, 32).to(DEVICE))
    maps = [label.to(DEVICE), instance.to(DEVICE)]
    with torch.inference_mode():
        expected = dense(*maps)
        pixels, image, excess = fused.Hybrid(finder, model, dense, strides, gathers=False)(*maps)
    assert not excess.any()
    assert (image - expected[1]).abs().max() < 1e-5
    assert (pixels != expected[0]).float().mean() < 0.01


def test_the_modulation_doubles_and_leaves_out_beta() -> None:
    torch.manual_seed(0)
    x, table = torch.randn(2, 2, 3, 5).to(DEVICE), torch.randn(7, 12).to(DEVICE)
    index = torch.randint(0, 7, (2, 4, 6), dtype=torch.int32).to(DEVICE)
    wide = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    gamma, beta = table[index.long(), 1:6], table[index.long(), 7:12]
    torch.testing.assert_close(kernels.modulate(x, table, index, gamma=1), wide * gamma)
    expected = torch.nn.functional.leaky_relu(wide * gamma + beta, 0.1)
    torch.testing.assert_close(kernels.modulate(x, table, index, gamma=1, beta=7, slope=0.1), expected)
    torch.testing.assert_close(kernels.join(wide, expected, table, index, 7), wide + expected + beta)


def test_hidden_rows_and_gathered_products() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 4, (10, 9), dtype=torch.int32).to(DEVICE)
    table, bias = torch.randn(36, 6).to(DEVICE), torch.randn(6).to(DEVICE)
    hidden = kernels.hidden_rows(codes, table, bias)
    offsets = 4 * torch.arange(9, device=DEVICE)
    torch.testing.assert_close(hidden[:-1], torch.relu(table[(codes + offsets).long()].sum(1) + bias))
    assert not hidden[-1].any()
    patterns = torch.randint(0, 11, (13, 9), dtype=torch.int32).to(DEVICE)
    weight, shift = torch.randn(5, 9 * 4).to(DEVICE), torch.randn(5).to(DEVICE)
    windows = hidden[patterns.long(), 2:].flatten(1)
    found = kernels.gathered_product(hidden, patterns, 2, weight, shift)
    torch.testing.assert_close(found, windows @ weight.T + shift)


def test_what_it_is_not_written_for_is_refused() -> None:
    generator = build_generator(norm=NormType.INSTANCE, base_channels=4)
    with pytest.raises(fused.ConfigError, match="batch norm"):
        fused.FusedLookup(LookupModel(generator))


@pytest.mark.slow  # minutes in the interpreter
def test_every_case_of_the_step_runs(tmp_path: Path) -> None:
    lookup, records = load_script("gpu.lookup_on_card"), load_script("gpu.records")
    book = records.Book("lookup")
    outcome = records.run_step(book, partial(lookup.run_lookup, tiny_setting(tmp_path, batches=(1,))))
    assert outcome.status == "done", outcome.reason
    rows = {row.name: row for row in outcome.rows if "Triton" in row.name}
    names = [lookup.FUSED, lookup.GATHERED, lookup.HYBRID, lookup.HYBRID_GATHERED, lookup.FUSED_FINDING]
    assert set(rows) == {f"fp16 32 {name}" for name in names} | {f"fp16 32 {lookup.DENSE}, beside Triton"}
    for name, row in rows.items():
        assert len(row.times_ms["device"]) == 2
        if lookup.FUSED_FINDING not in name:
            assert 0 < row.figures["mean_abs"] < 1e-3
