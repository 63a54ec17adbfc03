"""Segments, scores and choices, the scores against a second writing that counts point by point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spade_deploy.retrieval import retrieve as module
from spade_deploy.retrieval.build import BankBuilder, fair_shares
from spade_deploy.retrieval.retrieve import NOTHING, box_scores, retrieve, scores
from spade_deploy.retrieval.segments import GRID, MOST_SEGMENTS, OUTSIDE, find_segments
from spade_deploy.spec import LabelSpec
from tests.support.memory_banks import BLUE, LABELS, RED, bank_of, blocks, photo_of, plain


def score_of(mask: np.ndarray, context: np.ndarray, other_mask: np.ndarray, other_context: np.ndarray) -> float:
    """The score by its definition in sets: of points, and of (point, class)."""
    own = {(row, column) for row in range(GRID) for column in range(GRID) if mask[row, column]}
    other = {(row, column) for row in range(GRID) for column in range(GRID) if other_mask[row, column]}

    def classes(grid: np.ndarray) -> set[tuple[int, int, int]]:
        points = ((row, column, int(grid[row, column])) for row in range(GRID) for column in range(GRID))
        return {point for point in points if point[2] != OUTSIDE}

    around, other_around = classes(context), classes(other_context)
    shape = len(own & other) / len(own | other)
    return shape + len(around & other_around) / len(around | other_around)


def overlap_of(size: np.ndarray, other: np.ndarray) -> float:
    """Pixels that two boxes share, corner on corner, over those of either; counted one by one."""
    pixels, others = ({(row, column) for row in range(h) for column in range(w)} for h, w in (size, other))
    return len(pixels & others) / len(pixels | others)


def test_a_small_patch_does_not_fill_an_image() -> None:
    """Both are full rectangles: scaled to one size, the small one is the more alike by its surroundings."""
    whole = np.zeros((64, 64), np.uint8)
    small, large = (0, 0, *plain(2, 3, RED)), (0, 1, *plain(60, 60, BLUE))
    bank = bank_of([small, large], depth=[0] * 6)
    around = bank.context.copy()
    around[:] = find_segments(whole).context[0]
    around[1, GRID // 2 :] = 3
    bank = replace(bank, context=around)
    assert retrieve(bank, find_segments(whole)).tolist() == [1]
    assert box_scores(np.array([[64, 64]]), bank.size).tolist() == [[6 / 4096, 3600 / 4096]]


def test_segments_of_a_map() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[8:24, 16:48] = 2
    label[40:48, 0:8] = 3
    label[0, 60] = 1  # a single pixel is less than a thousandth
    found = find_segments(label)
    assert found.label.tolist() == [0, 2, 3]
    assert found.area.tolist() == [64 * 64 - 512 - 64 - 1, 512, 64]
    assert found.box.tolist() == [[0, 0, 64, 64], [8, 16, 16, 32], [40, 0, 8, 8]]
    assert found.mask[1].all()
    assert found.inside(1).all()
    assert found.inside(1).shape == (16, 32)
    expected = label[2::4, 2::4] == 0
    np.testing.assert_array_equal(found.mask[0], expected)
    # The box of 8 x 8 is widened by 2 on each side: rows 38 to 49, columns -2 to 9, of which two lie outside.
    rows, columns = (start + ((2 * np.arange(GRID) + 1) * 12) // (2 * GRID) for start in (38, -2))
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            assert found.context[2, row, column] == (OUTSIDE if x < 0 else label[y, x])
    assert (found.context[2] == OUTSIDE).any()
    assert find_segments(label, unknown_id=2).label.tolist() == [0, 3]


def test_a_map_of_noise_has_a_bounded_number_of_segments() -> None:
    label = np.kron(np.random.default_rng(0).integers(0, 99, (24, 24)), np.ones((8, 8), int))
    found = find_segments(label)
    assert len(found) == MOST_SEGMENTS
    assert (np.diff(found.area) <= 0).all()


def test_scores_are_those_of_the_second_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [blocks(seed, cell) for seed, cell in ((0, 16), (1, 8), (2, 24))]
    queries, *others = [find_segments(label) for label in maps]
    mask = np.concatenate([one.mask for one in others])
    context = np.concatenate([one.context for one in others])
    found = scores(queries.mask, queries.context, mask, context)
    expected = [
        [score_of(*query, *other) for other in zip(mask, context, strict=True)]
        for query in zip(queries.mask, queries.context, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert found.min() > 0
    assert found.max() < 2
    assert scores(queries.mask, queries.context, queries.mask, queries.context).diagonal().tolist() == [2.0] * len(
        queries
    )
    monkeypatch.setattr(module, "_AT_ONCE", 1)  # one query at a time
    np.testing.assert_array_equal(scores(queries.mask, queries.context, mask, context), found)


def test_the_best_segment_of_the_class_is_taken() -> None:
    builder = BankBuilder(LABELS)
    for number in range(6):
        builder.add(number, blocks(number, 16), photo_of(number))
    bank = builder.bank(1000)
    wanted = find_segments(blocks(3, 16))
    chosen = retrieve(bank, wanted)
    # The very segments are in the bank: each is found, and is of its own photo.
    assert (bank.photo[chosen] == 3).all()
    np.testing.assert_array_equal(bank.mask[chosen], wanted.mask)
    without = retrieve(bank, wanted, excluded=[3])
    assert not np.isin(bank.photo[without], [3]).any()
    for index, row in enumerate(without):
        rows = np.flatnonzero((bank.label == wanted.label[index]) & (bank.photo != 3))
        one, own_size = (wanted.mask[index], wanted.context[index]), wanted.box[index, 2:]
        by_hand = [
            score_of(*one, bank.mask[other], bank.context[other]) + overlap_of(own_size, bank.size[other])
            for other in rows
        ]
        assert row == rows[int(np.argmax(by_hand))]
    assert (retrieve(bank, wanted, excluded=range(6)) == NOTHING).all()
    unseen = replace(wanted, label=np.full(len(wanted), 5, np.int32))
    assert (retrieve(bank, unseen) == NOTHING).all()


def test_of_equal_segments_the_first_is_taken() -> None:
    builder = BankBuilder(LABELS)
    for number in (4, 7, 9):
        builder.add(number, blocks(0, 16), photo_of(number))
    bank = builder.bank(1000)
    chosen = retrieve(bank, find_segments(blocks(0, 16)))
    assert set(bank.photo[chosen].tolist()) == {4}
    assert set(bank.photo[retrieve(bank, find_segments(blocks(0, 16)), [4])].tolist()) == {7}


def test_a_bank_has_a_fair_share_of_each_class() -> None:
    assert fair_shares([5, 0, 100, 100], 25) == [5, 0, 10, 10]
    assert fair_shares([5, 0, 1, 2], 100) == [5, 0, 1, 2]
    assert fair_shares([9, 9, 9], 7) == [3, 2, 2]
    assert fair_shares([], 7) == []
    builder = BankBuilder(LabelSpec(6, has_dontcare=True))
    for number in range(20):
        builder.add(number, blocks(number, 16), photo_of(number))
    bank = builder.bank(40)
    assert len(bank) == 40
    assert np.bincount(bank.label, minlength=7).tolist() == [10, 10, 10, 10, 0, 0, 0]
    for label in range(4):
        photos = bank.photo[bank.label == label]
        assert (np.diff(photos) >= 0).all()
        assert len(set(photos.tolist())) > 5  # spread over the photos
    assert len(BankBuilder(LABELS).bank(10)) == 0
