"""Label maps given to a command: the layouts that training takes, and no file as its own instance map."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spade_deploy.errors import ConfigError, DatasetError, NotFoundError
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import Pairing, find_samples, pair_files
from spade_deploy.labels.sets import label_set, preset_of
from spade_deploy.spec import LabelSpec

CITYSCAPES = label_set("cityscapes")
EDGES = LabelSpec(35, has_edges=True)
PLAIN = LabelSpec(35)
Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return tmp_path

    return make


def cityscapes(tree: Tree) -> Path:
    stems = {"train": ["aachen_000000_000019"], "val": ["lindau_000001_000019", "frankfurt_000000_000294"]}
    kinds = ("labelIds", "instanceIds", "labelTrainIds", "color")
    names = []
    for split, of_split in stems.items():
        for stem in of_split:
            city = stem.split("_")[0]
            names += [f"gtFine/{split}/{city}/{stem}_gtFine_{kind}.png" for kind in kinds]
            names += [f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png"]
    return tree(*names)


def paired_names(found: Pairing) -> list[tuple[str, str, str | None]]:
    return [(s.stem, s.label.name, s.instance.name if s.instance else None) for s in found.samples]


def official(*stems: str) -> list[tuple[str, str, str | None]]:
    return [(stem, f"{stem}_gtFine_labelIds.png", f"{stem}_gtFine_instanceIds.png") for stem in stems]


VAL = ("frankfurt_000000_000294", "lindau_000001_000019")


@pytest.mark.parametrize(
    ("folder", "stems"),
    [
        (".", ("aachen_000000_000019", *VAL)),
        ("gtFine", ("aachen_000000_000019", *VAL)),
        ("gtFine/val", VAL),
        ("gtFine/val/lindau", VAL[1:]),
    ],
)
@pytest.mark.parametrize("gives_instances", [False, True])
def test_cityscapes_official_tree_and_every_folder_of_it(
    tree: Tree, folder: str, stems: tuple[str, ...], gives_instances: bool
) -> None:
    place = cityscapes(tree) / folder
    instances = place if gives_instances else None
    for found in (
        find_label_maps(place, instances, CITYSCAPES),  # the artifact says what its labels are
        find_label_maps(place, instances, EDGES, preset="cityscapes"),
    ):
        assert paired_names(found) == official(*stems)
        assert not found.problems
    assert [s.instance for s in find_label_maps(place, None, CITYSCAPES, no_instances=True).samples] == [None] * len(
        stems
    )


def test_the_names_alone_tell_cityscapes_files_in_one_folder(tree: Tree) -> None:
    place = cityscapes(tree) / "gtFine/val/lindau"
    assert paired_names(find_label_maps(place, place, EDGES)) == official(VAL[1])
    (label,) = place.glob("*_labelIds.png")
    assert paired_names(find_label_maps(label, place, EDGES)) == official(VAL[1])


def test_cityscapes_files_in_one_folder_train_as_well(tree: Tree) -> None:
    root = cityscapes(tree)
    config = DataConfig.for_preset(
        "custom",
        labels_dir=root / "gtFine/val/lindau",
        images_dir=root / "leftImg8bit/val/lindau",
        instances_dir=root / "gtFine/val/lindau",
    )
    assert paired_names(pair_files(config, "train")) == official(VAL[1])


def test_train_ids_are_told_by_their_name(tree: Tree) -> None:
    name = "lindau_000001_000019_gtFine_labelTrainIds.png"
    root = tree(f"gtFine/val/lindau/{name}", f"flat/{name}", "leftImg8bit/val/lindau/x_0_0_leftImg8bit.png")
    for place in (root, root / "gtFine/val", root / "flat", root / "flat" / name):
        with pytest.raises(NotFoundError, match=r"holds train ids \(0\.\.18\), such as lindau.*takes label ids"):
            find_label_maps(place, None, CITYSCAPES, no_instances=True)
    with pytest.raises(DatasetError) as caught:
        find_samples(DataConfig.for_preset("cityscapes", root=root), "val")
    assert "holds train ids" in (caught.value.hint or "")


def test_cityscapes_files_of_another_kind_are_no_label_map(tree: Tree) -> None:
    root = cityscapes(tree)
    for kind in (
        "gtFine/val/lindau/*_instanceIds.png",
        "leftImg8bit/val/lindau/*.png",
        "gtFine/val/lindau/*_color.png",
    ):
        (path,) = root.glob(kind)
        with pytest.raises(NotFoundError, match="does not have the name of a Cityscapes label map"):
            find_label_maps(path, None, CITYSCAPES, no_instances=True)


def test_a_coco_root_has_its_own_instance_maps(tree: Tree) -> None:
    root = tree("train_label/a.png", "train_inst/a.png", "val_label/b.png", "val_inst/b.png", "val_img/b.jpg")
    found = find_label_maps(root, None, label_set("coco"))
    assert paired_names(found) == [("a", "a.png", "a.png"), ("b", "b.png", "b.png")]
    assert {sample.instance.parent.name for sample in found.samples if sample.instance} == {"train_inst", "val_inst"}


@pytest.mark.parametrize(("preset", "names"), [
    ("facades", ("train_label/a.png", "test_label/b.png")),
    ("ade20k", ("annotations/training/ADE_train_1.png", "annotations/validation/ADE_val_1.png", "i/ADE_val_1.jpg")),
    ("earth", ("train/labels/a.png", "test/labels/b.png")),
    (None, ("train/labels/a.png", "val/labels/b.png")),
])  # fmt: skip
def test_other_roots(tree: Tree, preset: str | None, names: tuple[str, ...]) -> None:
    labels = label_set(preset) if preset else PLAIN
    assert preset_of(labels) == preset
    found = find_label_maps(tree(*names), None, labels)
    assert sorted(sample.label.name for sample in found.samples) == sorted(Path(name).name for name in names[:2])
    assert not found.problems


def test_a_label_set_is_told_whatever_its_colours() -> None:
    assert preset_of(replace(CITYSCAPES, palette=(), has_edges=False)) == "cityscapes"
    assert preset_of(LabelSpec(35, has_edges=True)) is None


# --- Never its own instance map or photo -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the same folder", "a link to the folder", "links to the files", "hard links"])
def test_a_file_is_never_its_own_instance_map(tree: Tree, how: str) -> None:
    root = tree("labels/a.png", "labels/b.png")
    instances = root / "instances"
    if how == "the same folder":
        instances = root / "labels"
    elif how == "a link to the folder":
        instances.symlink_to(root / "labels")
    else:
        instances.mkdir()
        for name in ("a.png", "b.png"):
            (os.link if how == "hard links" else os.symlink)(root / "labels" / name, instances / name)
    found = find_label_maps(root / "labels", instances, EDGES)
    assert not found.samples
    assert [(problem.path.name, problem.code) for problem in found.problems] == [
        ("a.png", "missing-instance"),
        ("b.png", "missing-instance"),
    ]
    assert all("is the label map itself, not its instance map" in problem.message for problem in found.problems)
    with pytest.raises(ConfigError, match="is the label map itself"):
        find_label_maps(root / "labels/a.png", instances / "a.png", EDGES)
    assert not find_label_maps(root / "labels/a.png", instances, EDGES).samples


@pytest.mark.parametrize("flag", ["images_dir", "instances_dir"])
@pytest.mark.parametrize("is_link", [False, True])
def test_one_folder_for_two_kinds_of_files_is_said(tree: Tree, flag: str, is_link: bool) -> None:
    root = tree("data/a.png", "data/a.jpg")
    folder = root / "data"
    if is_link:
        (root / "link").symlink_to(folder)
        folder = root / "link"
    config = DataConfig.for_preset("custom", labels_dir=root / "data", **{flag: folder})
    with pytest.raises(DatasetError, match="is the folder of the label maps, too"):
        find_samples(config, "train")


def test_photos_and_instance_maps_in_one_folder_are_said(tree: Tree) -> None:
    root = tree("l/a.png", "i/a.png")
    config = DataConfig.for_preset("custom", labels_dir=root / "l", images_dir=root / "i", instances_dir=root / "i")
    with pytest.raises(DatasetError, match="is the folder of the photos, too"):
        find_samples(config, "train")


def test_links_to_the_label_maps_are_no_photos(tree: Tree) -> None:
    root = tree("train_label/a.png", "train_img/b.jpg", "train_label/b.png")
    (root / "train_img/a.png").symlink_to(root / "train_label/a.png")
    pairing = pair_files(DataConfig.for_preset("facades", root=root), "train")
    assert [sample.stem for sample in pairing.samples] == ["b"]
    assert ["is the label map itself, not its photo" in problem.message for problem in pairing.problems] == [True]


# --- Photos beside label maps, links, pipes --------------------------------------------------------------------------


def test_a_jpeg_beside_its_label_map_is_a_photo(tree: Tree) -> None:
    root = tree("a.png", "a.jpg", "b.png", "b.JPEG", "c.jpg", "d.bmp", "d.png")
    found = find_label_maps(root, None, PLAIN)
    assert [sample.label.name for sample in found.samples] == ["a.png", "b.png", "c.jpg"]  # c.jpg: reading says JPEG
    assert {(problem.path.name, problem.code) for problem in found.problems} == {
        ("a.jpg", "photo"),
        ("b.JPEG", "photo"),
        ("d.bmp", "duplicate-stem"),
        ("d.png", "duplicate-stem"),
    }


def test_every_entry_that_is_no_file_is_reported(tree: Tree) -> None:
    root = tree("labels/ok.png", "labels/e.png", "other/folder/x")
    labels = root / "labels"
    (labels / "real_folder.png").mkdir()
    os.mkfifo(labels / "pipe.png")
    for name, target in (
        ("zero", "/dev/zero"),
        ("none", "nowhere"),
        ("loop", "loop.png"),
        ("folder", root / "other"),
        ("good", "ok.png"),
    ):
        (labels / f"{name}.png").symlink_to(target)
    (root / "instances").mkdir()
    (root / "instances/e.png").symlink_to("/dev/zero")
    found = find_label_maps(labels, None, PLAIN)
    assert [sample.label.name for sample in found.samples] == ["e.png", "good.png", "ok.png"]
    said = {problem.path.name: problem.message for problem in found.problems}
    assert {problem.code for problem in found.problems} == {"not-a-file"}
    for name, words in (
        ("pipe", "is a pipe"),
        ("zero", "is a link to a device"),
        ("none", "leads nowhere"),
        ("loop", "leads nowhere"),
        ("folder", "is a link to a folder"),
    ):
        assert words in said.pop(f"{name}.png")
    assert not said
    with_instances = find_label_maps(labels, root / "instances", EDGES)
    (alone,) = [problem for problem in with_instances.problems if problem.path.name == "e.png"]
    assert "its instance map" in alone.message
    assert "is a link to a device" in alone.message


@pytest.mark.parametrize("flag", ["labels", "instances"])
def test_a_path_that_is_a_pipe_or_leads_nowhere(tree: Tree, flag: str) -> None:
    root = tree("labels/a.png", "instances/a.png")
    os.mkfifo(root / "pipe.png")
    for path, reason in ((root / "pipe.png", "is a pipe, neither"), (root / "none", "does not exist")):
        given = {"labels": root / "labels", "instances": root / "instances", flag: path}
        with pytest.raises(NotFoundError, match=reason):
            find_label_maps(given["labels"], given["instances"], EDGES)


def test_a_preset_that_does_not_exist(tree: Tree) -> None:
    with pytest.raises(ConfigError, match="'mnist' is not one of"):
        find_label_maps(tree("a.png"), None, PLAIN, preset="mnist")


def own(tree: Tree, *names: str) -> DataConfig:
    root = tree(*names)
    return DataConfig.for_preset("custom", labels_dir=root / "labels", images_dir=root / "photos")


def test_names_of_macos_and_of_other_systems_are_the_same(tree: Tree) -> None:
    one, two = unicodedata.normalize("NFC", "Bäume"), unicodedata.normalize("NFD", "Bäume")
    assert one != two
    found = find_samples(own(tree, f"labels/{one}.png", f"photos/{two}.jpg"), "train")
    assert [(sample.stem, sample.photo and sample.photo.name) for sample in found.samples] == [(one, f"{two}.jpg")]
    assert found.problems == ()
    twice = pair_files(own(tree, f"labels/{two}.png"), "train")
    assert {problem.code for problem in twice.problems} == {"duplicate-stem"}


def test_label_maps_and_photos_may_lie_in_folders_of_equal_names(tree: Tree) -> None:
    names = [f"{kind}/{city}/1.{suffix}" for kind, suffix in (("labels", "png"), ("photos", "jpg")) for city in "ab"]
    config = own(tree, *names, "labels/a/.hidden/1.png", "photos/b/2.jpg")
    found = find_samples(config, "train")
    assert [sample.stem for sample in found.samples] == ["a/1", "b/1"]
    assert [sample.photo for sample in found.samples] == [config.images_dir / name for name in ("a/1.jpg", "b/1.jpg")]
    assert [problem.code for problem in found.problems] == ["missing-label"]
    root = tree("root/train/labels/x/1.png", "root/train/images/x/1.jpg") / "root"
    assert [s.stem for s in find_samples(DataConfig.for_preset("custom", root=root), "train").samples] == ["x/1"]


def test_images_in_folders_beside_files_are_told(tree: Tree) -> None:
    config = own(tree, "labels/1.png", "photos/1.jpg", "labels/more/2.png", "labels/more/3.png", "labels/.git/4.png")
    found = find_samples(config, "train")
    assert [sample.stem for sample in found.samples] == ["1"]
    (told,) = found.nested
    assert (told.path, told.is_beside) == (config.labels_dir, False)
    assert told.message.startswith("the folders in it hold 2 images, such as ")
    assert "more/2.png, which are not read" in told.message


def test_a_folder_that_does_not_exist_or_holds_only_folders_is_told(tree: Tree) -> None:
    config = own(tree, "labels/a/1.png")
    with pytest.raises(DatasetError) as caught:
        find_samples(config, "train")
    assert caught.value.hint == f"check the path: {config.images_dir} is no folder"
    tree("photos/x.txt")
    with pytest.raises(DatasetError, match=r"labels/\*\*/\* \(1 found\)"):
        find_samples(config, "train")
    alone = DataConfig.for_preset("custom", labels_dir=config.labels_dir, labels_only=True)
    with pytest.raises(DatasetError) as caught:
        find_samples(alone, "train")
    assert (caught.value.hint or "").startswith(f"the folders in {config.labels_dir} hold images, such as ")
