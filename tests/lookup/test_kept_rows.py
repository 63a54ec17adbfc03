"""Rows that are kept from map to map: each pixel gets the row of its own pattern, whatever moved or went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import Arrays
from spade_deploy.lookup import kept_rows
from spade_deploy.lookup.kept_rows import KeptRows, pattern_keys
from spade_deploy.lookup.tables import extract_patterns, level_names, modulated_channels
from spade_deploy.spec import GeneratorSpec, LabelSpec

SPEC = GeneratorSpec(LabelSpec(9), base_channels=2, hidden_channels=4, height=64, width=64)
STRIDES = list(modulated_channels(SPEC))
COLUMNS = {stride: {f"rows_{stride}_gamma": 3, f"rows_{stride}_beta": 2} for stride in STRIDES}
Map = np.ndarray[Any, Any]


def tables_for(label: Map) -> Arrays:
    found = extract_patterns(SPEC, label[None])
    assert found is not None
    return found.to_inputs()


def windows(tables: Arrays, stride: int) -> Map:
    """The whole window of each pattern, as floats: what its row has to be made of."""
    codes, patterns = (tables[name] for name in level_names(stride)[:2])
    outside = np.full((1, codes.shape[1]), 50)
    return np.concatenate([codes, outside])[patterns].reshape(len(patterns), -1).astype(np.float64)


def right_rows(tables: Arrays) -> Arrays:
    """Rows that are another for every window."""
    found = {}
    for stride, names in COLUMNS.items():
        whole = windows(tables, stride)
        for number, (name, columns) in enumerate(names.items()):
            factors = np.random.default_rng([stride, number]).standard_normal((whole.shape[1], columns))
            found[name] = (whole @ factors).astype(np.float32)
    return found


@dataclass
class LabelSide:
    """It makes rows, and remembers for how many patterns of each level it was asked."""

    asked: list[dict[int, int]] = field(default_factory=list)
    fails: bool = False

    def __call__(self, tables: Arrays) -> Arrays:
        if self.fails:
            raise MemoryError
        for stride in STRIDES:
            codes, patterns, _ = level_names(stride)
            assert tables[codes].dtype == tables[patterns].dtype == np.int32
            assert tables[patterns].max() <= len(tables[codes])
        self.asked.append({stride: len(tables[level_names(stride)[1]]) for stride in STRIDES})
        return right_rows(tables)


def assert_right(kept: KeptRows, side: LabelSide, label: Map) -> None:
    tables = tables_for(label)
    found = kept.rows_of(tables, side)
    assert found is not None
    right = right_rows(tables)
    for stride, names in COLUMNS.items():
        index = level_names(stride)[2]
        assert found[index].dtype == np.int32
        for name in names:
            assert found[name].flags.c_contiguous
            np.testing.assert_allclose(found[name][found[index]], right[name][tables[index]], rtol=1e-6)


def drawing(seed: int, size: tuple[int, int] = (64, 64)) -> Map:
    """A few large rectangles."""
    rng, label = np.random.default_rng(seed), np.zeros(size, np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        label[y : y + 30, x : x + 20] = rng.integers(0, 9)
    return label


def edit(label: Map, rng: np.random.Generator) -> Map:
    y, x = rng.integers(0, label.shape[0] - 6), rng.integers(0, label.shape[1] - 6)
    found = label.copy()
    found[y : y + 6, x : x + 6] = rng.integers(0, 9)
    return found


def test_a_sequence_of_edits_gets_its_own_rows() -> None:
    kept, side, rng = KeptRows(SPEC, COLUMNS, 1 << 30), LabelSide(), np.random.default_rng(0)
    label, other = drawing(0), drawing(1)
    past = [label]
    for number in range(30):
        label = edit(label, rng)
        past.append(label)
        assert_right(kept, side, label)
        if number % 5 == 0:
            assert_right(kept, side, other)
            assert_right(kept, side, drawing(number, (96, 32)))  # another size
    asked = len(side.asked)
    for undone in reversed(past[1:]):
        assert_right(kept, side, undone)
    assert len(side.asked) == asked, "rows of maps that were there before are not made again"


def test_only_the_rows_of_new_patterns_are_asked_for() -> None:
    kept, side = KeptRows(SPEC, COLUMNS, 1 << 30), LabelSide()
    label = drawing(0)
    edited = label.copy()
    edited[20:26, 20:26] = 8
    for one in (label, edited):
        assert_right(kept, side, one)
    for stride in STRIDES:
        before, after = ({row.tobytes() for row in windows(tables_for(one), stride)} for one in (label, edited))
        assert side.asked[0][stride] == len(before)
        assert side.asked[1][stride] == max(1, len(after - before)), "a graph takes no empty table: one may be extra"
    assert side.asked[1][1] > 10


def test_what_it_keeps_is_bounded_and_the_oldest_goes() -> None:
    label, side, rng = drawing(0), LabelSide(), np.random.default_rng(1)
    whole = KeptRows(SPEC, COLUMNS, 1 << 30)
    assert_right(whole, side, label)
    limit = 3 * whole.num_bytes
    kept, drops = KeptRows(SPEC, COLUMNS, limit), 0
    for number in range(40):
        label = edit(drawing(0), rng)
        before = kept.num_bytes
        assert_right(kept, side, label)
        assert_right(kept, side, drawing(number % 7))
        assert 0 < kept.num_bytes <= limit
        drops += kept.num_bytes < before
    assert drops >= 2, "the limit was never reached"
    asked = len(side.asked)
    assert_right(kept, side, label)
    assert_right(kept, side, drawing(39 % 7))
    assert len(side.asked) == asked, "the newest rows are kept"


def test_a_map_with_too_many_rows_is_not_kept_and_drops_nothing() -> None:
    label, side = drawing(0), LabelSide()
    first = KeptRows(SPEC, COLUMNS, 1 << 30)
    assert_right(first, side, label)
    kept = KeptRows(SPEC, COLUMNS, 2 * first.num_bytes)
    assert_right(kept, side, label)
    asked = len(side.asked)
    noise = np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8)
    assert kept.rows_of(tables_for(noise), side) is None
    assert_right(kept, side, label)
    assert len(side.asked) == asked


def test_a_failure_leaves_no_row_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    label, side, rng = drawing(0), LabelSide(), np.random.default_rng(0)
    kept = KeptRows(SPEC, COLUMNS, 1 << 30)
    assert_right(kept, side, label)
    label = edit(label, rng)
    side.fails = True
    with pytest.raises(MemoryError):
        kept.rows_of(tables_for(label), side)
    side.fails = False
    assert_right(kept, side, label)

    whole = KeptRows(SPEC, COLUMNS, 1 << 30)
    assert_right(whole, side, drawing(9))
    small = KeptRows(SPEC, COLUMNS, 3 * whole.num_bytes)
    real, calls = np.take, 0

    def take(*values: Any, **named: Any) -> Any:  # memory ends while rows move
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise MemoryError
        return real(*values, **named)

    failed = 0
    monkeypatch.setattr(kept_rows.np, "take", take)
    for number in range(30):
        try:
            small.rows_of(tables_for(drawing(number)), side)
        except MemoryError:
            failed += 1
        with monkeypatch.context() as patch:
            patch.setattr(kept_rows.np, "take", real)
            assert_right(small, side, drawing(number))
            assert small.num_bytes <= 3 * whole.num_bytes
    assert failed > 3


def test_a_table_that_names_a_pattern_twice_harms_no_other() -> None:
    """No label map makes one, but whoever brings tables may."""
    kept, side, label = KeptRows(SPEC, COLUMNS, 1 << 30), LabelSide(), drawing(0)
    tables = tables_for(label)
    for stride in STRIDES:
        patterns = level_names(stride)[1]
        tables[patterns] = np.concatenate([tables[patterns], tables[patterns][:3]])
    assert kept.rows_of(tables, side) is not None
    for number in range(4):
        assert_right(kept, side, drawing(number))


def test_a_pattern_that_is_known_by_less_than_its_window_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of another pattern makes other numbers: the tests above ask for the right ones."""
    real = kept_rows.pattern_keys
    monkeypatch.setattr(kept_rows, "pattern_keys", lambda *given: [key[:-4] for key in real(*given)])
    rng, label, wrong = np.random.default_rng(0), drawing(0), 0
    kept, side = KeptRows(SPEC, COLUMNS, 1 << 30), LabelSide()
    for _ in range(20):
        label = edit(label, rng)
        try:
            assert_right(kept, side, label)
        except AssertionError:
            wrong += 1
    assert wrong > 5


def test_many_codes_are_told_apart() -> None:
    """16 bits hold no more than 65,536 codes."""
    codes, patterns, index = level_names(1)
    same = np.zeros((1, 9), np.int32)
    tables = {codes: np.array([[0] * 9, [1 << 16] * 9], np.int32), patterns: np.concatenate([same, same + 1])}
    first, second = pattern_keys({**tables, index: same}, 1)
    assert first != second
    assert len(first) == 81 * 4
