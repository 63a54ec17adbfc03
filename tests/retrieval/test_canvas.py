"""The canvas of banks that were made by hand, every value of it; and the bank's file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.retrieval.bank import BANK_TYPES
from spade_deploy.retrieval.bank_file import read_bank, write_bank
from spade_deploy.retrieval.build import PATCH_SIDE, BankBuilder
from spade_deploy.retrieval.canvas import canvas_pixels, make_canvas, make_canvases, near_borders
from spade_deploy.spec import LabelSpec
from tests.support.memory_banks import BLUE, GREEN, LABELS, RED, bank_of, blocks, photo_of, plain

MAP = np.zeros((64, 64), np.uint8)
MAP[8:24, 16:48] = 2
MAP[40:56, 40:56] = 3


def painted(*parts: tuple[slice, slice, tuple[int, int, int]], borders: np.ndarray | None = None) -> np.ndarray:
    """The canvas of 64 x 64 with these rectangles in their order, holes elsewhere and at borders."""
    colors, hole = np.zeros((64, 64, 3)), np.ones((64, 64), bool)
    for rows, columns, color in parts:
        colors[rows, columns], hole[rows, columns] = color, False
    hole |= near_borders(MAP) if borders is None else borders
    canvas = np.zeros((4, 64, 64), np.float32)
    canvas[:3] = np.where(hole, 0, (colors.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1))
    canvas[3] = hole
    return canvas


ALL = slice(None)
LAND = (slice(8, 24), slice(16, 48))
SQUARE = (slice(40, 56), slice(40, 56))


def test_every_value_of_a_canvas() -> None:
    bank = bank_of([(0, 0, *plain(64, 64, BLUE)), (2, 0, *plain(4, 8, GREEN))], depth=[0, 1, 2, 3, 4, 5])
    found = make_canvas(bank, MAP)
    # Class 3 has no segment in the bank, so that its square is covered by what lies behind it.
    expected = painted((ALL, ALL, BLUE), (*LAND, GREEN))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(make_canvases(bank, np.stack([MAP, MAP])), np.stack([expected] * 2))
    np.testing.assert_array_equal(make_canvas(bank, MAP, unknown_id=2), painted((ALL, ALL, BLUE)))
    # Without the background, nothing covers the square: it is a hole, as is the sea.
    only = bank_of([(2, 0, *plain(16, 32, GREEN))], depth=[0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(make_canvas(only, MAP), painted((*LAND, GREEN)))
    pixels = canvas_pixels(make_canvas(only, MAP))
    assert pixels[12, 20].tolist() == list(GREEN)
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_the_order_decides_what_lies_in_front() -> None:
    patches = [(0, 0, *plain(64, 64, BLUE)), (2, 0, *plain(16, 32, GREEN)), (3, 0, *plain(16, 16, RED))]
    front = bank_of(patches, depth=[0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(make_canvas(front, MAP), painted((ALL, ALL, BLUE), (*LAND, GREEN), (*SQUARE, RED)))
    sea_in_front_of_land = replace(front, depth=np.array([1, 5, 0, 2, 3, 4], np.int32))
    np.testing.assert_array_equal(make_canvas(sea_in_front_of_land, MAP), painted((ALL, ALL, BLUE), (*SQUARE, RED)))


def test_within_a_class_the_smaller_segment_lies_in_front() -> None:
    """A pond of the sea's class on an island: the sea's patch has the whole box, the pond inside of it."""
    label = np.zeros((64, 64), np.uint8)
    label[16:48, 16:48] = 2
    label[24:40, 24:40] = 0
    bank = bank_of([(0, 0, *plain(64, 64, BLUE)), (0, 0, *plain(16, 16, GREEN))], depth=[0, 1, 2, 3, 4, 5])
    pond = (slice(24, 40), slice(24, 40), GREEN)
    np.testing.assert_array_equal(
        make_canvas(bank, label), painted((ALL, ALL, BLUE), pond, borders=near_borders(label))
    )


def test_the_order_of_classes_follows_their_sizes_in_the_photos() -> None:
    builder = BankBuilder(LABELS)
    builder.add(0, MAP, photo_of(0, 64))
    assert builder.bank(10).depth.tolist() == [0, 3, 1, 2, 4, 5]  # the sea, the land, the square; then what never was


def test_a_patch_covers_its_own_shape_alone() -> None:
    colors, inside = plain(16, 32, GREEN)
    inside[:, :16] = False
    found = make_canvas(bank_of([(2, 0, colors, inside)], depth=[0] * 6), MAP)
    np.testing.assert_array_equal(found, painted((slice(8, 24), slice(32, 48), GREEN)))


def test_a_patch_of_photo_pixels_keeps_them_and_is_scaled_to_other_sizes() -> None:
    photo = photo_of(5, 64)
    builder = BankBuilder(LABELS)
    builder.add(0, MAP, photo)
    bank = builder.bank(10)
    same = make_canvas(bank, MAP)
    hole = near_borders(MAP)
    np.testing.assert_array_equal(canvas_pixels(same)[~hole], photo[~hole])
    assert (same[3] == hole).all()
    twice = np.kron(MAP, np.ones((2, 2), np.uint8))
    found = make_canvas(bank, twice)
    assert found.shape == (4, 128, 128)
    assert (found[3] == near_borders(twice)).all()
    # Twice the size, bilinear: the mean of four neighbours of a pixel's corner lies between them.
    inside = canvas_pixels(found)[50, 20].astype(int)
    around = photo[24:27, 9:12].reshape(-1, 3).astype(int)
    assert (around.min(0) <= inside).all()
    assert (inside <= around.max(0)).all()
    assert make_canvas(bank, MAP[:, :32]).shape == (4, 64, 32)


def test_borders_are_taken_away_on_both_sides() -> None:
    label = np.zeros((128, 128), np.uint8)
    label[:, 64:] = 1
    assert np.flatnonzero(near_borders(label)[7]).tolist() == [63, 64]
    large = np.kron(label, np.ones((2, 2), np.uint8))
    assert np.flatnonzero(near_borders(large)[7]).tolist() == [126, 127, 128, 129]
    assert not near_borders(np.zeros((32, 32), np.uint8)).any()


def test_training_never_sees_the_own_photo_and_leaves_segments_out() -> None:
    builder = BankBuilder(LABELS)
    own, other = blocks(0, 16), blocks(1, 16)
    builder.add(0, own, np.full((96, 96, 3), RED, np.uint8))
    builder.add(1, other, np.full((96, 96, 3), BLUE, np.uint8))
    bank = builder.bank(1000)
    covered = make_canvas(bank, own, excluded=[0])
    seen = canvas_pixels(covered)[covered[3] == 0]
    assert len(seen)
    assert (seen == BLUE).all()
    plain_canvas = make_canvas(bank, own)
    assert (canvas_pixels(plain_canvas)[plain_canvas[3] == 0] == RED).all()
    drawn = [make_canvas(bank, own, rng=np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert max(canvas[3].sum() for canvas in drawn) > plain_canvas[3].sum()
    everything = make_canvases(None, own[None])
    assert everything.shape == (1, 4, 96, 96)
    assert not everything[:, :3].any()
    assert (everything[:, 3] == 1).all()


def test_large_patches_are_scaled_down() -> None:
    builder = BankBuilder(LABELS)
    builder.add(0, np.zeros((100, 400), np.uint8), np.full((100, 400, 3), GREEN, np.uint8))
    bank = builder.bank(10)
    assert bank.size.tolist() == [[32, PATCH_SIDE]]
    assert bank.nbytes < 40_000
    found = make_canvas(bank, np.zeros((100, 400), np.uint8))
    assert (canvas_pixels(found) == GREEN).all()


def test_the_file_of_a_bank(tmp_path: Path) -> None:
    builder = BankBuilder(LABELS)
    for number in range(3):
        builder.add(number, blocks(number, 16), photo_of(number))
    bank = builder.bank(20)
    path = tmp_path / "bank.npz"
    write_bank(path, bank)
    again = read_bank(path, LABELS)
    for name in BANK_TYPES:
        np.testing.assert_array_equal(getattr(again, name), getattr(bank, name))
    write_bank(tmp_path / "second.npz", again)
    assert (tmp_path / "second.npz").read_bytes() == path.read_bytes()
    assert copy.deepcopy(bank) is bank
    with pytest.raises(ConfigError, match=r"bank.npz: is a memory bank of 6 ids, the model has 7"):
        read_bank(path, LabelSpec(7))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"bank.npz is no memory bank that can be read"):
        read_bank(path, LABELS)
    np.savez(path, label=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="it holds"):
        read_bank(path, LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.array([2, 0], np.int32)}, "label is not ascending"),
        ({"label": np.array([0, 6], np.int32)}, "below 6"),
        ({"label": np.array([0, 2], np.int64)}, "label is int64 of 2, expected int32 of 2"),
        ({"photo": np.zeros(3, np.int32)}, "photo is int32 of 3, expected int32 of 2"),
        ({"size": np.array([[64, 64], [4, 9]], np.int32)}, "colors is uint8 of 4128 x 3, expected uint8 of 4132 x 3"),
        ({"size": np.array([[-64, -64], [4, 8]], np.int32)}, "a patch without pixels"),
    ],
)
def test_a_bank_that_contradicts_itself(change: dict[str, np.ndarray], message: str) -> None:
    bank = bank_of([(0, 0, *plain(64, 64, BLUE)), (2, 0, *plain(4, 8, GREEN))], depth=[0] * 6)
    with pytest.raises(ConfigError, match=message):
        replace(bank, **change)
