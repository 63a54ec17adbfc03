"""`spade eval`: figures that can be computed by hand, several models in one report, and what broken files cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from spade_deploy import cli, evaluation
from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.commands.request_options import options_of, request_from
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.errors import ConfigError, DatasetError, NotFoundError, SpadeError
from spade_deploy.evaluation import DataFlags, EvalRequest, EvalResult, evaluate
from spade_deploy.evaluation.data import Sample, evenly, held_out_split
from spade_deploy.evaluation.measure import _styles
from spade_deploy.evaluation.seeds import SeedGroup, compare_groups
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.metrics import OnnxExtractor, frechet_distance, kernel_distance
from spade_deploy.metrics.seeds import spread
from spade_deploy.networks import build as architectures
from spade_deploy.networks.spade import SpadeGenerator, make_segmap, to_pixels
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from spade_deploy.training.config import TrainConfig
from tests.support.generators import build_generator
from tests.support.onnx_judges import extractor_file, segmenter_file
from tests.support.stand_in import EDGES, STYLED, expected, stand_in_artifact

COLORS = [(220, 40, 40), (40, 200, 60), (40, 60, 210)]
LABELS = LabelSpec(3)
COUNT = 6


def painted(ids: NDArray[Any]) -> NDArray[np.uint8]:
    return np.array(COLORS, np.uint8)[ids]


def photo_of(ids: NDArray[Any], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 10, (*ids.shape, 3))
    return np.clip(painted(ids) + noise, 0, 255).astype(np.uint8)


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with three splits, runs/ with SPADE (first) and pix2pixHD (second), images/ of real photos, two judges."""
    root = tmp_path_factory.mktemp("place")
    for number, split in enumerate(("train", "val", "test")):
        for index in range(COUNT):
            ids = np.kron(np.random.default_rng((number, index)).integers(0, 3, (4, 4)), np.ones((8, 8), int))
            photo = photo_of(ids, 100 * number + index)
            save(root / "data" / split / "labels" / f"{index:02d}.png", ids.astype(np.uint8))
            save(root / "data" / split / "images" / f"{index:02d}.png", photo)
            if split == "test":
                save(root / "images" / f"{index:02d}.png", photo)
                save(root / "wrong" / f"{index:02d}.png", painted((ids + 1) % 3))
    data = DataConfig("custom", root / "data", load_size=(32, 32), crop_size=(32, 32))
    spade = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=32, width=32)
    baseline = spade.with_architecture(Architecture.PIX2PIXHD)
    for seed, (name, spec) in enumerate({"first": spade, "second": baseline}.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = architectures.build_generator(spec).eval()
        folder = root / "runs" / name / "checkpoints" / "step_00000004"
        info = save_checkpoint(folder, generator, step=4, origin="train")
        value = {**info.to_json(), "data": data.to_json(), "created_unix_ns": seed}
        (folder / "checkpoint.json").write_text(json.dumps(value))
    extractor_file(root / "extractor.onnx")
    segmenter_file(root / "segmenter.onnx", COLORS)
    return root


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """A place of one's own, to be broken."""
    for name in ("data", "images", "runs"):
        shutil.copytree(place / name, tmp_path / name)
    for path in (tmp_path / "runs").rglob("checkpoint.json"):
        path.write_text(path.read_text().replace(str(place), str(tmp_path)))
    return tmp_path


def judged(place: Path, *models: str, **changes: Any) -> EvalResult:
    request = EvalRequest(
        tuple(place / model for model in models),
        extractor=changes.pop("extractor", place / "extractor.onnx"),
        segmenter=changes.pop("segmenter", place / "segmenter.onnx"),
        **{"data": _flags(place, models), "batch_size": 4, **changes},
    )
    return evaluate(request, runs_dir=place / "runs")


def _flags(place: Path, models: tuple[str, ...]) -> DataFlags:
    """Folders of images say nothing of their labels; a generator does."""
    has_generator = any(model.startswith("runs/") for model in models)
    return DataFlags(root=place / "data", num_labels=None if has_generator else 3, size=(32, 32))


class TestFigures:
    def test_real_photos_as_a_model_are_perfect_and_others_are_not(self, place: Path) -> None:
        result = judged(place, "images", "wrong")
        real, wrong = result.rows
        assert (real.images, real.miou, real.accuracy, real.l1, real.psnr) == (COUNT, 1, 1, 0, 100)
        assert real.figure("frechet") == pytest.approx(0, abs=1e-9)  # measured 3e-17
        assert (wrong.miou, wrong.accuracy) == (0, 0)
        assert wrong.l1 is not None
        assert wrong.l1 > 0.3
        # Of six images of the same colours a Frechet distance knows too little to tell the sets apart.
        best = {name: result.best(name) for name in ("miou", "accuracy", "frechet", "l1", "psnr", "diversity")}
        assert best == {
            **dict.fromkeys(("miou", "accuracy", "l1", "psnr"), "images"),
            "frechet": None,
            "diversity": None,
        }
        assert "leads wrong by" in result.verdicts["frechet"].reason
        assert "within the noise" in result.verdicts["frechet"].reason
        assert result.best_by_class == dict.fromkeys(range(3), "images")

    def test_floor_and_ceiling_of_real_photos(self, place: Path) -> None:
        result = judged(place, "wrong")
        ceiling, floor = result.references
        assert (ceiling.name, floor.name) == ("real photos (test split)", "real photos (train split)")
        assert (ceiling.miou, ceiling.accuracy, ceiling.frechet) == (1, 1, None)
        photos = {
            split: np.stack(
                [np.asarray(Image.open(path)) for path in sorted((place / "data" / split / "images").iterdir())]
            )
            for split in ("test", "train")
        }
        extractor = OnnxExtractor(place / "extractor.onnx")
        rows = {split: extractor.features(pixels) for split, pixels in photos.items()}
        assert floor.frechet == frechet_distance(rows["train"], rows["test"])
        assert floor.kernel == kernel_distance(rows["train"], rows["test"])
        assert floor.miou is None
        made = np.stack([np.asarray(Image.open(path)) for path in sorted((place / "wrong").iterdir())])
        assert result.rows[0].frechet == frechet_distance(extractor.features(made), rows["test"])

    @pytest.mark.parametrize("run", ["first", "second"])
    def test_a_checkpoint_makes_its_own_images(self, place: Path, run: str) -> None:
        result = judged(place, f"runs/{run}", data=DataFlags(), samples=3)
        module = load_generator(place / "runs" / run / "checkpoints" / "step_00000004").module
        test = place / "data" / "test"
        difference = []
        for index in (0, 2, 4):  # three of six, evenly spaced
            ids = torch.from_numpy(np.array(Image.open(test / "labels" / f"{index:02d}.png")))[None]
            with torch.no_grad():
                made = to_pixels(module(make_segmap(ids, None, LABELS)))[0].numpy()
            difference.append(made.astype(float) - np.asarray(Image.open(test / "images" / f"{index:02d}.png")))
        # Batches of another size add in another order: a pixel may move by 1.
        assert result.rows[0].l1 == pytest.approx(np.abs(difference).mean() / 255, abs=1e-5)  # measured 0
        assert result.samples == result.rows[0].images == 3
        assert [strip.stem for strip in result.strips] == ["00", "02", "04"]

    @pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
    def test_images_of_nan_are_told_and_not_judged(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """As pixels they would be some colour, with an L1 like any other."""
        if kind == "checkpoint":
            monkeypatch.setattr(SpadeGenerator, "forward", lambda self, segmap, z: segmap[:, :3] * np.nan)
            with pytest.raises(SpadeError) as caught:
                judged(place, "runs/first", data=DataFlags(), samples=2)
            assert "step_00000004: the network makes NaN or infinity of 00" in str(caught.value)
            return
        run = OrtRuntime.run

        def wild(self: OrtRuntime, inputs: Any, outputs: Any = None) -> Any:
            return {name: np.full_like(found, np.nan) if name == "image" else found
                    for name, found in run(self, inputs, outputs).items()}  # fmt: skip

        monkeypatch.setattr(OrtRuntime, "run", wild)
        artifact = stand_in_artifact(tmp_path / "artifact", EDGES)
        for n in range(2):
            save(tmp_path / "labels" / f"{n}.png", np.zeros((32, 64), np.uint8))
            save(tmp_path / "instances" / f"{n}.png", np.zeros((32, 64), np.uint8))
            save(tmp_path / "photos" / f"{n}.png", np.zeros((32, 64, 3), np.uint8))
        flags = DataFlags(labels=tmp_path / "labels", images=tmp_path / "photos", instances=tmp_path / "instances")
        with pytest.raises(SpadeError, match="artifact: the network makes NaN or infinity of 0"):
            evaluate(EvalRequest((artifact.path,), data=flags), runs_dir=tmp_path / "runs")

    def test_an_artifact_gets_instances_and_runs(self, tmp_path: Path) -> None:
        ids = np.random.default_rng(0).integers(0, 6, (2, 32, 64)).astype(np.uint8)
        artifact = stand_in_artifact(tmp_path / "artifact", EDGES)
        instances = np.random.default_rng(1).integers(0, 16, ids.shape).astype(np.uint8)
        made = expected(EDGES, {LABEL: ids, INSTANCE: instances.astype(np.int32)})["pixels"]
        for n in range(2):
            save(tmp_path / "labels" / f"{n}.png", np.where(ids[n] == 5, 255, ids[n]).astype(np.uint8))
            save(tmp_path / "instances" / f"{n}.png", instances[n])
            save(tmp_path / "photos" / f"{n}.png", made[n])
        flags = DataFlags(labels=tmp_path / "labels", images=tmp_path / "photos", instances=tmp_path / "instances")
        result = evaluate(EvalRequest((artifact.path,), data=flags), runs_dir=tmp_path / "runs")
        assert result.rows[0].kind == "artifact"
        assert result.rows[0].l1 == 0
        assert "ONNX Runtime" in result.rows[0].facts["runtime"]
        flags = replace(flags, instances=None)
        with pytest.raises(DatasetError, match="instance maps"):
            evaluate(EvalRequest((artifact.path,), data=flags), runs_dir=tmp_path / "runs")

    def test_diversity_over_styles(self, tmp_path: Path) -> None:
        artifact = stand_in_artifact(tmp_path / "styled", STYLED)
        plain = stand_in_artifact(tmp_path / "flat", replace(STYLED, z_dim=None))
        ids = np.random.default_rng(0).integers(0, 300, (2, 32, 32)).astype(np.int32)
        for n in range(2):
            save(tmp_path / "labels" / f"{n}.png", ids[n].astype(np.uint16))
            save(tmp_path / "photos" / f"{n}.png", np.zeros((32, 32, 3), np.uint8))
        request = EvalRequest(
            (artifact.path, plain.path),
            data=DataFlags(labels=tmp_path / "labels", images=tmp_path / "photos"),
            extractor=extractor_file(tmp_path / "e.onnx"),
            styles=3,
        )
        result = evaluate(request, runs_dir=tmp_path / "runs")
        assert result.rows[0].diversity is not None
        assert result.rows[0].diversity > 0.01  # the blue channel follows the style
        assert result.rows[1].diversity is None
        assert any("no style vector" in note for note in result.notes)
        (strip,) = result.style_strips
        assert len(strip.images) == 3
        np.testing.assert_array_equal(strip.images[0], result.strips[0].images[result.rows[0].name])
        again = evaluate(request, runs_dir=tmp_path / "runs")
        assert again.rows[0].diversity == result.rows[0].diversity
        other = evaluate(replace(request, seed=1), runs_dir=tmp_path / "runs")
        assert other.rows[0].diversity != result.rows[0].diversity


class TestVerdicts:
    def test_a_judge_that_fails_on_real_photos_gives_no_verdict(self, place: Path, tmp_path: Path) -> None:
        """It takes each class for the next one: images with exchanged classes would be perfect, and real photos 0 %."""
        fooled = segmenter_file(tmp_path / "fooled.onnx", [*COLORS[1:], COLORS[0]])
        result = judged(place, "images", "wrong", segmenter=fooled)
        wrong = result.rows[1]
        assert (wrong.accuracy, result.references[0].accuracy) == (1, 0)
        for name in ("miou", "accuracy"):
            verdict = result.verdicts[name]
            assert (verdict.best, verdict.is_judge_unfit) == (None, True)
            assert "finds 0.0 % of the pixels of the real photos" in verdict.reason
        assert result.best("l1") == "images"  # the other judges keep their verdict
        assert result.best_by_class == {}
        assert all(
            "no verdict by this judge: the segmenter" in row.remark for row in (*result.rows, *result.references[:1])
        )
        value = json.loads(evaluation.write_report(result, tmp_path)[0].read_text())
        assert value["verdicts"]["miou"]["best"] is None
        page = (tmp_path / "evaluation.html").read_text()
        assert "(100.0 %" in page
        assert page.count("no verdict by this judge") == 3
        assert '<td class="n good">100.0 %' not in page

    def test_a_lead_within_the_noise_is_no_best(self, place: Path, tmp_path: Path) -> None:
        """Each of the two is nearer to half of the photos, and one of them by a little more."""
        for index, path in enumerate(sorted((place / "images").iterdir())):
            photo = np.asarray(Image.open(path)).astype(int)
            for name, error in (("a", 20 if index % 2 else 31), ("b", 30 if index % 2 else 20)):
                save(tmp_path / name / path.name, np.clip(photo + error, 0, 255).astype(np.uint8))
        data = DataFlags(root=place / "data", num_labels=3, size=(32, 32))
        result = evaluate(EvalRequest((tmp_path / "a", tmp_path / "b"), data=data), runs_dir=tmp_path)
        verdict = result.verdicts["l1"]
        assert result.rows[0].l1 != result.rows[1].l1
        assert verdict.best is None
        assert verdict.difference is not None
        assert verdict.noise is not None
        assert 0 < verdict.difference < verdict.noise
        assert result.rows[0].intervals["l1"] > 0
        few = evaluate(EvalRequest((place / "images", tmp_path / "a"), data=data, samples=4), runs_dir=tmp_path)
        assert few.best("l1") is None
        assert "fewer than 5 samples" in few.verdicts["l1"].reason
        assert few.rows[0].intervals == {}

    def test_equal_models_are_equal(self, place: Path, tmp_path: Path) -> None:
        shutil.copytree(place / "images", tmp_path / "again")
        data = DataFlags(root=place / "data", num_labels=3, size=(32, 32))
        request = EvalRequest((place / "images", tmp_path / "again"), data=data, segmenter=place / "segmenter.onnx")
        result = evaluate(request, runs_dir=tmp_path)
        assert {name: result.best(name) for name in result.measured()} == dict.fromkeys(result.measured())
        assert result.best_by_class == {}
        assert result.verdicts["miou"].reason == "no best: images and again are equal"


class TestSeeds:
    def test_runs_that_differ_by_their_seed_are_averaged(self, place: Path, tmp_path: Path) -> None:
        """Two settings of two seeds each; a fifth run of the first setting has the same seed and a longer training."""
        paths = []
        for name, batch_size, seed, steps in (
            ("a0", 4, 0, 9),
            ("a1", 4, 1, 9),
            ("b0", 8, 0, 9),
            ("b1", 8, 1, 9),
            ("c0", 4, 0, 10),
        ):
            paths.append(Path(shutil.copytree(place / "runs" / "first", tmp_path / name)))
            info = paths[-1] / "checkpoints" / "step_00000004" / "checkpoint.json"
            config = TrainConfig(steps=steps, batch_size=batch_size, seed=seed, workers=seed).to_json()
            info.write_text(json.dumps({**json.loads(info.read_text()), "train": config}))
        result = evaluate(EvalRequest(tuple(paths), samples=5), runs_dir=tmp_path)
        assert [(group.models, group.seeds) for group in result.seed_groups] == [
            (("a0, step 4", "a1, step 4"), (0, 1)),
            (("b0, step 4", "b1, step 4"), (0, 1)),
        ]
        spread = result.seed_groups[0].figures["l1"]
        assert (spread.mean, spread.std, spread.seeds) == (result.rows[0].l1, 0, 2)
        assert result.seed_verdicts["l1"].best is None  # all of them are copies of one generator
        page = evaluation.write_report(result, tmp_path / "out")[1].read_text()
        for text in ("Random seeds averaged", "a0, step 4 (mean of 2 seeds)", "<th>train.batch_size</th><td>4</td>"):
            assert text in page
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["seeds_averaged"][1]["seeds"] == [0, 1]

    def test_settings_are_compared_by_the_noise_of_their_seeds(self) -> None:
        def group(name: str, *values: float) -> SeedGroup:
            return SeedGroup(name, (name,) * len(values), tuple(range(len(values))), {"l1": spread(values)})

        near, far = group("near", 0.10, 0.12, 0.11), group("far", 0.30, 0.31, 0.29)
        found = compare_groups([far, near], {})["l1"]
        assert found.best == "near"
        # Welch by hand: deviations 0.01 each, so the error is sqrt(2 * 0.0001 / 3) and t(4) is 2.776.
        assert found.noise == pytest.approx(2.776 * (2 * 0.0001 / 3) ** 0.5, rel=3e-3)
        wide = group("wide", 0.05, 0.55, 0.20)
        assert compare_groups([near, wide], {})["l1"].best is None
        assert compare_groups([near, far], {"l1": "it is blind"})["l1"].reason == "no verdict: it is blind"


class TestReport:
    def test_two_runs_make_one_report(self, place: Path, tmp_path: Path) -> None:
        result = judged(place, "runs/first", "runs/second", "images", data=DataFlags(size=None))
        files = evaluation.write_report(result, tmp_path / "out")
        assert [file.name for file in files] == ["evaluation.json", "evaluation.html"]
        value = json.loads(files[0].read_text())
        assert [model["name"] for model in value["models"]] == ["first, step 4", "second, step 4", "images"]
        assert value["settings"]["extractor"]["sha256"]
        assert value["settings"]["split"] == "test"
        assert value["metrics"]["frechet"] == "Frechet distance (extractor features)"
        assert value["models"][0]["frechet"]["caveat"]
        assert {entry["name"] for entry in value["models"][2]["classes"]} == {"label 0", "label 1", "label 2"}
        page = files[1].read_text()
        for text in (
            "first, step 4",
            "second, step 4",
            "images",
            "real photos (test split)",
            "real photos (train split)",
        ):
            assert text in page
        assert page.count("<img") == COUNT * 5  # label map, three models, photo
        assert "FID" not in page

    def test_alone_it_takes_the_newest_run(self, place: Path) -> None:
        found = evaluate(EvalRequest(), runs_dir=place / "runs")
        assert [row.name for row in found.rows] == ["second, step 4"]
        assert found.measured() == ["l1", "psnr"]
        assert any("weak measures" in note for note in found.notes)
        with pytest.raises(NotFoundError, match="no checkpoint") as caught:
            evaluate(EvalRequest(), runs_dir=place / "data")
        assert "spade train" in str(caught.value.hint)

    def test_the_best_checkpoint_of_a_run(self, copy: Path) -> None:
        run = copy / "runs" / "first"
        shutil.copytree(run / "checkpoints" / "step_00000004", run / "checkpoints" / "step_00000002")
        info = run / "checkpoints" / "step_00000002" / "checkpoint.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "step": 2, "created_unix_ns": 0}))
        request = EvalRequest((run,), samples=2)
        assert evaluate(request, runs_dir=copy).rows[0].name == "first, step 4"
        with pytest.raises(NotFoundError, match="no checkpoint was chosen as the best"):
            evaluate(replace(request, best=True), runs_dir=copy)
        best = {"step": 2, "metric": "l1", "value": 0.1, "direction": "lower", "measured_with": {}}
        (run / "best.json").write_text(json.dumps(best))
        assert evaluate(replace(request, best=True), runs_dir=copy).rows[0].name == "first, step 2"
        with pytest.raises(ConfigError, match="images is not a run"):
            evaluate(EvalRequest((copy / "images",), best=True), runs_dir=copy)

    def test_without_jinja_the_json_stands_alone(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from spade_deploy.errors import MissingDependencyError
        from spade_deploy.pages import render as pages

        def missing(*_: Any, **__: Any) -> str:
            raise MissingDependencyError("jinja2 is not installed")

        monkeypatch.setattr(pages, "render", missing)
        (tmp_path / "evaluation.html").write_text("of an older evaluation")
        files = evaluation.write_report(judged(place, "images"), tmp_path)
        assert [file.name for file in files] == ["evaluation.json"]
        assert not (tmp_path / "evaluation.html").exists()


class TestBadInput:
    def test_broken_files_are_told_skipped_and_counted(self, copy: Path, place: Path) -> None:
        shutil.copy(place / "extractor.onnx", copy)
        shutil.copy(place / "segmenter.onnx", copy)
        (copy / "data" / "test" / "images" / "01.png").write_bytes(b"\x89PNG\r\n\x1a\nnoise")
        (copy / "images" / "02.png").write_bytes(b"")
        (copy / "images" / "03.png").unlink()
        result = judged(copy, "images", "runs/first")
        assert result.samples == 5
        assert [row.images for row in result.rows] == [3, 5]
        assert len(result.all_skipped) == 3
        assert "01.png" in result.skipped[0]
        assert "02.png" in result.rows[0].skipped[0]
        assert "has no image 03" in result.rows[0].skipped[1]
        assert any("different numbers of images" in note for note in result.notes)
        assert result.rows[0].miou == 1
        page = evaluation.write_report(result, copy / "out")[1].read_text()
        assert "images: no image" in page

    def test_where_nothing_is_left_it_is_an_error(self, copy: Path) -> None:
        for path in (copy / "images").iterdir():
            path.rename(path.with_name("x" + path.name))
        flags = DataFlags(root=copy / "data", num_labels=3, size=(32, 32))
        with pytest.raises(SpadeError, match="has no image of the 6 samples") as caught:
            evaluate(EvalRequest((copy / "images",), data=flags), runs_dir=copy / "runs")
        assert "stem" in str(caught.value.hint)
        for path in (copy / "data" / "test" / "images").iterdir():
            path.write_bytes(b"noise")
        with pytest.raises(DatasetError, match="none of the 6 samples of the test split can be used"):
            evaluate(EvalRequest((copy / "runs" / "first",)), runs_dir=copy / "runs")

    def test_what_cannot_be_compared(self, place: Path, tmp_path: Path) -> None:
        def generator(name: str, **fields: Any) -> Path:
            spec = {"labels": LABELS, "base_channels": 2, "hidden_channels": 4, "height": 32, "width": 32, **fields}
            save_checkpoint(tmp_path / name, build_generator(training_steps=1, **spec), step=1, origin="train")
            return tmp_path / name

        run = place / "runs" / "first"
        with pytest.raises(ConfigError, match="has 4 labels, first, step 4 3"):
            evaluate(EvalRequest((run, generator("four", labels=LabelSpec(4)))), runs_dir=tmp_path)
        large = generator("large", height=64, width=64)
        with pytest.raises(ConfigError, match=r"different sizes: .*32 x 32.*64 x 64"):
            evaluate(EvalRequest((run, large)), runs_dir=tmp_path)
        both = evaluate(EvalRequest((run, large), data=DataFlags(size=(64, 64)), samples=2), runs_dir=tmp_path)
        assert both.settings["height"] == 64
        with pytest.raises(ConfigError, match="40 is not a multiple of 32, as first, step 4"):
            evaluate(EvalRequest((run,), data=DataFlags(size=(40, 40))), runs_dir=tmp_path)
        with pytest.raises(ConfigError, match="`num_labels`: first, step 4 says"):
            evaluate(EvalRequest((run,), data=DataFlags(num_labels=3)), runs_dir=tmp_path)
        with pytest.raises(ConfigError, match="same model as"):
            evaluate(EvalRequest((run, run)), runs_dir=tmp_path)
        with pytest.raises(ConfigError, match="which data") as caught:
            evaluate(EvalRequest((large,)), runs_dir=tmp_path)
        assert "`preset` earth" in str(caught.value.hint)
        for path, said in ((tmp_path / "none", "does not exist"), (place / "data", "neither a run")):
            with pytest.raises(NotFoundError, match=said):
                evaluate(EvalRequest((path,)), runs_dir=tmp_path)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"segmenter": Path("a"), "train_segmenter": True}, "`segmenter` a contradicts `train_segmenter`"),
            ({"segmenter_steps": 5}, "`segmenter_steps` 5"),
            ({"extractor_facts": {"mean": 1}}, "`extractor_mean`"),
            ({"styles": 1, "extractor": Path("e")}, "`styles`: 1"),
            ({"styles": 3}, "`styles` 3"),
            ({"samples": 1}, "`samples`: 1"),
            ({"batch_size": 0}, "`batch_size`: 0"),
        ],
    )
    def test_flags_that_contradict(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            EvalRequest(**fields)

    def test_flags_of_the_extractor(self) -> None:
        left_out = {option.key: option.default for option in options_of(EvalRequest)} | {"extractor": Path("e")}
        texts = {"extractor_mean": "1,2,3", "extractor_size": "64x32"}
        found = request_from(EvalRequest, {**left_out, **texts})
        assert found.extractor_facts == {"mean": (1, 2, 3), "size": [64, 32]}
        with pytest.raises(ConfigError, match="`extractor_size`: '64x' is not"):
            request_from(EvalRequest, {**left_out, "extractor_size": "64x"})


class TestData:
    def test_the_held_out_split(self, place: Path, copy: Path) -> None:
        config = DataConfig("custom", copy / "data", load_size=(32, 32), crop_size=(32, 32))
        assert held_out_split(DataConfig()) == "test"
        assert held_out_split(config) == "test"
        shutil.rmtree(copy / "data" / "test")
        assert held_out_split(config) == "val"
        shutil.rmtree(copy / "data" / "val")
        assert held_out_split(config) == "train"
        result = evaluate(EvalRequest((copy / "runs" / "first",)), runs_dir=copy / "runs")
        assert any("training samples" in note for note in result.notes)
        shutil.rmtree(copy / "data" / "train" / "images")
        with pytest.raises(DatasetError, match="no val samples"):
            held_out_split(config)
        labels_only = DataConfig("custom", labels_dir=place / "data" / "test" / "labels")
        with pytest.raises(DatasetError, match="needs photos"):
            held_out_split(labels_only)

    def test_unpaired_files_and_other_data_are_told(self, copy: Path) -> None:
        (copy / "data" / "test" / "images" / "05.png").unlink()
        result = evaluate(EvalRequest((copy / "runs" / "first",)), runs_dir=copy / "runs")
        assert result.samples == 5
        assert any("1 files have no partner" in note and "05.png" in note for note in result.notes)
        flags = DataFlags(labels=copy / "data" / "val" / "labels", images=copy / "data" / "val" / "images")
        other = evaluate(EvalRequest((copy / "runs" / "first",), data=flags), runs_dir=copy / "runs")
        assert other.samples == COUNT
        assert any("not on the data of this evaluation" in note for note in other.notes)

    def test_evenly(self) -> None:
        assert evenly(10, 3) == [0, 3, 6]
        assert evenly(4, None) == evenly(4, 9) == [0, 1, 2, 3]
        assert evenly(5, 0) == []

    def test_the_embedded_data_needs_no_files(self, tmp_path: Path) -> None:
        from spade_deploy.labels.earth import cut, earth_tiles

        for tile in earth_tiles("test")[:4]:
            save(tmp_path / "photos" / f"{tile.stem}.png", cut(tile)[1])
        result = evaluate(EvalRequest((tmp_path / "photos",), data=DataFlags(preset="earth")), runs_dir=tmp_path)
        assert result.samples == 76
        assert (result.rows[0].images, result.rows[0].l1, len(result.rows[0].skipped)) == (4, 0, 72)
        assert result.settings["split"] == "test"


class TestCommand:
    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "160")

    def test_from_flags_to_files(self, place: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        command = ["eval", *(str(place / "runs" / name) for name in ("first", "second")), "--out", str(out)]
        command += ["--extractor", str(place / "extractor.onnx"), "--segmenter", str(place / "segmenter.onnx")]
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
        for text in (
            "first, step 4",
            "second, step 4",
            "mIoU",
            "real photos (train split)",
            "Frechet distance (extractor",
        ):
            assert text in done.output
        assert (out / "evaluation.html").is_file()

    def test_a_broken_file_among_good_ones_ends_in_one(self, copy: Path) -> None:
        (copy / "data" / "test" / "images" / "01.png").write_bytes(b"noise")
        done = CliRunner().invoke(
            cli.app, ["eval", str(copy / "runs" / "first"), "--runs", str(copy / "runs"), "--out", str(copy / "out")]
        )
        assert done.exit_code == 1
        assert "1 files could not be used" in done.output
        assert "01.png" in done.output
        assert "--train-segmenter" in done.output
        assert json.loads((copy / "out" / "evaluation.json").read_text())["samples"] == 5

    def test_the_trained_segmenter_is_reused(self, copy: Path) -> None:
        command = ["eval", str(copy / "images"), str(copy / "runs" / "first"), "--runs", str(copy / "runs")]
        command += ["--out", str(copy / "out"), "--train-segmenter", "--segmenter-steps", "2"]
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
        (file,) = (copy / "runs" / "segmenter-custom").glob("*.onnx")
        when = file.stat().st_mtime_ns
        assert CliRunner().invoke(cli.app, command).exit_code == 0
        assert file.stat().st_mtime_ns == when
        value = json.loads((copy / "out" / "evaluation.json").read_text())
        # What the segmenter says of itself is what it reaches on real photos here: the ceiling.
        assert value["settings"]["segmenter"]["score"]["miou"] == value["references"][0]["miou"]
        assert value["models"][0]["miou"] == value["references"][0]["miou"]


def test_a_style_is_that_of_its_sample_wherever_it_is_in_a_batch() -> None:
    def styles(seed: int, style: int, *indices: int) -> NDArray[Any]:
        samples = [Sample(np.zeros((1, 1)), None, np.zeros((1, 1, 3)), index, str(index)) for index in indices]
        found = _styles(seed, samples, style, 4)
        assert found is not None
        return found

    both = styles(0, 0, 5, 9)
    assert both.shape == (2, 4)
    assert np.array_equal(both[1:], styles(0, 0, 9))
    for other in (styles(1, 0, 9), styles(0, 1, 9), both[:1]):
        assert not np.array_equal(both[1:], other)
