"""A segmenter never judges what it learned from, and a model's own training samples are counted, not guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.evaluation.data import held_out_split, learned_from, open_set
from spade_deploy.evaluation.taught import apart_from_segmenter
from spade_deploy.labels.holdout import hold_out
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.spec import LabelSpec
from tests.support.own_photos import write_own_photos


@pytest.fixture
def one_set(tmp_path: Path) -> DataConfig:
    labels, images = write_own_photos(tmp_path, 10, size=(32, 32))
    return DataConfig.for_preset("custom", labels_dir=labels, images_dir=images, crop_size=(32, 32))


def with_hold_out(config: DataConfig) -> DataConfig:
    stems = [sample.stem for sample in find_samples(config, "train").samples]
    return replace(config, holdout=hold_out(stems, 0.3))


def stems(config: DataConfig, split: str) -> set[str]:
    return {sample.stem for sample in find_samples(config, split).samples}


def test_of_one_set_half_teaches_and_half_is_judged(one_set: DataConfig) -> None:
    config, split, (note,) = apart_from_segmenter(one_set, held_out_split(one_set))
    assert split == "val"
    assert not stems(config, "train") & stems(config, "val")
    assert (len(stems(config, "train")), len(stems(config, "val"))) == (5, 5)
    assert note.startswith("the segmenter learns from 5 of the 10 photos, and only the other 5 are judged")


def test_what_is_apart_already_stays(one_set: DataConfig) -> None:
    held = with_hold_out(one_set)
    assert apart_from_segmenter(held, held_out_split(held)) == (held, "val", ())
    assert len(open_set(held, "val", LabelSpec(4), (32, 32))) == 3


def test_judging_the_train_split_with_a_segmenter_of_it_is_refused(one_set: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`train_segmenter` contradicts `split` train"):
        apart_from_segmenter(with_hold_out(one_set), "train")
    with pytest.raises(ConfigError, match="`train_segmenter` contradicts `split` train"):
        apart_from_segmenter(DataConfig(), "train")
    labels, images = write_own_photos(tmp_path / "few", 3)
    few = DataConfig.for_preset("custom", labels_dir=labels, images_dir=images)
    with pytest.raises(ConfigError, match="3 photos are too few"):
        apart_from_segmenter(few, "train")


def test_the_samples_that_a_model_was_trained_on_are_counted(one_set: DataConfig, tmp_path: Path) -> None:
    held = with_hold_out(one_set)
    assert learned_from(held, held, "val") == 0
    assert learned_from(held, held, "train") == 7
    assert learned_from(held, one_set, "train") == 7  # the same folders, given by hand: three of ten were held out
    assert learned_from(one_set, one_set, "train") == 10
    labels, images = write_own_photos(tmp_path / "other", 4)
    other = DataConfig.for_preset("custom", labels_dir=labels, images_dir=images)
    assert learned_from(held, other, "train") == 0
    (tmp_path / "link").symlink_to(one_set.labels_dir or "")
    assert learned_from(held, replace(one_set, labels_dir=tmp_path / "link"), "train") == 7
    gone = replace(one_set, labels_dir=tmp_path / "gone")
    assert learned_from(gone, one_set, "train") is None
    assert learned_from(DataConfig(), one_set, "train") == 0
    assert learned_from(DataConfig(), DataConfig(), "test") == 0
    assert (learned_from(DataConfig(), DataConfig(), "train") or 0) > 100
