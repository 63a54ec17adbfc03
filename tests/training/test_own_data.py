"""A data set of one's own: what is held out of it and told, which labels it has, and what size is chosen."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.evaluation.data import learned_from
from spade_deploy.labels.check_request import check_command
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.photo_shape import PhotoShape, shape_of
from spade_deploy.release.example_inputs import golden_inputs
from spade_deploy.runs import CheckpointInfo
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.own_data import about_size
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.resolve import _fixed, complete, new_setup
from spade_deploy.training.source import FolderSource
from tests.support.commands import spade
from tests.support.own_photos import write_own_photos


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Label maps and photos, 20 of them."""
    labels, images = write_own_photos(tmp_path_factory.mktemp("own"), 20)
    return {"labels": labels, "images": images}


def setup_of(folders: dict[str, Path], **changes: Any) -> Setup:
    return new_setup(TrainRequest(DataRequest(**{**folders, "num_labels": 4, "size": (32, 32), **changes})))


def info_of(setup: Setup) -> CheckpointInfo:
    return CheckpointInfo(0, 1, "train", setup.generator, "0" * 64, data=setup.data.to_json())


def names(source: FolderSource) -> tuple[set[str], set[str]]:
    """The samples that are trained on, and those that are measured on."""
    record = source.record()
    return set(record.names), set(record.measured_on["samples"])


def test_a_tenth_is_held_out_and_told(folders: dict[str, Path], tmp_path: Path) -> None:
    setup = setup_of(folders)
    source = FolderSource(setup)
    trained, measured = names(source)
    assert (len(trained), len(measured), trained & measured) == (18, 2, set())
    (note,) = source.notes
    assert note.startswith("2 of 20 samples are held out (10%, chosen by name with seed 0)")
    source.record().write(tmp_path)
    kept = json.loads((tmp_path / "data.json").read_text())["measured_on"]
    assert (kept["split"], kept["held_out"], kept["share"], kept["seed"]) == ("val", True, 0.1, 0)
    assert set(kept["samples"]) == measured
    # A run saves the choice, so that all that reads the run finds the same samples.
    again = FolderSource(Setup.from_json(setup.to_json()))
    assert names(again) == (trained, measured)


def test_share_and_seed_may_be_asked_for(folders: dict[str, Path]) -> None:
    trained, measured = names(FolderSource(setup_of(folders, holdout=0.5)))
    assert (len(trained), len(measured)) == (10, 10)
    assert names(FolderSource(setup_of(folders, holdout=0.5, holdout_seed=1)))[1] != measured


def test_it_is_never_called_held_out_where_it_is_not(folders: dict[str, Path], tmp_path: Path) -> None:
    few = dict(zip(("labels", "images"), write_own_photos(tmp_path, 9), strict=True))
    for setup, why in (
        (setup_of(few), "9 samples are too few to hold any out"),
        (setup_of(folders, holdout=0), "no samples are held out"),
    ):
        source = FolderSource(setup)
        (note,) = source.notes
        assert note.startswith(why)
        assert "show training samples" in note
        measured_on = source.record().measured_on
        assert (measured_on["split"], measured_on["held_out"]) == ("train", False)
        assert setup.data.evaluation_split == "train"


def test_a_run_without_the_record_loads_and_is_told_truthfully(folders: dict[str, Path]) -> None:
    saved = setup_of(folders).to_json()
    del saved["data"]["holdout"]
    for name in ("val_labels_dir", "val_images_dir", "val_instances_dir"):
        del saved["data"][name]
    older = Setup.from_json(saved)
    source = FolderSource(older)
    assert source.notes[0].startswith("no samples are held out: metrics and sample grids show training samples")
    assert len(names(source)[0]) == 20
    info = info_of(older)
    assert golden_inputs(older.generator, info, None, None, 2).described == (
        "label maps of the training samples, since none are held out"
    )


def test_an_export_is_proved_on_the_held_out_samples(folders: dict[str, Path]) -> None:
    setup = setup_of(folders)
    info = info_of(setup)
    found = golden_inputs(setup.generator, info, None, None, 2)
    assert found.described == "label maps of the data set's held-out samples"
    held_out = sorted(names(FolderSource(setup))[1])
    files = [Image.open(folders["labels"] / f"{stem}.png") for stem in held_out]
    expected = np.stack([np.asarray(file.resize((32, 32), Image.Resampling.NEAREST)) for file in files])
    np.testing.assert_array_equal(found.inputs["label"], expected)


def test_folders_to_measure_on_may_be_given(folders: dict[str, Path], tmp_path: Path) -> None:
    val = dict(zip(("val_labels", "val_images"), write_own_photos(tmp_path, 3, names="other"), strict=True))
    source = FolderSource(setup_of({**folders, **val}))
    trained, measured = names(source)
    assert (len(trained), measured, source.notes) == (20, {"other000", "other001", "other002"}, ())
    with pytest.raises(ConfigError, match=r"`holdout` 0\.2: .* holds the samples to measure on"):
        setup_of({**folders, **val}, holdout=0.2)


def test_copies_of_training_photos_are_never_called_held_out(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    for kind in ("labels", "images"):
        for number, path in enumerate(sorted(folders[kind].iterdir())[:3]):
            shutil.copy(path, tmp_path / kind / f"copy{number}.png")
    write_own_photos(tmp_path, 1, names="other", seed=9)
    setup = setup_of({**folders, "val_labels": tmp_path / "labels", "val_images": tmp_path / "images"})
    source = FolderSource(setup)
    (note,) = source.notes
    assert note.startswith("3 of the 4 photos that metrics and sample grids are of are trained on, too, as")
    assert "copy0.png is: they are not held out, and the figures are too good" in note
    measured_on = source.record().measured_on
    assert (measured_on["held_out"], measured_on["also_trained_on"]) == (False, 3)
    assert golden_inputs(setup.generator, info_of(setup), None, None, 2).described == (
        "label maps of the data set's val split (3 of its 4 photos are trained on, too)"
    )
    assert learned_from(setup.data, setup.data, "val") == 3


def test_what_cannot_be_measured_is_told_apart_and_the_printed_command_shows_why(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path, 12)
    setup = setup_of({"labels": labels, "images": images})
    (held_out,) = names(FolderSource(setup))[1]
    Image.open(images / f"{held_out}.png").resize((32, 32)).save(images / f"{held_out}.png")
    with pytest.raises(DatasetError, match=f"none of the 1 held-out samples can be used; .*{held_out}") as caught:
        FolderSource(setup).samples(4)
    command = (caught.value.hint or "").split("`")[1]
    assert shlex.split(command) == [
        *("spade", "check-labels", str(labels), "--num-labels", "4", "--images", str(images)),
    ]
    done = spade(*shlex.split(command)[1:], cwd=tmp_path)
    assert done.returncode == 1
    assert f"64 x 48 pixels, but its photo {held_out}.png has 32 x 32" in done.stdout


def test_the_command_that_checks_a_split_names_its_folders_and_labels() -> None:
    data = DataConfig("custom", None, *map(Path, ("l", "p", "i", "val l", "vp", "vi")))
    labels = LabelSpec(4, has_dontcare=True, has_edges=True)
    assert check_command(data, labels) == ("spade check-labels l --num-labels 4 --dontcare --images p --instances i")
    assert check_command(data, replace(labels, ignore_id=9), "val") == (
        "spade check-labels 'val l' --num-labels 4 --ignore-id 9 --images vp --instances vi"
    )
    city = DataConfig.for_preset("cityscapes", root=Path("city"))
    assert check_command(city, labels, "val") == "spade check-labels city --preset cityscapes"


def test_a_root_may_have_samples_to_measure_on_or_not(tmp_path: Path) -> None:
    write_own_photos(tmp_path / "train", 12)
    asked = {"root": tmp_path}
    assert [len(part) for part in names(FolderSource(setup_of(asked)))] == [11, 1]
    write_own_photos(tmp_path / "val", 2, names="other")
    trained, measured = names(FolderSource(setup_of(asked)))
    assert (len(trained), measured) == (12, {"other000", "other001"})


@pytest.mark.parametrize("given", [{"holdout": 0.2}, {"ignore_id": 3}, {"classes": Path("x")}])
def test_a_preset_says_these_things_itself(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(given))}` contradicts `preset` earth"):
        new_setup(TrainRequest(DataRequest(preset="earth", **given)))


def test_classes_give_the_labels_and_the_void_id_a_channel(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("9 9 9 grass\n8 8 8 water\n7 7 7 sand\n0 0 0 void\n")
    labels = setup_of(folders, num_labels=None, classes=path, ignore_id=3).generator.labels
    assert labels == LabelSpec(
        3, True, names=("grass", "water", "sand", "void"), palette=((9,) * 3, (8,) * 3, (7,) * 3, (0,) * 3), ignore_id=3
    )
    plain = setup_of(folders, num_labels=4, ignore_id=0).generator.labels
    assert (plain.num_labels, plain.unknown_id, plain.ignore_id) == (4, 4, 0)
    with pytest.raises(ConfigError, match="`ignore_id` 3 contradicts `no_dontcare`"):
        setup_of(folders, ignore_id=3, has_dontcare=False)


def test_the_printed_settings_hold_out_the_same(folders: dict[str, Path]) -> None:
    asked = TrainRequest(DataRequest(**folders, num_labels=4, size=(32, 32), holdout=0.3, holdout_seed=5))
    setup = new_setup(asked)
    whole = complete(asked, setup)
    assert (whole.data.holdout, whole.data.holdout_seed) == (0.3, 5)
    assert new_setup(whole) == setup


@pytest.mark.parametrize(
    ("height", "width", "stride", "size"),
    [
        (360, 480, 32, (192, 256)),
        (480, 360, 32, (256, 192)),
        (1080, 1920, 32, (192, 352)),
        (1024, 2048, 32, (192, 384)),
        (900, 900, 32, (256, 256)),
        (900, 900, 64, (256, 256)),
        (1000, 1500, 32, (192, 288)),
        (60, 60, 32, (64, 64)),
        (20, 20, 32, (32, 32)),
    ],
)
def test_the_size_follows_the_photos(height: int, width: int, stride: int, size: tuple[int, int]) -> None:
    assert PhotoShape(height, width, True).size_for(stride, stride) == size


def test_the_chosen_size_is_told_and_another_one_is_used_as_it_is(tmp_path: Path) -> None:
    labels, images = write_own_photos(tmp_path, 2, size=(96, 128))
    asked = TrainRequest(DataRequest(labels=labels, images=images, num_labels=4))
    setup = new_setup(asked)
    assert setup.data.crop_size == (setup.generator.height, setup.generator.width) == (96, 128)
    (note,) = about_size(asked, setup)
    assert note.startswith("the photos are 96 x 128, so images of 96 x 128 are made")
    assert new_setup(replace(asked, paper=True)).data.crop_size == (256, 256)
    fixed = replace(asked, data=replace(asked.data, size=(64, 64)))
    assert new_setup(fixed).data.crop_size == (64, 64)
    assert about_size(fixed, new_setup(fixed)) == ()


def test_photos_of_several_shapes_are_told_so(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 80), (60, 60), (60, 61)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    shape = shape_of(sorted(tmp_path.iterdir()))
    assert shape is not None
    assert shape.described.startswith("the photos have several shapes")


def test_a_hold_out_cannot_change_when_a_run_is_resumed(folders: dict[str, Path], tmp_path: Path) -> None:
    saved = setup_of(folders)
    asked = TrainRequest(DataRequest(holdout=0.3, val_labels=tmp_path))
    different = [(name, wanted, found) for name, wanted, found in _fixed(asked, saved) if wanted != found]
    assert different == [("holdout", 0.3, 0.1), ("val_labels", tmp_path, None)]
