"""Training SIMS: the bank of the photos, canvases of other photos, and a run that goes on with its bank."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from spade_deploy.errors import CheckpointError, ConfigError, DatasetError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.samples import EarthSamples
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.sims import bank_of_generator
from spade_deploy.retrieval.canvas import make_canvas
from spade_deploy.runs import run_checkpoints
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.layout import BANK_FILE
from spade_deploy.spec import Architecture, DiscriminatorSpec, GeneratorSpec, LabelSpec
from spade_deploy.training import memory
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import Memory, training_batches
from spade_deploy.training.loop import TrainResult, train
from spade_deploy.training.memory import build_bank, described
from spade_deploy.training.source import FolderSource
from spade_deploy.training.splits import open_source
from tests.support.own_photos import write_own_photos
from tests.support.training_runs import equal, weights

LABELS = LabelSpec(4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Eight photos of 64 x 80, cropped to 64 x 64."""
    labels, images = write_own_photos(tmp_path_factory.mktemp("data"), 8, size=(64, 80))
    return DataConfig("custom", None, labels, images, load_size=(64, 80), crop_size=(64, 64))


def setup_of(data: DataConfig, **changes: object) -> Setup:
    given = {"steps": 4, "batch_size": 2, "workers": 0, "save_every": 2, "sample_every": 9, "device": "cpu"}
    config = TrainConfig(**{**given, "discriminator": DiscriminatorSpec(2, 3, 2), **changes})
    generator = GeneratorSpec(LABELS, base_channels=2, height=64, width=64).with_architecture(Architecture.SIMS)
    return Setup(config, generator, data)


def test_the_bank_of_a_data_set(data: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, setup = open_source(data, "train", LABELS), setup_of(data)
    bank = build_bank(source, setup)
    assert set(bank.photo.tolist()) == set(range(8))
    assert described(bank).startswith(f"the memory bank holds {len(bank)} segments of 8 training photos, ")
    small = build_bank(source, replace(setup, train=replace(setup.train, bank_segments=9)))
    assert len(small) == 9
    # The patches are those of the whole photo, not of its crop.
    label = source.whole(3).label
    assert label.shape == (64, 80)
    own = make_canvas(bank, label)
    inside = own[3] == 0
    pixels = np.rint((own[:3] + 1) * 127.5).transpose(1, 2, 0)[inside]
    np.testing.assert_array_equal(pixels, source.whole(3).photo[inside])
    monkeypatch.setattr(memory, "MOST_PHOTOS", 3)
    assert set(build_bank(source, setup).photo.tolist()) == {0, 2, 5}
    broken, images = write_own_photos(tmp_path, 2)
    for path in images.iterdir():
        path.write_bytes(b"no photo")
    config = DataConfig("custom", None, broken, images, load_size=(64, 64), crop_size=(64, 64))
    with pytest.raises(DatasetError, match=r"none of 2 samples can be used; the first one: .*photo"):
        build_bank(open_source(config, "train", LABELS), setup)


def test_a_batch_has_canvases_of_other_photos(data: DataConfig) -> None:
    source = open_source(data, "train", LABELS)
    bank = build_bank(source, setup_of(data))
    with_memory = {"batch_size": 4, "seed": 3, "memory": Memory(bank, None)}
    first, second = islice(training_batches(source, **with_memory), 2)
    (again,) = islice(training_batches(source, **with_memory, start_step=1), 1)
    assert first.canvas is not None
    assert first.canvas.shape == (4, 4, 64, 64)
    assert torch.equal(second.canvas, again.canvas)
    (plain,) = islice(training_batches(source, batch_size=4, seed=3), 1)
    assert plain.canvas is None
    assert torch.equal(plain.photo, first.photo)  # canvases change nothing else
    names = {source.stem(index): index for index in range(len(source))}
    alone = 0
    for label, canvas, stem in zip(first.label.numpy(), first.canvas.numpy(), first.stems, strict=True):
        others = make_canvas(bank, label, excluded=[names[stem]])
        whole = make_canvas(bank, label)
        covered = canvas[3] == 0
        assert not (covered & (others[3] == 1)).any()  # segments are left out, and none is added
        assert (canvas[:, covered] != whole[:, covered]).any()
        alone += (canvas == others).all()
    assert alone < 4


def test_tiles_that_overlap_are_one_photo() -> None:
    labels = label_set("earth")
    tiles = EarthSamples("val", labels, (64, 64))
    own = tiles.overlapping(40)
    assert 40 in own
    assert len(own) > 1
    boxes = [(tile.top, tile.left) for tile in tiles._tiles]
    for index, (top, left) in enumerate(boxes):
        shares = max(0, 64 - abs(top - boxes[40][0])) * max(0, 64 - abs(left - boxes[40][1]))
        assert (index in own) == (shares > 0)


@pytest.fixture(scope="module")
def trained(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Four steps, with a checkpoint after two; what is saved is a moving average."""
    return train(setup_of(data, ema_decay=0.9), run=tmp_path_factory.mktemp("run"))


def test_a_run_goes_on_with_its_bank(data: DataConfig, trained: TrainResult, tmp_path: Path) -> None:
    assert any(note.startswith("the memory bank holds") for note in trained.notes)
    resumed = train(setup_of(data, ema_decay=0.9), run=tmp_path, resume=run_checkpoints(trained.run)[0])
    assert not any(note.startswith("the memory bank holds") for note in resumed.notes)
    assert all(map(equal, weights(trained.checkpoint), weights(resumed.checkpoint)))
    assert (trained.checkpoint / BANK_FILE).read_bytes() == (resumed.checkpoint / BANK_FILE).read_bytes()
    bank = bank_of_generator(load_generator(trained.checkpoint).module)
    assert bank is not None
    again = FolderSource(setup_of(data)).memory_bank(setup_of(data))
    np.testing.assert_array_equal(bank.colors, again.colors)


def test_a_checkpoint_without_its_bank_is_refused(trained: TrainResult, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / BANK_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"bank.npz: its SHA-256 begins"):
        load_generator(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"bank.npz: cannot be read"):
        load_generator(checkpoint)
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    (checkpoint / "checkpoint.json").write_text(json.dumps({**facts, "bank_sha256": ""}))
    with pytest.raises(CheckpointError, match="names no memory bank"):
        load_generator(checkpoint)


def test_a_network_without_a_bank_refuses_its_setting(data: DataConfig) -> None:
    setup = setup_of(data)
    spade = setup.generator.with_architecture(Architecture.SPADE)
    with pytest.raises(ConfigError, match="`bank_segments`: `generator` spade has no memory bank"):
        Setup(replace(setup.train, bank_segments=9), spade, data)
    assert Setup(setup.train, spade, data).train.bank_segments == 2048
    assert "bank_segments" in setup.to_json()["train"]
    old = setup.to_json()
    del old["train"]["bank_segments"]
    assert Setup.from_json(old) == setup
