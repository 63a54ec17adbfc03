"""Metrics during training: the same figures as computed by hand, on the same samples, and which way is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.samples import SampleArrays
from spade_deploy.metrics import ConfusionMatrix, OnnxExtractor, frechet_distance, kernel_distance
from spade_deploy.networks.spade import to_pixels
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import Batch, _collated
from spade_deploy.training.evaluator import Evaluator, photo_pixels
from tests.support.onnx_judges import extractor_file, segmenter_file

COLORS = [(220, 40, 40), (40, 200, 60), (40, 60, 210)]
LABELS = LabelSpec(3, has_dontcare=True, has_edges=True)


class Painted:
    """Label maps of noise, photos in their colours."""

    def __init__(self, count: int = 9, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.loaded = count, broken, 0

    def __len__(self) -> int:
        return self.count

    def stem(self, index: int) -> str:
        return str(index)

    def load(self, index: int, rng: np.random.Generator | None) -> SampleArrays:
        assert rng is None  # as evaluation sees it
        self.loaded += 1
        if index in self.broken:
            raise LabelMapError(f"{index}: is damaged")
        ids = np.random.default_rng(index).integers(0, 4, (32, 32)).astype(np.uint8)
        photo = np.array([*COLORS, (128, 128, 128)], np.uint8)[ids]
        return SampleArrays(ids, ids.astype(np.int32), photo)


def setup_of(**changes: Any) -> Setup:
    config = TrainConfig(**{"steps": 4, "batch_size": 4, "eval_every": 2, "eval_samples": 6, **changes})
    spec = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=32, width=32)
    return Setup(config, spec, DataConfig(crop_size=(32, 32)))


@pytest.fixture
def judges(tmp_path: Path) -> dict[str, Path]:
    return {
        "extractor": extractor_file(tmp_path / "e.onnx"),
        "segmenter": segmenter_file(tmp_path / "s.onnx", COLORS),
    }


def exact(batch: Batch) -> Tensor:
    return torch.from_numpy(photo_pixels(batch.photo))


def darker(batch: Batch) -> Tensor:
    return exact(batch) // 2


def test_photos_come_back_as_they_were_read() -> None:
    photo = np.arange(768).astype(np.uint8).reshape(1, 256, 3)  # each value in each channel
    batch = _collated([SampleArrays(np.zeros((1, 256), np.uint8), None, photo)], ("x",))
    np.testing.assert_array_equal(photo_pixels(batch.photo)[0], photo)
    assert (to_pixels(batch.photo)[0].numpy() != photo).any()


def test_figures_are_those_of_all_samples_at_once(judges: dict[str, Path]) -> None:
    source = Painted()
    found = Evaluator(setup_of(**judges), source).evaluate(darker)
    chosen = [source.load(n * 9 // 6, None) for n in range(6)]
    real = np.stack([sample.photo for sample in chosen])
    made = real // 2
    difference = made.astype(float) - real
    assert found["l1"] == pytest.approx(np.abs(difference).mean() / 255, rel=1e-12)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / (difference**2).mean()), rel=1e-12)
    extractor = OnnxExtractor(judges["extractor"])
    rows = extractor.features(made), extractor.features(real)
    assert found["frechet"] == pytest.approx(frechet_distance(*rows).value, rel=1e-9)  # measured 0
    assert found["kernel"] == pytest.approx(kernel_distance(*rows).value, rel=1e-9)
    assert list(found) == ["frechet", "kernel", "miou", "accuracy", "l1", "psnr"]
    perfect = Evaluator(setup_of(**judges), source).evaluate(exact)
    assert (perfect["l1"], perfect["miou"], perfect["accuracy"]) == (0, 1, 1)
    assert perfect["frechet"] == pytest.approx(0, abs=1e-10)
    assert found["frechet"] > 0.01


def test_a_model_that_paints_other_classes_has_no_agreement(judges: dict[str, Path]) -> None:
    def wrong(batch: Batch) -> Tensor:
        colors = torch.tensor([COLORS[1], COLORS[2], COLORS[0], (0, 0, 0)], dtype=torch.uint8)
        return colors[batch.label.long()]

    found = Evaluator(setup_of(segmenter=judges["segmenter"]), Painted()).evaluate(wrong)
    assert (found["miou"], found["accuracy"]) == (0, 0)
    assert list(found) == ["miou", "accuracy", "l1", "psnr"]
    assert ConfusionMatrix(3).miou == 0


def test_samples_are_read_once_and_broken_ones_replaced(judges: dict[str, Path]) -> None:
    source = Painted(broken=(0,))
    evaluator = Evaluator(setup_of(**judges), source)
    shapes: list[tuple[int, ...]] = []

    def generate(batch: Batch) -> Tensor:
        assert batch.instance is not None
        shapes.append(tuple(batch.label.shape))
        return darker(batch)

    first = evaluator.evaluate(generate)
    loaded = source.loaded
    assert evaluator.evaluate(generate) == first
    assert source.loaded == loaded == 7  # six and a broken one
    assert shapes == [(4, 32, 32), (2, 32, 32)] * 2  # no more at a time than a step of training


def test_fewer_samples_than_asked_for(judges: dict[str, Path]) -> None:
    found = Evaluator(setup_of(eval_samples=500, **judges), Painted(3)).evaluate(darker)
    assert np.isfinite(list(found.values())).all()


def test_judges_that_fail_on_real_photos_are_told(judges: dict[str, Path], tmp_path: Path) -> None:
    assert Evaluator(setup_of(**judges), Painted()).unfit() == {}
    blind = {
        "segmenter": segmenter_file(tmp_path / "blind.onnx", [COLORS[1], COLORS[2], COLORS[0]]),
        "extractor": extractor_file(tmp_path / "same.onnx", scale=0.0),
    }
    found = Evaluator(setup_of(**blind), Painted()).unfit()
    assert list(found) == ["miou", "accuracy", "frechet", "kernel"]
    assert found["miou"].startswith("the segmenter finds 0.0 % of the pixels of the real photos, guessing finds 3")
    assert Evaluator(setup_of(), Painted()).unfit() == {}


def test_which_way_is_better(judges: dict[str, Path], tmp_path: Path) -> None:
    evaluator = Evaluator(setup_of(**judges), Painted())
    directions = {name: evaluator.direction(name) for name in evaluator.names}
    assert directions == {
        "frechet": "lower",
        "kernel": "lower",
        "miou": "higher",
        "accuracy": "higher",
        "l1": "lower",
        "psnr": "higher",
    }
    with pytest.raises(ConfigError, match="`best_by`: 'fid' is not measured; measured are frechet, kernel"):
        evaluator.direction("fid")
    plain = Evaluator(setup_of(), Painted())
    assert plain.names == ("l1", "psnr")
    with pytest.raises(ConfigError, match="'miou' is not measured") as caught:
        plain.direction("miou")
    assert "`segmenter`" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="`extractor`"):
        Evaluator(setup_of(extractor=tmp_path / "none.onnx"), Painted())
