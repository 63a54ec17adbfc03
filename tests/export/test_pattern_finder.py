"""export/pattern_finder.py: the tables that it makes give the image of the untouched module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.errors import ConfigError
from spade_deploy.export import pattern_finder
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pattern_finder import Capacity, PatternFinder, default_capacities, needed_capacities
from spade_deploy.labels.files import list_label_files, read_instance_map, read_label_map
from spade_deploy.lookup.tables import check_tables, extract_patterns, lookup_tensors, modulated_channels, num_codes
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from tests.support.exactness import VARIANTS, in_float64, reference
from tests.support.generators import build_generator, random_inputs


def blocks_of(spec: GeneratorSpec, batch: int, height: int, width: int, cells: int = 3) -> tuple[Any, Any]:
    """Label maps of `cells` x `cells` rectangles with random ids; the instance is the rectangle."""
    rows = np.minimum(np.arange(height) * cells // height, cells - 1)
    columns = np.minimum(np.arange(width) * cells // width, cells - 1)
    region = rows[:, None] * cells + columns[None]
    ids = np.random.default_rng(3).integers(0, spec.labels.num_ids, (batch, cells * cells))
    label = torch.from_numpy(ids[:, region]).to(getattr(torch, spec.labels.id_type))
    return label, torch.from_numpy(np.broadcast_to(region, label.shape).astype(np.int32).copy())


def rooms(spec: GeneratorSpec, label: Any, *, is_searched: bool = True) -> dict[int, Capacity]:
    """As many rows as pixels; where `is_searched`, two fine levels have fewer, so that windows must share rows."""
    found = {}
    for stride in modulated_channels(spec):
        pixels = label[:, ::stride, ::stride].numel()
        fewer = pixels - num_codes(spec) - 1 if is_searched else pixels
        found[stride] = Capacity(fewer if stride <= 2 else pixels, fewer if stride == 1 else pixels)
    return found


def half_noise(spec: GeneratorSpec, batch: int, height: int, width: int) -> tuple[Any, Any]:
    """The left half of each map is noise, the right half of one class."""
    label, instance, _ = random_inputs(spec, batch, height, width)
    label[:, :, width // 2 :] = 1
    instance[:, :, width // 2 :] = 0
    return label, instance


def run_finder(finder: PatternFinder, spec: GeneratorSpec, label: Any, instance: Any) -> tuple[list[Any], Any]:
    *tables, excess = finder(label, instance) if spec.labels.has_edges else finder(label)
    return tables, excess


def named(spec: GeneratorSpec, tables: list[Any]) -> dict[str, Any]:
    return {tensor.name: table.numpy() for tensor, table in zip(lookup_tensors(spec), tables, strict=False)}


def window_of_pixels(codes: Any, patterns: Any, index: Any) -> Any:
    """For every pixel, the codes of its k*k small windows, N x h x w x k*k x k*k; -1 for windows around the outside."""
    outside = np.full((1, codes.shape[1]), -1, codes.dtype)
    return np.concatenate([codes, outside])[patterns[index]]


def assert_same_windows(spec: GeneratorSpec, tables: list[Any], label: Any, instance: Any) -> None:
    expected = extract_patterns(spec, label.numpy(), instance.numpy() if spec.labels.has_edges else None)
    assert expected is not None
    found = named(spec, tables)
    if expected.latent is not None:
        np.testing.assert_array_equal(found["latent"], expected.latent)
    for stride, level in expected.levels.items():
        mine = window_of_pixels(*(found[f"{name}_{stride}"] for name in ("codes", "patterns", "index")))
        np.testing.assert_array_equal(mine, window_of_pixels(level.codes, level.patterns, level.index))


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_image_is_that_of_the_untouched_module(variant: str) -> None:
    generator = in_float64(build_generator(**VARIANTS[variant]))
    spec = generator.spec
    model = LookupModel(generator, dtype=torch.float64)
    torch.manual_seed(5)
    size = (2, spec.height, spec.width)
    noise = random_inputs(spec, *size)
    z = noise[2]
    for is_searched, maps in ((False, [noise[:2]]), (True, [blocks_of(spec, *size), half_noise(spec, *size)])):
        for label, instance in maps:
            finder = PatternFinder(spec, *size, rooms(spec, label, is_searched=is_searched))
            tables, excess = run_finder(finder, spec, label, instance)
            check_tables(spec, {**named(spec, tables), **({} if z is None else {"z": z.numpy()})})
            assert not excess.any()
            assert_same_windows(spec, tables, label, instance)
            with torch.no_grad():
                _, image = model(*tables, *([] if z is None else [z]))
            # Measured worst 4e-14, as with the tables of extract_patterns.
            assert (image - reference(generator, label, instance, z)).abs().max() < 1e-12


LABELS = LabelSpec(7, has_dontcare=True, has_edges=True)


@pytest.mark.parametrize("has_edges", [True, False])
@pytest.mark.parametrize("size", [(32, 64), (96, 96), (64, 128)])
def test_windows_of_one_code_share_a_row_and_others_have_their_own(size: tuple[int, int], has_edges: bool) -> None:
    spec = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=has_edges), height=64, width=64)
    label, instance = blocks_of(spec, 2, *size)
    capacities = rooms(spec, label)
    tables, excess = run_finder(PatternFinder(spec, 2, *size, capacities), spec, label, instance)
    assert not excess.any()
    assert_same_windows(spec, tables, label, instance)
    found, outside = named(spec, tables), num_codes(spec)
    is_searched = 0
    for stride in modulated_channels(spec):
        rows = found[f"index_{stride}"]
        if outside + capacities[stride].patterns >= rows.size:
            np.testing.assert_array_equal(rows, np.arange(rows.size).reshape(rows.shape))
            continue
        is_searched += 1
        own, counts = np.unique(rows[rows >= outside], return_counts=True)
        assert (counts == 1).all()
        np.testing.assert_array_equal(own, np.arange(outside, outside + len(own)))
        assert len(own) < rows.size
    assert is_searched == 1


def test_a_row_too_few_is_said_and_one_more_is_enough() -> None:
    spec = GeneratorSpec(LABELS, height=64, width=64)
    label, instance = blocks_of(spec, 1, 64, 64)
    ample = rooms(spec, label, is_searched=False)
    needed = needed_capacities(spec, label, instance)[1]
    for missing in (0, 1, 5):
        for of_codes, of_patterns in ((missing, 0), (0, missing)):
            exact = {**ample, 1: Capacity(needed.codes - of_codes, needed.patterns - of_patterns)}
            tables, excess = run_finder(PatternFinder(spec, 1, 64, 64, exact), spec, label, instance)
            assert excess.tolist() == [0] * (len(excess) - 2) + [of_codes, of_patterns]
            check_tables(spec, named(spec, tables))  # no row lies outside a table, whatever is missing
            if not missing:
                assert_same_windows(spec, tables, label, instance)


def test_noise_overflows_the_default_and_says_so() -> None:
    spec = GeneratorSpec(LABELS, height=256, width=256)
    label, instance, _ = random_inputs(spec, 1)
    tables, excess = run_finder(PatternFinder(spec, 1, 256, 256), spec, label, instance)
    assert excess[-1] > 0
    check_tables(spec, named(spec, tables))


def test_a_kernel_of_one_needs_no_rows_of_its_own() -> None:
    spec = GeneratorSpec(LabelSpec(5), height=64, width=64, kernel_size=1)
    label, instance, _ = random_inputs(spec, 2)
    tables, excess = run_finder(PatternFinder(spec, 2, 64, 64), spec, label, instance)
    assert not excess.any()
    assert_same_windows(spec, tables, label, instance)
    assert len(named(spec, tables)["patterns_1"]) == 6


@pytest.mark.parametrize("count", [1, 255, 256, 257, 65_536, 65_537, 400_000])
def test_prefix_sums_by_products_are_exact(count: int) -> None:
    flags = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.7
    expected = torch.cumsum(flags, 0, dtype=torch.int32)
    torch.testing.assert_close(pattern_finder._PrefixSum()(flags), expected, rtol=0, atol=0)
    every = pattern_finder._PrefixSum()(torch.ones(count, dtype=torch.bool))
    assert every[-1] == count


@pytest.mark.shared
@pytest.mark.parametrize(("side", "edges"), [(256, True), (256, False), (512, True), (1024, False)])
def test_the_default_holds_the_coco_samples(side: int, edges: bool, shared_folder: Path) -> None:
    data = shared_folder / "data" / "coco_stuff_sample"
    spec = GeneratorSpec(LabelSpec(182, has_dontcare=True, has_edges=edges), height=side, width=side)
    finder = PatternFinder(spec, 1, side, side)
    fullest = 0.0
    for file in list_label_files(data / "train_label"):
        label = torch.from_numpy(read_label_map(file, spec.labels, (side, side))[None].copy())
        instance = torch.from_numpy(read_instance_map(data / "train_inst" / file.name, (side, side))[None].copy())
        tables, excess = run_finder(finder, spec, label, instance)
        assert not excess.any(), file.name
        used = named(spec, tables)["index_1"].max() + 1 - num_codes(spec)
        fullest = max(fullest, used / default_capacities(spec, 1, side, side)[1].patterns)
        if file == list_label_files(data / "train_label")[0]:
            assert_same_windows(spec, tables, label, instance)
    # Measured 0.86 to 0.93: the default is neither too small nor much too large.
    assert 0.8 < fullest <= 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="`width`: 100 is not a"):
        PatternFinder(GeneratorSpec(LABELS), 1, 256, 100)
    with pytest.raises(ConfigError, match="no pattern tables"):
        PatternFinder(GeneratorSpec(LABELS, architecture=Architecture.PIX2PIXHD), 1, 256, 256)
