"""`spade check-labels` lists ids without being told of them, groups findings, and prints commands that run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.labels.findings import Severity
from spade_deploy.labels.groups import grouped
from spade_deploy.labels.lint import lint_folder
from spade_deploy.labels.survey import IdCount, Survey, survey
from spade_deploy.spec import LabelSpec
from tests.support.commands import spade
from tests.support.own_photos import write_own_photos


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels/ and images/ of six samples with the ids 0..4."""
    folder = tmp_path_factory.mktemp("own")
    write_own_photos(folder, 6, classes=5)
    return folder


def test_ids_are_listed_and_options_suggested(own: Path) -> None:
    done = spade("check-labels", "labels", cwd=own)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["5", "ids", "in", "6", "of", "6", "files:"]
    assert [line[0] for line in lines[1:6]] == ["0", "1", "2", "3", "4"]
    assert [line[2:4] for line in lines[1:6]] == [["%", "in"]] * 5
    assert "options that fit: --num-labels 5\n" in done.stdout
    assert "or: --num-labels 4 --ignore-id 4   if 4 means pixels of no class (void)" in done.stdout


def test_files_of_one_fault_are_one_finding(own: Path) -> None:
    done = spade("check-labels", "labels", "--num-labels", "4", cwd=own)
    assert done.returncode == 1
    found = done.stdout.splitlines()
    assert found[0] == (
        "error   range: 4 in 6 of 6 files; allowed are 0..3: pixels of no class? --ignore-id 4; a class? --num-labels 5"
    )
    assert found[1].split() == ["photo000.png,", "photo001.png,", "photo002.png", "and", "3", "more"]
    assert found[2] == "checked 6 label maps: 1 error in 6 files"
    every = spade("check-labels", "labels", "--num-labels", "4", "--verbose", cwd=own)
    assert all(f"photo00{number}.png" in every.stdout for number in range(6))


def test_the_printed_commands_run_as_they_are(tmp_path: Path) -> None:
    labels, _ = write_own_photos(tmp_path, 3, classes=4)
    (tmp_path / "my classes.txt").write_text("90 160 70\n60 110 200\n200 180 120\n120 120 125\n0 0 0\n")
    colors = np.array([[90, 160, 70], [60, 110, 200], [200, 180, 120], [120, 120, 125]], np.uint8)
    for path in labels.iterdir():
        Image.fromarray(colors[np.asarray(Image.open(path))]).save(path)
    options = ("--images", "images", "--classes", "my classes.txt", "--dontcare", "--num-labels", "4")
    words = ["spade", "check-labels", "labels", *options]
    seen = []
    for code in (1, 0, 0):  # colours are found, converted, and the copy is right
        done = spade(*words[1:], cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        seen.append(words)
        words = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert seen[1][-2:] == ["--fix", "labels-fixed"]
    assert seen[2][2] == "labels-fixed"
    assert words[:6] == ["spade", "train", "--labels", "labels-fixed", "--images", "images"]
    assert words[6:] == ["--classes", "my classes.txt", "--num-labels", "4", "--dontcare"]
    estimated = spade(*words[1:], "--print-config", cwd=tmp_path)
    assert estimated.returncode == 0, estimated.stderr


def test_the_json_has_everything(own: Path) -> None:
    done = spade("check-labels", "labels", "--images", "images", "--ignore-id", "4", "--json", cwd=own)
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout)
    found = whole["result"]
    assert (found["checked"], found["files_with_ids"], found["options"]) == (
        6,
        6,
        ["--num-labels", "4", "--ignore-id", "4"],
    )
    assert [entry["id"] for entry in found["ids"]] == [0, 1, 2, 3, 4]
    assert sum(entry["share"] for entry in found["ids"]) == pytest.approx(1)
    assert (found["groups"], found["findings"]) == ([], [])
    assert whole["next"] == ["spade train --labels labels --images images --num-labels 4 --ignore-id 4"]
    wrong = spade("check-labels", "labels", "--num-labels", "3", "--json", cwd=own)
    assert wrong.returncode == 1
    groups = json.loads(wrong.stdout)["result"]["groups"]
    assert [(group["code"], len(group["files"])) for group in groups] == [("range", 6), ("range", 6)]


def test_colours_without_a_palette_need_a_class_file(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "labels" / "a.png")
    done = spade("check-labels", "labels", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "0 ids in 0 of 1 files:",
        "error   rgb: colours instead of ids: which class each colour stands for has to be said; or is it a photo?",
        "          a.png",
        "checked 1 label maps: 1 error in 1 file",
        "no file holds ids: name the classes and their colours with --classes FILE",
    ]


def test_masks_of_0_and_255_become_two_classes_by_the_printed_commands(tmp_path: Path) -> None:
    labels, _ = write_own_photos(tmp_path, 3, classes=2)
    ids = {path.name: np.asarray(Image.open(path)) for path in labels.iterdir()}
    for name, values in ids.items():
        Image.fromarray(values * np.uint8(255)).save(labels / name)
    words = ["spade", "check-labels", "labels", "--images", "images"]
    for code in (1, 0, 0):
        done = spade(*words[1:], cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        if len(words) == 5:
            assert "or: --num-labels 1 --dontcare   if 255 means pixels of no class (void)" in done.stdout
        words = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert words == ["spade", "train", "--labels", "labels-fixed", "--images", "images", "--num-labels", "2"]
    for name, values in ids.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels-fixed" / name)), values)


def test_ids_in_three_equal_channels_are_listed_and_converted(tmp_path: Path) -> None:
    labels, _ = write_own_photos(tmp_path, 2, classes=3)
    for path in labels.iterdir():
        Image.open(path).convert("RGB").save(path)
    done = spade("check-labels", "labels", cwd=tmp_path)
    assert "3 ids in 2 of 2 files:" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: spade check-labels labels --num-labels 3 --fix labels-fixed"
    Image.fromarray(np.full((4, 4, 3), (9, 8, 7), np.uint8)).save(labels / "colours.png")
    assert "0 ids in 0 of 3 files:" in spade("check-labels", "labels", cwd=tmp_path).stdout


def test_instance_maps_are_not_taken_for_thousands_of_classes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[26001, 7]], np.uint16)).save(tmp_path / "a.png")
    done = spade("check-labels", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.endswith("the highest id, 26001, is too high for a class: are these instance maps?\n")


def test_shares_and_files_are_counted(tmp_path: Path) -> None:
    for name, values in (("a", [[0, 0, 1, 255]]), ("b", [[0, 0, 7, 7]])):
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = survey(sorted(tmp_path.iterdir()))
    assert found == Survey(
        3, 2, (IdCount(0, 0.5, 2), IdCount(1, 0.125, 1), IdCount(7, 0.25, 1), IdCount(255, 0.125, 1))
    )
    assert found.suggested() == LabelSpec(8, has_dontcare=True)
    assert found.suggested(ignore_id=7) == LabelSpec(2, has_dontcare=True, ignore_id=7)
    assert (found.void_or_class, found.missing) == ((7, 2), (2, 3, 4, 5, 6))
    assert Survey(1, 0, ()).suggested() is None
    # 255 is an ordinary id among higher ones.
    assert Survey(1, 1, (IdCount(255, 0.5, 1), IdCount(299, 0.5, 1))).suggested() == LabelSpec(300)


def test_errors_come_first_and_255_is_explained(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    labels = LabelSpec(2)
    first, second = grouped(lint_folder(tmp_path, labels), labels)
    assert (first.code, first.severity, len(first.files), first.hint) == (
        *("range", Severity.ERROR, 2),
        "unknown pixels? `has_dontcare`",
    )
    assert (second.code, [path.name for path in second.files]) == ("damaged", ["c.png"])


def test_a_part_of_a_data_set_is_no_root_to_train_on(tmp_path: Path) -> None:
    for kind in ("gtFine_labelIds", "gtFine_instanceIds", "leftImg8bit"):
        folder = tmp_path / kind.split("_")[0] / "train" / "aachen"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[7, 26]], np.uint8)).save(folder / f"aachen_000000_000019_{kind}.png")
    whole = spade("check-labels", ".", "--preset", "cityscapes", cwd=tmp_path)
    assert "next: spade train --data . --preset cityscapes\n" in whole.stdout
    part = spade("check-labels", "gtFine/train", "--preset", "cityscapes", cwd=tmp_path)
    assert part.stdout == "checked 1 label maps: nothing to report\n"


def test_files_that_do_not_fit_are_told_with_what_helps(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path, 2, classes=2)
    (labels / "photo000.png").rename(labels / "photo000_mask.png")
    Image.open(images / "photo001.png").resize((32, 32)).save(images / "photo001.png")
    done = spade("check-labels", "labels", "--images", "images", cwd=tmp_path)
    assert "there is no photo for it in images: files belong together by the same name" in done.stdout
    assert "its photo photo001.png has 32 x 32: resize the label maps to the size of their photos" in done.stdout
    nested = tmp_path / "labels" / "more"
    nested.mkdir()
    (labels / "photo001.png").rename(nested / "photo001.png")
    told = spade("check-labels", "labels", cwd=tmp_path)
    assert "warning nested: the folders in it hold 1 images, such as labels/more/photo001.png" in told.stdout
    (labels / "photo000_mask.png").unlink()
    only = spade("check-labels", "labels", cwd=tmp_path)
    assert "no custom data set; the folders in it hold 1 images, such as labels/more/photo001.png" in only.stderr
