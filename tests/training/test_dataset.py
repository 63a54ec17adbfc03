"""The loader: the same augmentation for all three, and the same batches whatever happens around it."""

from __future__ import annotations

import pickle
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.samples import EarthSamples
from spade_deploy.labels.sets import label_set
from spade_deploy.spec import LabelSpec
from spade_deploy.training.dataset import (
    Batch,
    SampleSource,
    Shard,
    steps_per_epoch,
    training_batches,
    validation_labels,
)
from spade_deploy.training.splits import augmented, open_source
from spade_deploy.training.subset import Subset
from tests.support.png_writer import GREY, RGB, png

LABELS = LabelSpec(200, has_dontcare=True, has_edges=True)
COUNT = 7
EARTH = DataConfig.for_preset("earth", crop_size=(32, 32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven samples in COCO's layout whose label, instance and photo all encode the pixel's place."""
    rows, columns = np.mgrid[:20, :24]
    for n in range(COUNT):
        for folder, pixels in (
            ("label", (rows * 4 + columns * 5 + n).astype(np.uint8)),
            ("inst", (rows * 1000 + columns * 10 + n).astype(np.uint16)),
            ("img", np.stack([rows * 10, columns * 10, np.full_like(rows, n)], axis=-1).astype(np.uint8)),
        ):
            path = tmp_path / f"train_{folder}" / f"{n}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def source_of(root: Path, labels: LabelSpec = LABELS, flip: bool = True) -> SampleSource:
    config = DataConfig("coco", root, load_size=(20, 24), crop_size=(16, 16), flip=flip)
    return open_source(config, "train", labels)


def take(count: int, batches: Iterator[Batch]) -> list[Batch]:
    return list(islice(batches, count))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.stems == other.stems
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.photo, other.photo)
        assert (one.instance is None) == (other.instance is None)
        assert one.instance is None or torch.equal(one.instance, other.instance)


def places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every pixel, read from the photo."""
    pixels = ((batch.photo + 1) * 127.5).round()
    return pixels[:, 0] / 10, pixels[:, 1] / 10


def test_label_instance_and_photo_stay_together(root: Path) -> None:
    (batch,) = take(1, training_batches(source_of(root), batch_size=6, seed=0))
    assert (batch.label.shape, batch.label.dtype) == ((6, 16, 16), torch.uint8)
    assert batch.instance is not None
    assert (batch.instance.dtype, batch.photo.dtype) == (torch.int32, torch.float32)
    assert batch.photo.shape == (6, 3, 16, 16)
    rows, columns = places(batch)
    n = torch.tensor([float(stem) for stem in batch.stems])[:, None, None]
    assert torch.equal(batch.label.float(), rows * 4 + columns * 5 + n)
    assert torch.equal(batch.instance.float(), rows * 1000 + columns * 10 + n)  # up to 19,236: more than 8 bits


def test_photos_cover_minus_one_to_one(root: Path) -> None:
    Image.fromarray(np.array([[0, 255], [128, 64]], np.uint8).repeat(12, 0).repeat(12, 1)).save(root / "p.png")
    for n in range(COUNT):
        (root / "p.png").read_bytes()
        Image.open(root / "p.png").resize((24, 20), Image.Resampling.NEAREST).save(root / "train_img" / f"{n}.png")
    (batch,) = take(1, training_batches(source_of(root), batch_size=7, seed=0))
    assert (float(batch.photo.min()), float(batch.photo.max())) == (-1.0, 1.0)
    expected = torch.tensor([0, 64, 128, 255]).float() / 255 * 2 - 1
    # Measured: 1.2e-7, rounding of float32. A scale of 1 / 128 is off by 8e-3.
    assert (batch.photo.unique() - expected).abs().max() < 5e-7


def test_crops_and_flips_vary_and_flip_can_be_off(root: Path) -> None:
    batches = take(20, training_batches(source_of(root), batch_size=7, seed=0))
    corners, flipped = set(), 0
    for batch in batches:
        rows, columns = places(batch)
        flipped += int((columns[:, 0, 0] > columns[:, 0, -1]).sum())
        corners |= {(int(r), int(c)) for r, c in zip(rows[:, 0, 0], columns.amin((1, 2)), strict=True)}
    assert {row for row, _ in corners} == set(range(5))
    assert {column for _, column in corners} == set(range(9))
    # 140 fair coins: 70 +- 5.9; four standard deviations.
    assert 46 < flipped < 94
    for batch in take(20, training_batches(source_of(root, flip=False), batch_size=7, seed=0)):
        assert bool((places(batch)[1].diff(dim=2) > 0).all())


def test_an_epoch_has_every_sample_at_most_once_and_orders_differ(root: Path) -> None:
    source = source_of(root)
    assert steps_per_epoch(source, 3) == 2
    batches = take(8, training_batches(source, batch_size=3, seed=0))
    epochs = [batches[n].stems + batches[n + 1].stems for n in range(0, 8, 2)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len(set(epochs)) == 4
    other = take(2, training_batches(source, batch_size=3, seed=1))
    assert other[0].stems + other[1].stems != epochs[0]


def test_a_resumed_run_sees_the_batches_of_an_unbroken_one(root: Path) -> None:
    source = source_of(root)
    unbroken = take(9, training_batches(source, batch_size=3, seed=4))
    for start in (1, 2, 5):
        assert_same(take(9 - start, training_batches(source, batch_size=3, seed=4, start_step=start)), unbroken[start:])
    # A generator that runs along instead would repeat its numbers: two epochs would be augmented alike.
    assert not torch.equal(unbroken[0].photo, unbroken[2].photo)


def test_workers_change_nothing_and_leave_the_global_generator_alone(root: Path) -> None:
    (root / "train_label" / "2.png").write_bytes(b"broken")
    source = source_of(root)
    told: list[str] = []
    alone = take(6, training_batches(source, batch_size=3, seed=4, start_step=1))
    state = torch.get_rng_state()
    batches = training_batches(source, batch_size=3, seed=4, start_step=1, workers=2, on_skip=told.append)
    assert_same(take(6, batches), alone)
    batches.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(told) == 1


def test_what_cannot_be_used_is_told_once_and_replaced(root: Path) -> None:
    good = take(12, training_batches(source_of(root), batch_size=3, seed=2))
    (root / "train_label" / "2.png").write_bytes(b"broken")  # damaged
    Image.fromarray(np.full((20, 24), 240, np.uint8)).save(root / "train_label" / "3.png")  # out of range
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "train_img" / "5.png")  # another size
    told: list[str] = []
    batches = take(12, training_batches(source_of(root), batch_size=3, seed=2, on_skip=told.append))
    assert sorted(Path(message.split(":")[0]).name for message in told) == ["2.png", "3.png", "5.png"]
    replaced = {"2": "4", "3": "4", "5": "6"}
    for before, after in zip(good, batches, strict=True):
        assert after.stems == tuple(replaced.get(stem, stem) for stem in before.stems)
        for n, stem in enumerate(before.stems):
            assert torch.equal(after.photo[n], before.photo[n]) == (stem not in replaced)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_an_error_with_its_own_text(root: Path, workers: int) -> None:
    for path in (root / "train_img").iterdir():
        path.write_bytes(b"broken")
    batches = training_batches(source_of(root), batch_size=3, seed=0, workers=workers)
    with pytest.raises(
        DatasetError, match=r"^none of the 7 training samples can be used; the first one: .*not an image"
    ) as caught:
        next(batches)
    assert caught.value.hint == f"`spade check-labels {shlex.quote(str(root))} --preset coco` shows what is wrong"
    with pytest.raises(DatasetError, match="none of the 7"):
        validation_labels(source_of(root), 2)


def test_evaluation_is_resized_without_crop_or_flip(root: Path) -> None:
    source = source_of(root)
    labels, instances, photos = validation_labels(source, 3)
    assert instances is not None
    assert (labels.shape, instances.shape, photos.shape) == ((3, 16, 16), (3, 16, 16), (3, 3, 16, 16))
    for n, index in enumerate((0, 2, 4)):  # evenly spaced
        path = root / "train_label" / f"{index}.png"
        expected = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(labels[n].numpy(), expected)
    assert torch.equal(validation_labels(source, 3)[0], labels)
    assert len(validation_labels(source, 100)[0]) == COUNT


def test_sources_refuse_what_the_model_needs_and_they_lack(root: Path) -> None:
    batch_size = COUNT + 1
    with pytest.raises(DatasetError, match="7 samples are fewer than one batch of 8"):
        training_batches(source_of(root), batch_size=batch_size, seed=0)
    with pytest.raises(ConfigError, match="`batch_size`"):
        steps_per_epoch(source_of(root), 0)
    with pytest.raises(ConfigError, match="`workers` -1"):
        training_batches(source_of(root), batch_size=1, seed=0, workers=-1)
    no_photos = DataConfig.for_preset("custom", labels_dir=root / "train_label")
    with pytest.raises(DatasetError, match="needs photos"):
        open_source(no_photos, "train", LabelSpec(200))
    no_instances = DataConfig.for_preset("custom", labels_dir=root / "train_label", images_dir=root / "train_img")
    with pytest.raises(DatasetError, match="edge channel needs instance maps"):
        open_source(no_instances, "train", LABELS)
    assert open_source(no_instances, "train", LabelSpec(200)).load(0, None).instance is None


def test_wide_label_sets_are_int32(root: Path) -> None:
    (batch,) = take(1, training_batches(source_of(root, LabelSpec(300)), batch_size=2, seed=0))
    assert batch.label.dtype == torch.int32
    assert batch.instance is None


def test_a_sample_without_a_photo_names_its_label_map(root: Path) -> None:
    source = source_of(root)
    (root / "train_img" / "0.png").unlink()
    with pytest.raises(LabelMapError, match=r"train_img/0\.png: there is no such file"):
        source.load(0, None)


def test_augmentation_is_the_same_for_views_of_any_type(root: Path) -> None:
    arrays = source_of(root).load(0, None)
    first, second = (augmented(arrays, (8, 8), True, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first.photo, second.photo)
    assert first.label.shape == (8, 8)


def test_earth_is_cut_at_the_size_that_is_asked_for() -> None:
    source = open_source(EARTH, "val", label_set("earth"))
    (batch,) = take(1, training_batches(source, batch_size=2, seed=0))
    assert batch.label.shape == (2, 32, 32)
    assert batch.stems[0].startswith("val-")
    assert len(pickle.dumps(source)) < 100_000  # names, no pixels
    assert len(open_source(DataConfig(), "train", label_set("earth"))) == 348
    larger = open_source(DataConfig("earth", load_size=(40, 40), crop_size=(32, 32)), "val", label_set("earth"))
    labels, instances, _ = validation_labels(larger, 4)
    assert (labels.shape, instances) == ((4, 32, 32), None)


def test_evaluation_tiles_of_another_size_are_spread_over_all_of_them() -> None:
    labels, config = label_set("earth"), DataConfig("earth", load_size=(40, 40), crop_size=(32, 32))
    source, tiles = open_source(config, "val", labels), EarthSamples("val", labels, (32, 32))
    assert len(source) < len(tiles)
    for index in (0, len(source) // 2, len(source) - 1):
        expected = tiles.load(index * len(tiles) // len(source))
        assert np.array_equal(source.load(index, None).photo, expected.photo)


def test_a_part_of_a_source_has_numbers_of_its_own() -> None:
    whole = open_source(EARTH, "val", label_set("earth"))
    near = [index for index in whole.overlapping(20) if index != 20]
    far = next(index for index in range(len(whole)) if index not in whole.overlapping(20))
    part = Subset(whole, [far, 20, near[0]])
    assert len(near) > 1
    assert set(part.overlapping(1)) == {1, 2}
    assert [part.stem(index) for index in range(3)] == [whole.stem(index) for index in (far, 20, near[0])]
    assert np.array_equal(part.load(2, None).label, whole.load(near[0], None).label)


def test_processes_share_each_part_of_a_batch() -> None:
    """So that batch norm, which sees a part at a time, sees the samples that it sees in one process."""
    shares = [Shard(rank, 2, 2).positions(8) for rank in range(2)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert Shard(0, 1, 2).positions(8) == list(range(8))


def test_earth_refuses_other_labels_and_shapes() -> None:
    with pytest.raises(ConfigError, match="17 labels"):
        open_source(EARTH, "val", LabelSpec(16))
    with pytest.raises(ConfigError, match="17 labels"):
        open_source(EARTH, "val", LabelSpec(17, has_edges=True))
    oblong = DataConfig("earth", load_size=(64, 128), crop_size=(64, 128))
    with pytest.raises(ConfigError, match="square, not 64 x 128"):
        open_source(oblong, "val", label_set("earth"))


@pytest.mark.shared
def test_the_real_coco_stuff_samples(shared_folder: Path) -> None:
    config = DataConfig.for_preset("coco", root=shared_folder / "data" / "coco_stuff_sample", crop_size=(64, 64))
    source = open_source(config, "train", label_set("coco"))
    told: list[str] = []
    batches = take(4, training_batches(source, batch_size=6, seed=0, on_skip=told.append))
    assert not told
    assert {stem for batch in batches[:2] for stem in batch.stems} <= {source.stem(n) for n in range(13)}
    for batch in batches:
        assert int(batch.label.max()) == 182  # unknown, 255 in every one of the files
        assert batch.instance is not None
        assert int(batch.instance.max()) > 0
        assert batch.photo.shape == (6, 3, 64, 64)
    labels, _, _ = validation_labels(source, 13)
    assert labels.shape == (13, 64, 64)


def test_photos_of_16_bits_train_as_their_8_bit_copies(root: Path) -> None:
    before = take(2, training_batches(source_of(root), batch_size=3, seed=0))
    for n in range(COUNT):
        path = root / "train_img" / f"{n}.png"
        pixels = np.asarray(Image.open(path)).astype(np.int64)
        path.write_bytes(png(pixels * 257, RGB, 16))
    assert_same(take(2, training_batches(source_of(root), batch_size=3, seed=0)), before)
    grey = np.arange(20 * 24).reshape(20, 24, 1) * 136
    for n in range(COUNT):
        (root / "train_img" / f"{n}.png").write_bytes(png(grey, GREY, 16))
    _, _, photo = validation_labels(source_of(root), 1)
    expected = np.asarray(Image.fromarray((grey[..., 0] >> 8).astype(np.uint8)).convert("RGB").resize((16, 16), 3))
    np.testing.assert_array_equal(((photo[0] + 1) * 127.5).round().numpy().transpose(1, 2, 0), expected)


@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_turned_photos_train_upright_over_their_label_maps(root: Path, orientation: int) -> None:
    before = take(2, training_batches(source_of(root), batch_size=3, seed=0))
    turn_back = {1: None, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for n in range(COUNT):
        path = root / "train_img" / f"{n}.png"
        with Image.open(path) as image:
            stored = image.transpose(turn_back) if turn_back is not None else image.copy()
        stored.save(path, exif=exif)
    assert_same(take(2, training_batches(source_of(root), batch_size=3, seed=0)), before)


def test_transparent_photos_are_skipped_and_said(root: Path) -> None:
    Image.fromarray(np.zeros((20, 24, 4), np.uint8)).save(root / "train_img" / "2.png")
    told: list[str] = []
    take(3, training_batches(source_of(root), batch_size=7, seed=0, on_skip=told.append))
    assert [("2.png" in message, "480 pixels are transparent" in message) for message in told] == [(True, True)]
