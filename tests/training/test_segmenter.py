"""The segmenter that is trained on real photos: it learns, says how well, is found again, and refuses what it must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.errors import ConfigError, DatasetError, TrainingError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.sets import label_set
from spade_deploy.metrics import OnnxSegmenter
from spade_deploy.progress import SILENT
from spade_deploy.spec import LabelSpec
from spade_deploy.training import segmenter
from spade_deploy.training.dataset import Batch
from spade_deploy.training.segmenter import SegmenterNet, SegmenterRequest, find_or_train
from spade_deploy.training.splits import open_source
from tests.support.listener import Listener

COLORS = np.array([(220, 40, 40), (40, 200, 60), (40, 60, 210)], np.uint8)
LABELS = LabelSpec(3, has_dontcare=True, names=("roof", "tree", "water", "unknown"))


def write_data(root: Path, split: str, count: int, seed: int, size: int = 32) -> None:
    """Blocks of classes, photos in their colours with noise; some pixels unknown."""
    random = np.random.default_rng(seed)
    for index in range(count):
        ids = np.kron(random.integers(0, 3, (4, 4)), np.ones((size // 4, size // 4), int)).astype(np.uint8)
        photo = np.clip(COLORS[ids] + random.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)
        ids[:2, :3] = 255
        for kind, pixels in (("labels", ids), ("images", photo)):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("data")
    write_data(root, "train", 6, seed=0)
    write_data(root, "val", 3, seed=1)
    return DataConfig("custom", root, load_size=(32, 32), crop_size=(32, 32))


def request_of(data: DataConfig, **changes: Any) -> SegmenterRequest:
    return replace(SegmenterRequest(data, LABELS, "val", steps=80, batch_size=2, width=4), **changes)


@pytest.fixture(scope="module")
def trained(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[SegmenterRequest, Path]:
    folder = tmp_path_factory.mktemp("segmenter")
    made = find_or_train(request_of(data), folder)
    assert not made.was_there
    return request_of(data), made.path


def test_it_learns_and_says_how_well(trained: tuple[SegmenterRequest, Path], tmp_path: Path) -> None:
    request, path = trained
    facts = OnnxSegmenter(path, LABELS).facts
    assert facts["score"]["split"] == "val"
    assert facts["score"]["images"] == 3
    assert facts["score"]["miou"] > 0.8  # measured 0.91 after 80 steps
    assert facts["labels"] == ["roof", "tree", "water"]
    assert facts["steps"] == 80
    assert (facts["request_sha256"], len(facts["labels_sha256"])) == (request.digest, 64)
    with torch.random.fork_rng():
        untrained = SegmenterNet(3, 4).eval()
    segmenter._save(segmenter._exported(untrained, request), tmp_path / "u.onnx", {"mean": 127.5, "std": 127.5})
    score, _ = segmenter._score(tmp_path / "u.onnx", request)
    assert score is not None
    assert score["miou"] < 0.5  # measured 0.10: the score is of what was learned


def test_it_is_found_again_where_nothing_changed(
    trained: tuple[SegmenterRequest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, path = trained

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(segmenter, "_train", fail)
    again = find_or_train(request, path.parent)
    assert again.was_there
    assert again.path == path
    assert again.score is not None
    for changed in (
        replace(request, steps=81),
        replace(request, seed=1),
        replace(request, labels=replace(LABELS, names=("roof", "tree", "sea", "unknown"))),
        replace(request, data=replace(request.data, flip=False)),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            find_or_train(changed, path.parent)


def test_the_same_request_gives_the_same_weights_and_leaves_the_random_state(data: DataConfig) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    request = request_of(data, steps=2)
    source = open_source(request.data, "train", LABELS)
    same = [segmenter._train(request, source, torch.device("cpu"), print, SILENT) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    other = segmenter._train(replace(request, seed=1), source, torch.device("cpu"), print, SILENT)
    weights = [network.state_dict() for network in (*same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])


def test_the_file_is_the_network(trained: tuple[SegmenterRequest, Path], data: DataConfig, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SegmenterNet(3, 4).eval()
    program = segmenter._exported(network, trained[0])
    path = tmp_path / "s.onnx"
    segmenter._save(program, path, {"mean": 127.5, "std": 127.5})
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    x = torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2)) / 127.5 - 1
    with torch.no_grad():
        expected = network(x).numpy()
    found = OnnxSegmenter(path, LABELS)._model.run(images, "logits")
    np.testing.assert_allclose(found, expected, atol=1e-5)  # measured 3e-8, of values to 0.5
    assert np.abs(found - np.roll(expected, 1, axis=1)).max() > 1e-2


def test_unknown_pixels_teach_nothing() -> None:
    torch.manual_seed(0)
    network = SegmenterNet(3, 2)
    photo = torch.rand(1, 3, 16, 16) * 2 - 1
    label = torch.zeros(1, 16, 16, dtype=torch.uint8)
    label[:, :8] = 3
    logits = network(photo)[:, :, 8:].permute(0, 2, 3, 1).reshape(-1, 3)
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(128, dtype=torch.long))
    loss = segmenter._loss(network, Batch(label, None, photo, ("x",)), 3, torch.device("cpu"))
    torch.testing.assert_close(loss, expected)
    nothing = segmenter._loss(network, Batch(torch.full_like(label, 3), None, photo, ("x",)), 3, torch.device("cpu"))
    assert float(nothing.detach()) == 0  # and no division by zero


def test_the_embedded_data_needs_no_files() -> None:
    request = SegmenterRequest(
        DataConfig(load_size=(32, 32), crop_size=(32, 32)), label_set("earth"), "test", steps=2, batch_size=2, width=2
    )
    source = open_source(request.data, "train", request.labels)
    heard = Listener()
    segmenter._train(request, source, torch.device("cpu"), print, heard)
    losses = [float(what.removeprefix("segmenter, loss ")) for what, _, _ in heard.counts]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(np.log(17), abs=1.0)  # measured 3.2: as good as a guess among 17 classes
    assert request.data.described == "earth (embedded)"


def test_without_held_out_photos_there_is_no_score(trained: tuple[SegmenterRequest, Path], data: DataConfig) -> None:
    score, notes = segmenter._score(trained[1], request_of(data, held_out="test"))
    assert score is None
    assert "no score of its own" in notes[0]
    with pytest.raises(ConfigError, match="it learns from the train split, so it cannot be judged on it"):
        request_of(data, held_out="train")


def test_a_photo_that_is_judged_is_not_learned_and_new_ones_train_it_anew(tmp_path: Path) -> None:
    write_data(tmp_path / "d", "train", 3, seed=0)
    write_data(tmp_path / "d", "val", 2, seed=1)
    judged, learned = (tmp_path / "d" / split / "images" for split in ("val", "train"))
    (judged / "000.png").write_bytes((learned / "002.png").read_bytes())
    config = DataConfig("custom", tmp_path / "d", load_size=(32, 32), crop_size=(32, 32))
    made = find_or_train(request_of(config, steps=2), tmp_path / "s")
    assert made.notes == (f"{learned / '002.png'} is judged, too: not trained on",)
    facts = OnnxSegmenter(made.path, request_of(config).labels).facts
    assert facts["trained_on"].startswith("2 real photos")
    assert find_or_train(request_of(config, steps=2), tmp_path / "s").was_there
    (judged / "001.png").write_bytes((learned / "001.png").read_bytes())
    assert not find_or_train(request_of(config, steps=2), tmp_path / "s").was_there


def test_a_broken_photo_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    write_data(tmp_path / "d", "train", 3, seed=0)
    write_data(tmp_path / "d", "val", 2, seed=1)
    for split in ("train", "val"):
        (tmp_path / "d" / split / "images" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    config = DataConfig("custom", tmp_path / "d", load_size=(32, 32), crop_size=(32, 32))
    made = find_or_train(request_of(config, steps=3), tmp_path / "s")
    assert any("001.png" in note for note in made.notes)
    assert made.score is not None
    assert made.score["images"] == 1


def test_refusals(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="`segmenter_steps`: 0"):
        request_of(data, steps=0)
    with pytest.raises(ConfigError, match="16 x 16"):
        request_of(replace(data, crop_size=(8, 32)))
    empty = DataConfig("custom", tmp_path / "none", load_size=(32, 32), crop_size=(32, 32))
    with pytest.raises(DatasetError, match="no train samples"):
        find_or_train(request_of(empty), tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        find_or_train(request_of(data, steps=1), blocked)
    monkeypatch.setattr(segmenter, "_RATE", 1e30)
    with pytest.raises(TrainingError, match="the loss is"):
        find_or_train(request_of(data), tmp_path / "s")
    assert not (tmp_path / "s").exists()
