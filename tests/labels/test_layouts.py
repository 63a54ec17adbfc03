"""Layouts and pairing: what each preset finds, and that every file that pairs with nothing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.labels.layouts import PRESET_SPLITS, DataConfig
from spade_deploy.labels.pairs import find_samples, has_layout, pair_files

COCO = ("train_label/a.png", "train_img/a.jpg", "train_inst/a.png")
Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def named(config: DataConfig, split: str) -> list[tuple[str, ...]]:
    samples = find_samples(config, split).samples
    return [
        (
            s.stem,
            *(str(path.relative_to(config.root or path.parents[1])) for path in (s.label, s.photo, s.instance) if path),
        )
        for s in samples
    ]


def config_of(preset: str, root: Path) -> DataConfig:
    return DataConfig.for_preset(preset, root=root)


def test_coco_and_facades(tree: Tree) -> None:
    root = tree(*COCO, "val_label/b.png", "val_img/b.jpg", "val_inst/b.png", "test_label/c.png", "test_img/c.jpg")
    assert named(config_of("coco", root), "train") == [("a", *COCO)]
    assert named(config_of("coco", root), "val") == [("b", "val_label/b.png", "val_img/b.jpg", "val_inst/b.png")]
    assert named(config_of("facades", root), "test") == [("c", "test_label/c.png", "test_img/c.jpg")]


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        ("images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"),
        ("any/where/ADE_train_00000001.jpg", "any/where/ADE_train_00000001.png"),
    ],
)
def test_ade20k_is_found_in_either_layout(tree: Tree, photo: str, label: str) -> None:
    root = tree(photo, label, "images/validation/ADE_val_00000001.jpg", "annotations/validation/ADE_val_00000001.png")
    assert named(config_of("ade20k", root), "train") == [("ADE_train_00000001", label, photo)]
    assert [sample.stem for sample in find_samples(config_of("ade20k", root), "val").samples] == ["ADE_val_00000001"]


def test_the_full_ade20k_is_not_taken_for_label_maps(tree: Tree) -> None:
    root = tree("a/ADE_train_1.jpg", "a/ADE_train_1_seg.png", "a/ADE_train_1_parts_1.png")
    with pytest.raises(DatasetError) as caught:
        find_samples(config_of("ade20k", root), "train")
    assert "SceneParse150" in (caught.value.hint or "")


def test_cityscapes_pairs_by_three_tokens_within_a_split(tree: Tree) -> None:
    stem = "aachen_000001_000019"
    names = {
        split: (
            f"gtFine/{split}/aachen/{stem}_gtFine_labelIds.png",
            f"leftImg8bit/{split}/aachen/{stem}_leftImg8bit.png",
            f"gtFine/{split}/aachen/{stem}_gtFine_instanceIds.png",
        )
        for split in ("train", "val", "test")
    }
    others = [f"gtFine/train/aachen/{stem}_gtFine_{what}.png" for what in ("color", "labelTrainIds")]
    config = config_of("cityscapes", tree(*names["train"], *names["val"], *names["test"], *others))
    for split, files in names.items():
        assert named(config, split) == [(stem, *files)]
        assert not pair_files(config, split).problems


def test_custom_folders_are_trained_on(tree: Tree) -> None:
    root = tree("l/a.png", "i/a.webp", "n/a.png")
    config = DataConfig.for_preset("custom", labels_dir=root / "l", images_dir=root / "i", instances_dir=root / "n")
    assert named(config, "train") == [("a", "l/a.png", "i/a.webp", "n/a.png")]
    alone = find_samples(DataConfig.for_preset("custom", labels_dir=root / "l"), "train").samples
    assert [(s.photo, s.instance) for s in alone] == [(None, None)]


@pytest.mark.parametrize("preset", ["custom", "earth"])
def test_a_root_of_splits(tree: Tree, preset: str) -> None:
    root = tree(
        "train/labels/a.png", "train/images/a.png", "test/labels/b.png", "test/images/b.png", "test/instances/b.png"
    )
    assert named(config_of(preset, root), "train") == [("a", "train/labels/a.png", "train/images/a.png")]
    assert len(named(config_of(preset, root), "test")[0]) == 4


def test_every_file_that_does_not_pair_is_named(tree: Tree) -> None:
    root = tree(
        *COCO, "train_label/b.png", "train_inst/b.png", "train_img/c.jpg", "train_inst/d.png",
        "train_label/e.png", "train_img/e.jpg", "train_label/.hidden.png", "train_label/notes.txt",
    )  # fmt: skip
    pairing = find_samples(config_of("coco", root), "train")
    assert [sample.stem for sample in pairing.samples] == ["a"]
    assert {(p.code, str(p.path.relative_to(root))) for p in pairing.problems} == {
        ("missing-photo", "train_label/b.png"),
        ("missing-label", "train_img/c.jpg"),
        ("missing-label", "train_inst/d.png"),
        ("missing-instance", "train_label/e.png"),
    }
    assert [path.name for path in pairing.unpaired_labels] == ["b.png", "e.png"]


@pytest.mark.parametrize(("twins", "label_count"), [(("train_label/a.bmp", "train_label/a.png"), 2),
                                                    (("train_img/a.png", "train_img/a.jpg"), 1)])  # fmt: skip
def test_a_stem_that_occurs_twice_is_in_no_sample(tree: Tree, twins: tuple[str, str], label_count: int) -> None:
    root = tree(*COCO, *twins, "train_label/b.png", "train_img/b.jpg", "train_inst/b.png")
    pairing = find_samples(config_of("coco", root), "train")
    assert [sample.stem for sample in pairing.samples] == ["b"]
    found = {p.path.relative_to(root).as_posix(): p.code for p in pairing.problems if p.code != "missing-photo"}
    assert found == dict.fromkeys(twins, "duplicate-stem")
    # A label map is told, too, that its photo is not clear.
    alone = [p for p in pairing.problems if p.code == "missing-photo"]
    assert [p.path.name for p in alone] == (["a.png"] if label_count == 1 else [])
    assert all("a occurs 2 times" in p.message for p in alone)
    assert len(pairing.unpaired_labels) == label_count


def test_nothing_that_pairs_says_where_it_looked(tree: Tree) -> None:
    root = tree("train_label/a.png", "train_img/b.jpg")
    with pytest.raises(DatasetError) as caught:
        find_samples(config_of("coco", root), "train")
    for part in ("train_label", "train_img", "(1 found)", "train_inst", "(no such folder)"):
        assert part in caught.value.message
    assert not pair_files(config_of("coco", root), "train").samples
    assert has_layout(config_of("coco", root))
    assert not has_layout(config_of("cityscapes", root))


def test_a_split_that_the_data_set_does_not_have() -> None:
    with pytest.raises(ConfigError, match="facades has no split 'val'; it has train, test"):
        find_samples(config_of("facades", Path("x")), "val")
    assert config_of("facades", Path("x")).evaluation_split == "test"


@pytest.mark.parametrize("preset", PRESET_SPLITS)
def test_json_is_an_exact_inverse(preset: str) -> None:
    config = DataConfig.for_preset(preset, root=None if preset == "earth" else Path("some/root"), flip=False)
    assert DataConfig.from_json(config.to_json()) == config


def test_another_size_keeps_the_ratio_of_load_and_crop() -> None:
    assert config_of("coco", Path("x")).load_size == (286, 286)
    small = DataConfig.for_preset("coco", root=Path("x"), crop_size=(128, 64))
    assert (small.load_size, small.crop_size) == ((143, 72), (128, 64))
    assert DataConfig.for_preset("earth", crop_size=(64, 64)).load_size == (64, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "mnist"}, "`preset`"),
        ({"preset": "coco"}, "`root`"),
        ({"preset": "coco", "root": Path("x"), "labels_dir": Path("l")}, "`labels_dir`"),
        ({"preset": "custom"}, "either `root` or `labels_dir`"),
        ({"preset": "custom", "root": Path("x"), "labels_dir": Path("l")}, "either"),
        ({"preset": "custom", "root": Path("x"), "images_dir": Path("l")}, "contradicts"),
        ({"crop_size": (0, 4)}, "1..8192"),
        ({"crop_size": (256, 256)}, "larger than the load size"),
    ],
)
def test_contradictions_name_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataConfig(**fields)
    assert message in caught.value.message


@pytest.mark.parametrize("value", [[], {"colour": 1}, {"flip": 1}, {"load_size": [1]}, {"load_size": [True, 2]},
                                   {"root": 5}, {"preset": 7}])  # fmt: skip
def test_json_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="data config"):
        DataConfig.from_json(value)


@pytest.mark.shared
def test_the_real_coco_stuff_samples(shared_folder: Path) -> None:
    pairing = find_samples(config_of("coco", shared_folder / "data" / "coco_stuff_sample"), "train")
    assert len(pairing.samples) == 13
    assert not pairing.problems
    assert all(s.photo and s.instance and s.photo.stem == s.instance.stem == s.stem for s in pairing.samples)
