from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spade_deploy.artifact import INSTANCE, LABEL, mismatch
from spade_deploy.errors import InputRefusedError
from spade_deploy.labels.files import read_instance_map, read_label_map, synthetic_label_maps
from spade_deploy.lookup import windows as module
from spade_deploy.lookup.tables import (
    PatternTables,
    check_tables,
    extract_patterns,
    lookup_tensors,
    modulated_channels,
    num_codes,
    pixel_codes,
)
from spade_deploy.lookup.windows import LevelPatterns, rank_rows
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, Upsampling

PLAIN = LabelSpec(5)
EDGES = LabelSpec(5, has_dontcare=True, has_edges=True)
KERNELS = (1, 3, 5)


def spec_of(labels: LabelSpec = EDGES, kernel: int = 3, **fields: Any) -> GeneratorSpec:
    return GeneratorSpec(labels, base_channels=4, hidden_channels=4, kernel_size=kernel, **fields)


def extracted(spec: GeneratorSpec, label: np.ndarray, instance: np.ndarray | None = None) -> PatternTables:
    tables = extract_patterns(spec, label, instance)
    assert tables is not None
    return tables


def regions(labels: LabelSpec, count: int, height: int, width: int, cell: int, seed: int) -> tuple[Any, Any]:
    """Label and instance maps of square cells; a cell of 1 is noise."""
    rng = np.random.default_rng(seed)
    small = (count, -(-height // cell), -(-width // cell))
    label, instance = rng.integers(0, labels.num_ids, small), rng.integers(0, 3, small)
    grown = (m.repeat(cell, 1).repeat(cell, 2)[:, :height, :width].astype(np.int32) for m in (label, instance))
    label, instance = grown
    return label, instance if labels.has_edges else None


# The slow and obvious way ---------------------------------------------------------------------------------------------


def slow_codes(spec: GeneratorSpec, label: np.ndarray, instance: np.ndarray | None) -> np.ndarray:
    if not spec.labels.has_edges:
        return label.astype(np.int64)
    assert instance is not None
    around = np.pad(instance, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = (around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:])
    edge = np.any([neighbour != instance for neighbour in neighbours], axis=0)
    return 2 * label.astype(np.int64) + edge


def windows(codes: np.ndarray, size: int, outside: int) -> np.ndarray:
    """N x h x w codes -> N x h x w x size x size."""
    reach = size // 2
    padded = np.pad(codes, ((0, 0), (reach, reach), (reach, reach)), constant_values=outside)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))


def rebuilt(level: LevelPatterns, kernel: int, outside: int) -> np.ndarray:
    """The (2k - 1)^2 window of every pixel from the tables alone; overlapping small windows must agree."""
    size, rows = 2 * kernel - 1, len(level.codes)
    result = np.full((len(level.patterns), size, size), outside)
    written = np.zeros(result.shape, bool)
    for tap in range(kernel**2):
        i, j = divmod(tap, kernel)
        inside = np.flatnonzero(level.patterns[:, tap] < rows)
        small = level.codes[level.patterns[inside, tap]].reshape(-1, kernel, kernel)
        place = (inside, slice(i, i + kernel), slice(j, j + kernel))
        assert np.all((result[place] == small) | ~written[place]), "overlapping windows disagree"
        result[place], written[place] = small, True
    return result[level.index]


def check_against_slow(spec: GeneratorSpec, tables: PatternTables, label: np.ndarray, instance: Any) -> None:
    codes, outside, kernel = slow_codes(spec, label, instance), num_codes(spec), spec.kernel_size
    assert list(tables.levels) == sorted({block.stride for block in spec.blocks}, reverse=True)
    for stride, level in tables.levels.items():
        picked = codes[:, ::stride, ::stride]
        wide = windows(picked, 2 * kernel - 1, outside)
        assert np.array_equal(rebuilt(level, kernel, outside), wide)
        # A tap is marked as outside exactly where its centre is.
        centres = wide[..., kernel // 2 : kernel // 2 + kernel, kernel // 2 : kernel // 2 + kernel]
        marked = level.patterns[level.index].reshape(centres.shape) == len(level.codes)
        assert np.array_equal(marked, centres == outside)
        # Nothing twice, and nothing that does not occur.
        assert len(level.patterns) == len(distinct(wide, 2 * kernel - 1))
        assert np.array_equal(np.unique(level.index), np.arange(len(level.patterns)))
        assert np.array_equal(distinct(level.codes, kernel), distinct(windows(picked, kernel, outside), kernel))
        assert len(level.codes) == len(distinct(level.codes, kernel))
        for table in (level.codes, level.patterns, level.index):
            assert table.dtype == np.int32
            assert table.flags.c_contiguous
    if spec.z_dim is None:
        assert tables.latent is not None
        latent = windows(codes[:, :: spec.stride, :: spec.stride], 3, outside)
        assert np.array_equal(tables.latent, latent.reshape(*latent.shape[:3], 9))
        assert tables.latent.dtype == np.int32
    else:
        assert tables.latent is None


def distinct(found: np.ndarray, size: int) -> np.ndarray:
    """Distinct windows in lexicographic order; as bytes, which NumPy sorts faster than rows."""
    rows = np.ascontiguousarray(found.reshape(-1, size * size), dtype=">u2")
    return np.unique(rows.view(f"V{rows.shape[1] * 2}"))


# Other architectures --------------------------------------------------------------------------------------------------


def test_windows_of_clade_are_single_pixels() -> None:
    spec = GeneratorSpec(EDGES, base_channels=4).with_architecture(Architecture.CLADE)
    label, instance = regions(EDGES, 2, 64, 96, 5, seed=1)
    tables = extracted(spec, label, instance)
    check_tables(spec, tables.to_inputs())
    codes = slow_codes(spec, label, instance)
    for stride, level in tables.levels.items():
        picked = codes[:, ::stride, ::stride]
        assert np.array_equal(level.codes[level.patterns[level.index, 0], 0], picked)
        assert len(level.codes) == len(level.patterns) == len(np.unique(picked))


@pytest.mark.parametrize("count", [1, 3, 300])
def test_maps_of_oasis_share_no_window(count: int) -> None:
    """Every map of a batch has the tables that it has alone, with codes that say which map it is."""
    spec = GeneratorSpec(PLAIN, base_channels=4, hidden_channels=4).with_architecture(Architecture.OASIS)
    alone = replace(spec, z_dim=None)
    side = 64 if count < 10 else 32
    label, _ = regions(PLAIN, count, side, side, 5, seed=2)
    label[-1] = label[0]  # the same map with another noise needs other rows
    tables = extracted(spec, label)
    outside, step = num_codes(spec), 9 * (num_codes(spec) + 1)
    check_tables(spec, tables.to_inputs(np.zeros((count, 64), np.float32)))
    for number in {0, count // 2, count - 1}:
        own = extracted(alone, label[number : number + 1])
        assert np.array_equal(tables.latent[number] - number * step, own.latent[0])
        for stride, level in tables.levels.items():
            mine = own.levels[stride]
            rows, right = level.patterns[level.index[number]], mine.patterns[mine.index[0]]
            is_outside = rows == len(level.codes)
            assert np.array_equal(is_outside, right == len(mine.codes))
            padded = np.concatenate([level.codes - number * step, np.full((1, 9), outside)])
            assert np.array_equal(padded[rows], np.concatenate([mine.codes, np.full((1, 9), outside)])[right])
    too_large = {**tables.to_inputs(np.zeros((count, 64), np.float32))}
    too_large["latent"] = too_large["latent"] + step
    with pytest.raises(InputRefusedError, match=r"input latent: code .* is out of range"):
        check_tables(spec, too_large)


# Extraction -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("labels", [PLAIN, EDGES], ids=["plain", "edges"])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 32), (3, 32, 96), (2, 128, 32)])
@pytest.mark.parametrize("cell", [1, 5, 32])
def test_tables_hold_every_window_once(
    kernel: int, labels: LabelSpec, count: int, height: int, width: int, cell: int
) -> None:
    # 32 px: the coarsest level is 1 x 1, so that every window reaches outside on all sides.
    spec = spec_of(labels, kernel)
    label, instance = regions(labels, count, height, width, cell, seed=kernel + cell)
    check_against_slow(spec, extracted(spec, label, instance), label, instance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kernel=st.sampled_from(KERNELS),
    num_labels=st.sampled_from([1, 2, 7, 300]),
    has_edges=st.booleans(),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    count=st.integers(1, 2),
    cell=st.integers(1, 40),
    seed=st.integers(0, 1000),
    stripe=st.sampled_from([None, 0, 1]),
)
def test_tables_of_any_map(
    kernel: int,
    num_labels: int,
    has_edges: bool,
    size: tuple[int, int],
    count: int,
    cell: int,
    seed: int,
    stripe: int | None,
) -> None:
    labels = LabelSpec(num_labels, has_edges=has_edges)
    spec = spec_of(labels, kernel)
    label, instance = regions(labels, count, 32 * size[0], 32 * size[1], cell, seed)
    if stripe is not None:  # the same row or column everywhere: only borders tell pixels apart
        label = np.ascontiguousarray(np.broadcast_to(label.take([0], axis=stripe + 1), label.shape))
    check_against_slow(spec, extracted(spec, label, instance), label, instance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("upsampling", list(Upsampling))
def test_every_depth(kernel: int, upsampling: Upsampling) -> None:
    spec = spec_of(EDGES, kernel, upsampling=upsampling)
    label, instance = regions(EDGES, 1, spec.stride, 2 * spec.stride, 9, seed=1)
    check_against_slow(spec, extracted(spec, label, instance), label, instance)


def test_a_map_of_one_class_has_one_pattern_for_each_kind_of_border() -> None:
    tables = extracted(spec_of(PLAIN), np.full((2, 256, 256), 3, np.uint8))
    # The large window reaches 2 px: 5 distances to the borders on either axis, and 3 for the small one.
    assert tables.levels[1].patterns.shape == (25, 9)
    assert tables.levels[1].codes.shape == (9, 9)
    assert tables.levels[1].index.max() == 24


def test_a_vae_has_no_latent_windows() -> None:
    spec = spec_of(EDGES, z_dim=3, height=64, width=32)
    label, instance = regions(EDGES, 2, 64, 32, 7, seed=0)
    check_against_slow(spec, extracted(spec, label, instance), label, instance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_as_many_labels_as_there_may_be(kernel: int) -> None:
    # 8194 codes, nearly every pixel its own: the taps of a window need several keys.
    labels = LabelSpec(4096, has_dontcare=True, has_edges=True)
    spec = spec_of(labels, kernel)
    label, instance = regions(labels, 2, 64, 64, 1, seed=3)
    label[0, 0, 0], label[0, 0, 1] = 4096, 0
    check_against_slow(spec, extracted(spec, label, instance), label, instance)


@pytest.mark.parametrize("occurring", [254, 255, 256, 257, 900])
def test_maps_with_more_codes_than_a_byte_holds(occurring: int) -> None:
    spec = spec_of(LabelSpec(1000))
    label = (np.arange(64 * 64) % occurring * 7 % 1000).reshape(1, 64, 64)
    assert len(np.unique(label)) == occurring
    check_against_slow(spec, extracted(spec, label), label, None)


def test_patterns_are_shared_over_the_batch() -> None:
    spec = spec_of()
    label, instance = regions(EDGES, 1, 64, 64, 6, seed=0)
    once = extracted(spec, label, instance)
    thrice = extracted(spec, label.repeat(3, axis=0), instance.repeat(3, axis=0))
    for stride, level in once.levels.items():
        assert np.array_equal(thrice.levels[stride].codes, level.codes)
        assert np.array_equal(thrice.levels[stride].patterns, level.patterns)
        assert np.array_equal(thrice.levels[stride].index, level.index.repeat(3, axis=0))
    assert thrice.unique_share(spec) == pytest.approx(once.unique_share(spec) / 3)


def test_maps_of_a_batch_do_not_touch() -> None:
    # Were the last row of one map a neighbour of the first of the next, the batch would have other windows.
    spec = spec_of(PLAIN)
    label, _ = regions(PLAIN, 4, 32, 32, 1, seed=5)
    together = extracted(spec, label)
    for number in range(4):
        alone = extracted(spec, label[number : number + 1])
        for stride, level in alone.levels.items():
            part = replace(together.levels[stride], index=together.levels[stride].index[number : number + 1])
            assert np.array_equal(rebuilt(part, 3, 5), rebuilt(level, 3, 5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_the_type_and_the_layout_of_a_map_make_no_difference(dtype: Any) -> None:
    spec = spec_of()
    label, instance = regions(EDGES, 2, 32, 64, 5, seed=2)
    expected = extracted(spec, label, instance).to_inputs()
    turned = np.asfortranarray(label.astype(dtype))
    for name, array in extracted(spec, turned, np.asfortranarray(instance)).to_inputs().items():
        assert np.array_equal(array, expected[name])


def test_pixel_codes_are_those_of_the_training_code() -> None:
    torch = pytest.importorskip("torch")
    from spade_deploy.networks.spade import edge_map

    label, instance = regions(EDGES, 3, 32, 64, 3, seed=4)
    edges = edge_map(torch.from_numpy(instance))[:, 0].numpy().astype(np.int32)
    assert 0.2 < edges.mean() < 0.8
    assert np.array_equal(pixel_codes(spec_of(EDGES), label, instance), 2 * label + edges)
    assert np.array_equal(pixel_codes(spec_of(PLAIN), label % 5, instance), label % 5)
    assert (num_codes(spec_of(EDGES)), num_codes(spec_of(PLAIN))) == (12, 5)


@pytest.mark.shared
@pytest.mark.parametrize("has_edges", [True, False])
def test_real_label_maps(shared_folder: Path, has_edges: bool) -> None:
    folder = shared_folder / "data" / "coco_stuff_sample"
    labels = LabelSpec(182, has_dontcare=True, has_edges=has_edges)
    spec = spec_of(labels)
    files = sorted((folder / "train_label").iterdir())
    assert len(files) == 13
    for number, file in enumerate(files):
        size = (256, 256) if number == 0 else (96, 128)
        label = read_label_map(file, labels, size)[None]
        instance = read_instance_map(folder / "train_inst" / file.name, size)[None] if has_edges else None
        check_against_slow(spec, extracted(spec, label, instance), label, instance)


# The check itself, and what must not depend on luck -------------------------------------------------------------------


WRONG = ("index", "pattern", "outside", "code", "latent", "twice", "unused", "edges", "level")


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_sees_wrong_tables(wrong: str) -> None:
    spec = spec_of()
    label, instance = regions(EDGES, 2, 64, 64, 6, seed=0)
    tables = extracted(spec, label, instance)
    check_against_slow(spec, tables, label, instance)
    assert tables.latent is not None
    level, latent = tables.levels[2], tables.latent.copy()
    codes, patterns, index = level.codes.copy(), level.patterns.copy(), level.index.copy()
    if wrong == "index":
        index[1] = np.roll(index[1], 1, axis=1)
    elif wrong == "pattern":
        patterns[[3, 30]] = patterns[[30, 3]]
    elif wrong == "outside":
        patterns[patterns == len(codes)] = 0
    elif wrong == "code":
        codes[7, 4] = (codes[7, 4] + 1) % 12
    elif wrong == "latent":
        latent[0, 0, 0, 4] += 1
    elif wrong == "twice":
        patterns = np.concatenate([patterns, patterns[index[1, 9, 9]][None]])
        index[1, 9, 9] = len(patterns) - 1
    elif wrong == "unused":
        codes = np.concatenate([codes, codes[:1]])
        patterns[patterns == len(level.codes)] += 1
    elif wrong == "edges":  # made from the small instance map instead of the large one
        small = extracted(spec, label[:, ::2, ::2], instance[:, ::2, ::2]).levels[1]
        codes, patterns, index = small.codes, small.patterns, small.index
    else:
        finer = tables.levels[1]
        codes, patterns, index = finer.codes, finer.patterns, finer.index
    levels = {**tables.levels, 2: LevelPatterns(codes, patterns, index)}
    with pytest.raises((AssertionError, IndexError)):
        check_against_slow(spec, PatternTables(levels, latent), label, instance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 60),
    bases=st.lists(st.sampled_from([1, 2, 3, 300, 1 << 16, (1 << 31) - 1, 1 << 32]), min_size=1, max_size=9),
)
def test_ranks_are_exact(seed: int, count: int, bases: list[int]) -> None:
    rng = np.random.default_rng(seed)
    # Few digits of a large base, its ends among them: many equal rows, and keys near every limit.
    rows = np.stack([rng.choice([0, base // 2, base - 1], count) for base in bases], axis=1)
    rank, first = rank_rows(zip(rows.T, bases, strict=True))
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    assert np.array_equal(rank, inverse.reshape(-1))
    assert np.array_equal(rows[first], unique)


def test_rows_that_share_a_wrapped_key_are_told_apart() -> None:
    base = 1 << 32
    rows = np.array([[0, 5, 6], [1, 5, 6], [2, 5, 6]])
    with np.errstate(over="ignore"):
        wrapped = (rows[:, 0] * base + rows[:, 1]) * base + rows[:, 2]
    assert len(set(wrapped.tolist())) == 1  # 2^64 times the first digit is nothing: the trap is real
    rank, _ = rank_rows((column, base) for column in rows.T)
    assert rank.tolist() == [0, 1, 2]


# Giving up ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", [1, 2, 6, 40])
@pytest.mark.parametrize("blind", [False, True])
def test_max_share_is_exact(kernel: int, cell: int, blind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if blind:  # every hash collides: the bound knows nothing, and the answer is the same
        monkeypatch.setattr(module, "_HASH_FACTORS", (0, 0))
    spec = spec_of(EDGES, kernel)
    label, instance = regions(EDGES, 1, 64, 96, cell, seed=cell)
    full = extracted(spec, label, instance)
    share = full.unique_share(spec)
    for allowed in (share, np.nextafter(share, 1), 1.0):
        tables = extract_patterns(spec, label, instance, max_share=float(allowed))
        assert tables is not None
        for name, array in tables.to_inputs().items():
            assert np.array_equal(array, full.to_inputs()[name])
    for allowed in (np.nextafter(share, 0), share / 2, 0.0):
        assert extract_patterns(spec, label, instance, max_share=float(allowed)) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kernel=st.sampled_from(KERNELS),
    num_labels=st.sampled_from([1, 2, 40]),
    cell=st.integers(1, 12),
    seed=st.integers(0, 100),
    factors=st.sampled_from([module._HASH_FACTORS, (0, 0), (1, 1), (1, 3)]),
)
def test_bounds_hold_whatever_the_hash(
    kernel: int, num_labels: int, cell: int, seed: int, factors: tuple[int, int]
) -> None:
    labels = LabelSpec(num_labels)
    spec = spec_of(labels, kernel)
    label, _ = regions(labels, 1, 32, 64, cell, seed)
    before, module._HASH_FACTORS = module._HASH_FACTORS, factors
    try:
        grid = module.WindowGrid(label.astype(np.uint8), np.arange(num_labels + 1, dtype=np.int32), kernel)
        found = len(extracted(spec, label).levels[1].patterns)
        assert grid.at_least() <= found <= grid.at_most()
    finally:
        module._HASH_FACTORS = before


@pytest.mark.parametrize("num_labels", [2, 40])
def test_noise_is_given_up_before_anything_is_ranked(num_labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LabelSpec(num_labels)
    spec = spec_of(labels)
    label, _ = regions(labels, 1, 256, 256, 1, seed=0)

    def refuse(*_: Any) -> Any:
        raise AssertionError("ranked")

    monkeypatch.setattr(module, "_ranked", refuse)
    for allowed in (0.2, 0.5, 0.8):
        assert extract_patterns(spec, label, max_share=allowed) is None
    quiet, _ = synthetic_label_maps(labels, 256, 256, 1, seed=0)
    with pytest.raises(AssertionError, match="ranked"):
        extract_patterns(spec, quiet, max_share=0.5)


def test_the_share_counts_modulated_channels() -> None:
    spec = GeneratorSpec(PLAIN, base_channels=64)
    # up_3: two norms and the learned shortcut of 128 channels at its input, 64 in the middle.
    assert modulated_channels(spec)[1] == 128 + 64 + 128
    # G_middle_0 and G_middle_1, both 1024 -> 1024 without a learned shortcut; head_0 at half that size.
    assert (modulated_channels(spec)[16], modulated_channels(spec)[32]) == (4096, 2048)
    label, _ = regions(PLAIN, 1, 64, 64, 1, seed=0)
    tables = extracted(spec, label)
    expected = sum(len(tables.levels[s].patterns) * m for s, m in modulated_channels(spec).items())
    dense = sum((64 // s) ** 2 * m for s, m in modulated_channels(spec).items())
    assert tables.unique_share(spec) == pytest.approx(expected / dense, abs=1e-15)
    assert 0.8 < tables.unique_share(spec) <= 1


def test_the_share_weighs_a_level_by_its_pixels_and_channels() -> None:
    """One pixel of another label in a plain map: coarse levels have many patterns for their size, fine ones few."""
    spec = GeneratorSpec(PLAIN, base_channels=64)
    label = np.zeros((1, 128, 128), np.uint8)
    label[0, 64, 64] = 1
    tables = extracted(spec, label)
    found = {stride: (len(level.patterns), level.index.size) for stride, level in tables.levels.items()}
    # Channels by hand: two norms of 1024 in each of three coarse blocks; then 1024 in, 512 in the middle, and so on.
    channels = {32: 2048, 16: 4096, 8: 1024 + 512 + 1024, 4: 512 + 256 + 512, 2: 256 + 128 + 256, 1: 128 + 64 + 128}
    work = sum(patterns * channels[stride] for stride, (patterns, _) in found.items())
    dense = sum(pixels * channels[stride] for stride, (_, pixels) in found.items())
    assert tables.unique_share(spec) == pytest.approx(work / dense, rel=1e-12)
    alike = np.mean([patterns / pixels for patterns, pixels in found.values()])
    unweighted = sum(patterns for patterns, _ in found.values()) / sum(pixels for _, pixels in found.values())
    assert alike > 2 * work / dense
    assert abs(unweighted - work / dense) > 0.1 * work / dense
    # The same rule decides while the tables are made.
    assert extract_patterns(spec, label, max_share=0.99 * work / dense) is None
    assert extract_patterns(spec, label, max_share=1.01 * work / dense) is not None


# One level of the network from its tables -----------------------------------------------------------------------------


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """N x h x w x C by k x k x C x D, zero padding, stride 1."""
    reach = weight.shape[0] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[:2], axis=(1, 2))
    result: np.ndarray = np.einsum("nhwcij,ijcd->nhwd", found, weight, optimize=True) + bias
    return result


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cell", [1, 5])
@pytest.mark.parametrize("stride", [1, 8, 32])
def test_a_level_from_tables_equals_its_convolutions(kernel: int, cell: int, stride: int) -> None:
    spec = spec_of(EDGES, kernel)
    label, instance = regions(EDGES, 2, 32, 96, cell, seed=1)
    level = extracted(spec, label, instance).levels[stride]
    rng = np.random.default_rng(0)
    channels, hidden_channels, taps = EDGES.num_channels, 6, kernel**2
    shared = rng.standard_normal((kernel, kernel, channels, hidden_channels))
    shared_bias = rng.standard_normal(hidden_channels)
    gamma = rng.standard_normal((kernel, kernel, hidden_channels, 4))
    gamma_bias = rng.standard_normal(4)

    codes = slow_codes(spec, label, instance)[:, ::stride, ::stride]
    segmap = np.concatenate([np.eye(EDGES.num_ids)[codes // 2], (codes % 2)[..., None]], axis=3)
    dense = convolve(np.maximum(convolve(segmap, shared, shared_bias), 0), gamma, gamma_bias)

    flat = shared.reshape(taps, channels, hidden_channels)
    rows = np.stack([flat[:, :-1], flat[:, :-1] + flat[:, -1:]], axis=2).reshape(taps, -1, hidden_channels)
    table = np.concatenate([rows, np.zeros((taps, 1, hidden_channels))], axis=1)
    hidden = np.maximum(table[np.arange(taps), level.codes].sum(axis=1) + shared_bias, 0)

    def looked_up(outside: np.ndarray) -> Any:
        extended = np.concatenate([hidden, outside[None]])
        by_pattern = extended[level.patterns].reshape(len(level.patterns), -1) @ gamma.reshape(-1, 4) + gamma_bias
        return by_pattern[level.index]

    # Worst measured over these cases: 5e-16 of the largest result, in sums of up to 150 terms.
    assert np.abs(looked_up(np.zeros(hidden_channels)) - dense).max() < 2e-14 * np.abs(dense).max()
    if kernel > 1:  # the hidden map's padding is zero, not what its layer makes of an empty window
        assert np.abs(looked_up(np.maximum(shared_bias, 0)) - dense).max() > 0.1


# Tensors of the graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z_dim", [None, 3])
def test_the_tensors_are_those_of_the_graph(z_dim: int | None) -> None:
    spec = spec_of(EDGES, z_dim=z_dim, height=64, width=32)
    label, instance = regions(EDGES, 2, 64, 32, 5, seed=0)
    tables = extracted(spec, label, instance)
    inputs = tables.to_inputs()
    if z_dim is not None:
        inputs["z"] = np.zeros((2, z_dim), np.float32)
    assert list(inputs) == [tensor.name for tensor in lookup_tensors(spec)]
    assert mismatch(lookup_tensors(spec), inputs) is None
    check_tables(spec, inputs)
    levels = [f"{kind}_{s}" for s in (32, 16, 8, 4, 2, 1) for kind in ("codes", "patterns", "index")]
    assert list(inputs) == (["latent", *levels] if z_dim is None else [*levels, "z"])


def test_shapes_of_the_tensors() -> None:
    shapes = {tensor.name: tensor.shape for tensor in lookup_tensors(spec_of(kernel=5))}
    assert shapes["latent"] == ("N", "H/32", "W/32", 9)
    assert shapes["codes_4"] == ("U4", 25)
    assert shapes["patterns_4"] == ("P4", 25)
    assert shapes["index_4"] == ("N", "H/4", "W/4")
    fixed = {tensor.name: tensor.shape for tensor in lookup_tensors(spec_of(z_dim=7, height=64, width=32))}
    assert fixed["index_4"] == ("N", 16, 8)
    assert fixed["z"] == ("N", 7)


def refused(spec: GeneratorSpec, inputs: dict[str, Any]) -> str:
    with pytest.raises(InputRefusedError) as caught:
        check_tables(spec, inputs)
    return caught.value.message


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    label, instance = regions(EDGES, 2, 64, 96, 5, seed=0)
    return {name: array.copy() for name, array in extracted(spec_of(), label, instance).to_inputs().items()}


def test_tables_out_of_range_are_refused_by_name(inputs: dict[str, np.ndarray]) -> None:
    spec = spec_of()
    limits = {
        "latent": ("code", 12),
        "codes_8": ("code", 12),
        "patterns_8": ("row of codes_8", len(inputs["codes_8"])),
        "index_8": ("row of patterns_8", len(inputs["patterns_8"]) - 1),
    }
    for name, (what, highest) in limits.items():
        array = inputs[name]
        place = tuple(size - 1 for size in array.shape)
        kept = array[place]
        for value in (-1, highest + 1, np.iinfo(np.int32).min, np.iinfo(np.int32).max):
            array[place] = value
            said = refused(spec, inputs)
            assert said == f"input {name}: {what} {value} is out of range; allowed are 0..{highest}"
        array[place] = highest
        check_tables(spec, inputs)
        array[place] = kept


def test_tables_of_another_kind_are_refused_by_name(inputs: dict[str, np.ndarray]) -> None:
    spec = spec_of()

    def changed(**arrays: Any) -> str:
        return refused(spec, {name: array for name, array in {**inputs, **arrays}.items() if array is not None})

    assert changed(codes_8=None).startswith("input codes_8: missing")
    assert changed(codes_3=inputs["codes_8"]).startswith("input codes_3: unknown tensor")
    assert changed(label=np.zeros((1, 32, 32), np.uint8)).startswith("input label: unknown tensor")
    assert changed(index_8=inputs["index_8"].astype(np.int64)).startswith("input index_8: type int64, expected int32")
    assert changed(codes_8=inputs["codes_8"][:, :1]).endswith("(axis 1 is 1, not 9)")
    assert changed(patterns_8=inputs["patterns_8"][:0]).startswith("input patterns_8: shape 0 x 9 is empty")
    assert changed(latent=inputs["latent"][..., 0]).startswith("input latent: shape 2 x 2 x 3, expected")
    assert "N is 1, but 2 in latent" in changed(index_1=inputs["index_1"][:1])
    said = changed(index_8=inputs["index_16"])
    assert said == "input index_8: shape 2 x 4 x 6 does not fit 2 x 2 x 3 in index_32; expected 2 x 8 x 12"
    assert changed(latent=inputs["latent"][:, :1]).startswith("input index_32: shape 2 x 2 x 3: H/32 is 2, but 1 in")


def test_tables_of_another_model_are_refused(inputs: dict[str, np.ndarray]) -> None:
    check_tables(spec_of(), inputs)
    assert "axis 1 is 9, not 25" in refused(spec_of(kernel=5), inputs)
    assert refused(spec_of(LabelSpec(3)), inputs).startswith("input latent: code")
    assert refused(spec_of(upsampling=Upsampling.MORE), inputs).startswith("input ")
    assert refused(spec_of(z_dim=4), inputs).startswith("input latent: unknown tensor")


@pytest.mark.parametrize("value", [-1, 6, 255, 1 << 40])
def test_ids_out_of_range_are_refused(value: int) -> None:
    label = np.zeros((1, 32, 32), np.int64)
    label[0, 31, 31] = value
    with pytest.raises(InputRefusedError, match=rf"input label: id {value} is out of range; allowed are 0\.\.5"):
        extract_patterns(spec_of(), label, label)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 32, 48), "width 48 is not a multiple of 32"),
        ((1, 31, 32), "height 31 is not a multiple of 32"),
        ((32, 32), "expected N x H x W integers"),
        ((0, 32, 32), "expected N x H x W integers"),
        ((1, 0, 32), "expected N x H x W integers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputRefusedError, match=f"input {LABEL}: .*{said}"):
        extract_patterns(spec_of(PLAIN), np.zeros(shape, np.uint8))


def test_maps_of_another_kind_are_refused() -> None:
    label = np.zeros((1, 32, 32), np.uint8)
    with pytest.raises(InputRefusedError, match=f"input {INSTANCE}: missing"):
        extract_patterns(spec_of(EDGES), label)
    for instance in (np.zeros((1, 32, 64), np.int32), np.zeros((1, 32, 32), np.float32)):
        with pytest.raises(InputRefusedError, match=f"input {INSTANCE}: .*expected integers of shape"):
            extract_patterns(spec_of(EDGES), label, instance)
    with pytest.raises(InputRefusedError, match=f"input {LABEL}: float32"):
        extract_patterns(spec_of(PLAIN), label.astype(np.float32))
