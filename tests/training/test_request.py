from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.spec import NormType
from spade_deploy.training import resolve
from spade_deploy.training.config import PerceptualNetwork
from spade_deploy.training.presets import preset
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.resolve import complete, new_setup, resumed_setup


def test_nothing_asked_is_the_earth_preset() -> None:
    assert new_setup(TrainRequest()) == preset("earth")


def test_what_is_asked_is_changed_and_nothing_else() -> None:
    asked = TrainRequest(
        data=DataRequest(size=(64, 64)),
        generator={"norm": NormType.INSTANCE, "kernel_size": None},
        train={"epochs": 2, "steps": None, "seed": 7},
    )
    setup, base = new_setup(asked), preset("earth", size=(64, 64))
    assert setup.generator.norm is NormType.INSTANCE
    assert setup.generator.kernel_size == base.generator.kernel_size
    assert (setup.train.epochs, setup.train.steps, setup.train.seed) == (2, None, 7)
    assert setup.train.batch_size == base.train.batch_size
    assert setup.data == base.data


def test_folders_mean_a_data_set_of_ones_own(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("labels", "images", "instances")}
    data = DataRequest(**folders, num_labels=5, has_dontcare=True)
    setup = new_setup(TrainRequest(data))
    labels = setup.generator.labels
    assert (labels.num_labels, labels.has_dontcare, labels.has_edges) == (5, True, True)
    assert setup.data.preset == "custom"
    (tmp_path / "train" / "instances").mkdir(parents=True)
    rooted = new_setup(TrainRequest(data=DataRequest(root=tmp_path, num_labels=5)))
    assert rooted.generator.labels.has_edges
    assert rooted.data.root == tmp_path


def test_no_ttur_is_one_rate() -> None:
    setup = new_setup(TrainRequest(ttur=False))
    assert setup.train.lr_generator == setup.train.lr_discriminator == 2e-4


@pytest.mark.parametrize(
    ("request_", "flag"),
    [
        (TrainRequest(train={"steps": 1, "epochs": 1}), "`steps`"),
        (TrainRequest(data=DataRequest(labels=Path("x"))), "`num_labels`"),
        (TrainRequest(data=DataRequest(preset="earth", num_labels=3)), "`num_labels`"),
        (TrainRequest(data=DataRequest(preset="coco")), "`root`"),
        (TrainRequest(data=DataRequest(preset="coco", root=Path("x"), labels=Path("y"))), "`labels_dir`"),
        (TrainRequest(data=DataRequest(size=(100, 100))), "`size`"),
    ],
)
def test_contradictions_name_the_flag(request_: TrainRequest, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        new_setup(request_)


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        (TrainRequest(train={"batch_size": 3}), "`batch_size`"),
        (TrainRequest(generator={"norm": NormType.BATCH}), "`norm`"),
        (TrainRequest(data=DataRequest(has_dontcare=True)), "`has_dontcare`"),
        (TrainRequest(ttur=False), "`no_ttur`"),
        (TrainRequest(discriminator={"base_channels": 3}), "`discriminator.base_channels` 3"),
        (TrainRequest(vae=True), "`vae`"),
        (TrainRequest(data=DataRequest(size=(64, 96))), "`size` 64x96"),
    ],
)
def test_a_resumed_run_keeps_what_a_step_depends_on(
    asked: TrainRequest, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "load_setup", lambda _: preset("earth"))
    with pytest.raises(CheckpointError, match=flag):
        resumed_setup(asked, Path("checkpoint"))
    same = TrainRequest(DataRequest("earth"), train={"batch_size": 4}, generator={"base_channels": 16})
    assert resumed_setup(same, Path("checkpoint")) == preset("earth")
    other = replace(preset("earth"), train=replace(preset("earth").train, betas=(0.1, 0.9)))
    monkeypatch.setattr(resolve, "load_setup", lambda _: other)
    assert resumed_setup(TrainRequest(ttur=False, train={"betas": (0.1, 0.9)}), Path("checkpoint")) == other
    monkeypatch.setattr(resolve, "load_setup", lambda _: preset("earth"))
    longer = resumed_setup(TrainRequest(train={"steps": 900, "save_every": 9}), Path("checkpoint"))
    assert (longer.train.steps, longer.train.save_every) == (900, 9)
    assert longer.generator == preset("earth").generator


def test_a_whole_request_asks_for_a_resumed_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = preset("earth", size=(64, 64))
    monkeypatch.setattr(resolve, "load_setup", lambda _: saved)
    setup = resumed_setup(TrainRequest(train={"steps": 900}), Path("checkpoint"))
    whole = complete(TrainRequest(), setup)
    assert resumed_setup(whole, Path("checkpoint")) == setup
    assert new_setup(whole, downloads=False) == setup
    assert "epochs" not in whole.train


def test_a_whole_request_has_the_file_or_the_network_of_the_perceptual_loss(tmp_path: Path) -> None:
    asked = TrainRequest(DataRequest("coco", root=tmp_path))
    setup = new_setup(asked, downloads=False)
    assert complete(asked, setup).perceptual == PerceptualNetwork.VGG19
    has_file = replace(setup, train=replace(setup.train, perceptual_file=tmp_path / "vgg.pth"))
    whole = complete(asked, has_file)
    assert (whole.perceptual, whole.train["perceptual_file"]) == (None, tmp_path / "vgg.pth")
    assert new_setup(whole, downloads=False) == has_file
