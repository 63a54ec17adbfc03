"""Which samples are held out: the right share, the same ones each time, and never one that is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.labels.holdout import HoldOut, hold_out, number_of
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.labels.same_photos import photos_in_both, same_photos
from tests.support.own_photos import write_own_photos

STEMS = [f"photo{number:03d}" for number in range(40)]


@pytest.mark.parametrize(("share", "count"), [(0.1, 4), (0.25, 10), (0.001, 1), (0.9, 36)])
def test_the_share_is_right(share: float, count: int) -> None:
    chosen = hold_out(STEMS, share)
    assert [chosen.count, chosen.of] == [count, 40]
    assert sum(map(chosen.holds_out, STEMS)) == count


def test_one_sample_is_left_to_learn_from() -> None:
    assert sum(map(hold_out(STEMS[:2], 0.9).holds_out, STEMS[:2])) == 1
    with pytest.raises(ConfigError, match="`holdout`: 1 samples cannot be split"):
        hold_out(STEMS[:1], 0.5)


def test_the_choice_depends_on_the_seed_and_on_names_alone() -> None:
    first, other = hold_out(STEMS, 0.25), hold_out(STEMS, 0.25, seed=1)
    assert hold_out(STEMS[::-1], 0.25) == first
    assert set(filter(first.holds_out, STEMS)) != set(filter(other.holds_out, STEMS))
    # The very number on every machine and in every version, since runs rely on it.
    assert number_of("photo000", 0) == pytest.approx(0.6004706016, abs=1e-9)


def test_a_file_that_comes_later_moves_no_other_one(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path, 12)
    config = DataConfig.for_preset("custom", labels_dir=labels, images_dir=images)
    stems = [sample.stem for sample in find_samples(config, "train").samples]
    config = replace(config, holdout=hold_out(stems, 0.25))
    before = {split: {sample.stem for sample in find_samples(config, split).samples} for split in config.splits}
    assert (len(before["train"]), len(before["val"])) == (9, 3)
    write_own_photos(tmp_path, 6, names="new")
    after = {split: {sample.stem for sample in find_samples(config, split).samples} for split in config.splits}
    for split in ("train", "val"):
        assert {stem for stem in after[split] if stem.startswith("photo")} == before[split]
    assert not after["train"] & after["val"]


def test_without_a_hold_out_folders_have_a_train_split_alone(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path, 3)
    config = DataConfig.for_preset("custom", labels_dir=labels, images_dir=images)
    assert (config.splits, config.evaluation_split) == (("train",), "train")
    with pytest.raises(ConfigError, match="no split 'val'"):
        find_samples(config, "val")


def test_folders_to_measure_on_are_the_split_val(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path / "a", 3)
    val_labels, val_images = write_own_photos(tmp_path / "b", 2, names="other")
    config = DataConfig.for_preset(
        "custom", labels_dir=labels, images_dir=images, val_labels_dir=val_labels, val_images_dir=val_images
    )
    assert config.splits == ("train", "val")
    assert [sample.stem for sample in find_samples(config, "val").samples] == ["other000", "other001"]
    assert [sample.photo.parent for sample in find_samples(config, "train").samples if sample.photo] == [images] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_images_dir": "i"}, "`val_images_dir` i needs `val_labels_dir`"),
        ({"val_labels_dir": "v"}, "`val_labels_dir` v: `val_images_dir`"),
        ({"val_labels_dir": "l", "val_images_dir": "i"}, "`val_labels_dir`: l is the folder that is trained on"),
        (
            {"val_labels_dir": "v", "val_images_dir": "w", "holdout": HoldOut(0.1, 0, 0.1, 1, 10)},
            "`holdout` contradicts `val_labels_dir` v",
        ),
    ],
)
def test_folders_that_contradict_each_other_are_refused(changes: dict[str, object], said: str) -> None:
    paths = {name: Path(value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ConfigError, match=said):
        DataConfig.for_preset("custom", labels_dir=Path("l"), images_dir=Path("i"), **paths)


def test_it_is_kept_in_json_and_older_json_has_none(tmp_path: Path) -> None:
    config = DataConfig.for_preset("custom", labels_dir=tmp_path, images_dir=tmp_path)
    held = replace(config, holdout=hold_out(STEMS, 0.1))
    assert DataConfig.from_json(held.to_json()) == held
    older = {
        name: value for name, value in config.to_json().items() if name != "holdout" and not name.startswith("val_")
    }
    assert DataConfig.from_json(older) == config
    with pytest.raises(ConfigError, match="share is 2"):
        DataConfig.from_json(held.to_json() | {"holdout": {**held.to_json()["holdout"], "share": 2.0}})


def test_a_photo_in_both_splits_is_found_by_its_content(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path / "a", 4)
    val_labels, val_images = write_own_photos(tmp_path / "b", 2, names="other", seed=5)
    config = DataConfig.for_preset(
        "custom", labels_dir=labels, images_dir=images, val_labels_dir=val_labels, val_images_dir=val_images
    )
    assert photos_in_both(config, "train", "val") == frozenset()
    content = (images / "photo001.png").read_bytes()
    (val_images / "other000.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert photos_in_both(config, "train", "val") == frozenset(), "of one size alone"
    (val_images / "other001.png").write_bytes((images / "photo002.png").read_bytes())
    assert photos_in_both(config, "train", "val") == {images / "photo002.png"}


def test_photos_of_the_same_size_are_the_same_only_if_every_byte_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 64
    for name, change in (("a", None), ("copy", None), ("start", 0), ("middle", 8192), ("end", -1)):
        changed = bytearray(content)
        if change is not None:
            changed[change] ^= 1
        (tmp_path / name).write_bytes(changed)
    (tmp_path / "longer").write_bytes(content + b"0")
    others = [tmp_path / name for name in ("copy", "start", "middle", "end", "longer", "gone")]
    assert same_photos([tmp_path / "a", tmp_path / "none"], others) == {tmp_path / "a"}
    assert same_photos([tmp_path / "a"], others[1:]) == frozenset()
