"""A student beside its teacher: figures that can be computed in another way, and a teacher that is gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import LABEL, Arrays, rewrite_manifest
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.networks.build import build_generator as build
from spade_deploy.networks.build import count_parameters
from spade_deploy.networks.spade import SpadeGenerator, make_segmap
from spade_deploy.release.quality import Figure, Judged, Quality, Unmeasured, knows_photos, unmeasured
from spade_deploy.release.student import Exported, StoredFile, StudentReport, compare_with_teacher, teacher_of
from spade_deploy.release.student_table import student_rows
from spade_deploy.runs import ARTIFACT, GENERATOR_FILE, checkpoint_folder
from spade_deploy.runs.checkpoint import TrainingState, load_generator, save_checkpoint
from spade_deploy.runs.shipped import SHIPPED_FOLDER, shipped_facts, shipped_generator
from spade_deploy.spec import Architecture, LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.distillation.pruning import pruned_student
from tests.support.generators import build_generator
from tests.support.stand_in import stand_in_artifact
from tests.support.training_runs import setup_of

INPUTS: Arrays = {LABEL: np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32) // 32 % 3}
NO_ARTIFACT = Path("nowhere")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's run; its teacher, of twice the width, lies beside it."""
    runs = tmp_path_factory.mktemp("runs")
    teacher = build_generator(labels=LabelSpec(3), base_channels=4, hidden_channels=6, height=32, width=32)
    info = save_checkpoint(checkpoint_folder(runs / "wide", 0), teacher, step=0, origin="import")
    narrow = pruned_student(teacher, replace(teacher.spec, base_channels=2))
    facts = TeacherFacts(str(checkpoint_folder(runs / "wide", 0)), info.generator_sha256, teacher.spec)
    _save_student(runs / "student", narrow, facts)
    return runs


def _save_student(run: Path, narrow: SpadeGenerator, facts: TeacherFacts) -> None:
    train = replace(setup_of().train, distill=Distillation(facts))
    size = (narrow.spec.height, narrow.spec.width)
    setup = Setup(train, narrow.spec, DataConfig(crop_size=size, load_size=size))
    save_checkpoint(checkpoint_folder(run, 6), narrow, step=6, origin="train", setup=setup, state=TrainingState({}, {}))


@pytest.fixture
def student(runs: Path) -> Exported:
    folder = checkpoint_folder(runs / "student", 6)
    return Exported(load_generator(folder), folder, NO_ARTIFACT)


def compared(student: Exported, runs: Path, **more: Any) -> StudentReport:
    found = compare_with_teacher(student, INPUTS, runs, **more)
    assert found is not None
    return found


def test_the_figures_are_those_of_the_two_modules(student: Exported, runs: Path) -> None:
    found = compared(student, runs)
    facts, module = teacher_of(student.loaded.info), student.loaded.module
    assert facts is not None
    teacher = load_generator(Path(facts.place)).module
    segmap = make_segmap(torch.from_numpy(INPUTS[LABEL]), None, student.loaded.spec.labels)
    with torch.no_grad():
        error = (teacher(segmap) - module(segmap)).double().square().mean().item()
    assert found.psnr_db == pytest.approx(10 * np.log10(4 / error), abs=1e-3)
    assert 0 < found.ssim < 1  # type: ignore[operator]
    assert found.images == len(found.pictures) == 2
    wide, narrow = found.costs
    assert (wide.name, wide.base_channels, wide.parameters) == ("teacher", 4, count_parameters(teacher))
    assert (narrow.name, narrow.base_channels, narrow.parameters) == ("student", 2, count_parameters(module))
    assert wide.dense_macs > narrow.dense_macs > narrow.lookup_macs  # type: ignore[operator]
    assert found.speed_up == wide.milliseconds / narrow.milliseconds
    told = json.loads(json.dumps(found.to_json()))
    assert told["teacher_sha256"] == student.loaded.info.train["distill"]["teacher"]["sha256"]  # type: ignore[index]
    assert [cost["name"] for cost in told["costs"]] == ["teacher", "student"]
    assert told["pictures"] == []


def test_the_sizes_are_those_of_the_files(student: Exported, runs: Path) -> None:
    wide, narrow = compared(student, runs).costs
    for cost, run, step in ((wide, "wide", 0), (narrow, "student", 6)):
        path = checkpoint_folder(runs / run, step) / GENERATOR_FILE
        assert cost.weights_file == StoredFile(GENERATOR_FILE, path.stat().st_size, ("float32",))
        assert cost.weights_bytes < cost.weights_file.bytes  # statistics, and the header
        assert cost.graphs == ()


def test_graphs_count_only_if_they_are_of_these_weights(student: Exported, runs: Path) -> None:
    artifact = stand_in_artifact(runs / "wide" / ARTIFACT, student.loaded.spec)
    mine = replace(student, artifact=artifact.path)
    try:
        assert [cost.graphs for cost in compared(mine, runs).costs] == [(), ()]  # those of other weights
        digests = teacher_of(student.loaded.info).sha256, student.loaded.info.generator_sha256  # type: ignore[union-attr]
        for which, digest in enumerate(digests):
            source = replace(artifact.manifest.source, generator_sha256=digest)
            rewrite_manifest(artifact.path, replace(artifact.manifest, source=source))
            found = compared(mine, runs)
            sizes = {graph.name: (artifact.path / graph.file).stat().st_size for graph in artifact.manifest.graphs}
            assert found.costs[which].graphs == tuple(StoredFile(name, size) for name, size in sizes.items())
            assert found.costs[1 - which].graphs == ()
            cells = ["not exported", "not exported"]
            cells[which] = f"{sizes['fp32'] / 1e6:.1f} MB"
            assert ("ONNX file, fp32", *cells) in student_rows(found)
    finally:
        shutil.rmtree(artifact.path)


def test_of_a_shipped_teacher_the_file_of_the_package_is_told(tmp_path: Path) -> None:
    """It has float16 weights, and batch-norm statistics in float32."""
    teacher = shipped_generator("earth")
    facts = TeacherFacts("earth", shipped_facts("earth").sha256, teacher.spec)
    _save_student(tmp_path / "s", pruned_student(teacher, replace(teacher.spec, base_channels=2)), facts)
    folder = checkpoint_folder(tmp_path / "s", 6)
    inputs: Arrays = {LABEL: np.zeros((1, 128, 128), np.uint8)}
    found = compare_with_teacher(Exported(load_generator(folder), folder, NO_ARTIFACT), inputs, tmp_path)
    assert found is not None
    size = (SHIPPED_FOLDER / "earth.safetensors").stat().st_size
    assert found.costs[0].weights_file == StoredFile("earth.safetensors", size, ("float16", "float32"))
    assert ("weights file", f"{size / 1e6:.1f} MB (float16, float32)") in [row[:2] for row in student_rows(found)]


@pytest.mark.parametrize("architecture", [Architecture.PIX2PIXHD, Architecture.CRN])
def test_no_cell_is_empty_for_an_architecture_without_lookup(tmp_path: Path, architecture: Architecture) -> None:
    """Its products are counted as PyTorch runs it: here those of the last convolution and more."""
    spec = build_generator(labels=LabelSpec(3), base_channels=4, height=64, width=64).spec.with_architecture(
        architecture
    )
    modules = [build(replace(spec, base_channels=width)).eval() for width in (4, 2)]
    info = save_checkpoint(checkpoint_folder(tmp_path / "wide", 0), modules[0], step=0, origin="import")
    facts = TeacherFacts(str(checkpoint_folder(tmp_path / "wide", 0)), info.generator_sha256, modules[0].spec)
    distill = Distillation(facts, weight_features=0.0, pruned=False)
    setup = Setup(replace(setup_of().train, distill=distill), modules[1].spec, DataConfig(crop_size=(64, 64)))
    folder, state = checkpoint_folder(tmp_path / "narrow", 1), TrainingState({}, {})
    save_checkpoint(folder, modules[1], step=1, origin="train", setup=setup, state=state)
    inputs: Arrays = {LABEL: np.zeros((1, 64, 64), np.uint8)}
    found = compare_with_teacher(Exported(load_generator(folder), folder, NO_ARTIFACT), inputs, tmp_path)
    assert found is not None
    wide, narrow = found.costs
    assert wide.dense_macs == _convolutions(modules[0])
    assert wide.dense_macs > narrow.dense_macs == _convolutions(modules[1])
    rows = student_rows(found)
    assert ("GMAC, lookup graph", "no such graph", "no such graph") in rows
    assert all(cell for row in rows for cell in row)


def _convolutions(module: torch.nn.Module) -> float:
    """The products of all convolutions for a map of 64 x 64: weights times positions, of the input where transposed."""
    total = 0

    def add(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        place = inputs[0] if isinstance(layer, torch.nn.ConvTranspose2d) else output
        total += layer.weight.numel() * place.shape[-2] * place.shape[-1]

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    with torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    return total


def test_a_teacher_that_is_gone_is_told(student: Exported, tmp_path: Path) -> None:
    info = student.loaded.info
    assert info.train is not None
    distill = info.train["distill"]
    gone = {**distill, "teacher": {**distill["teacher"], "place": str(tmp_path / "a" / "b" / "c"), "sha256": "0" * 64}}
    moved = replace(student.loaded, info=replace(info, train={**info.train, "distill": gone}))
    found = compared(replace(student, loaded=moved), tmp_path)
    assert "the teacher, with the SHA-256 000000000000, is no longer there" in found.missing
    assert (found.costs, found.speed_up, student_rows(found)) == ((), None, [])


def test_a_generator_without_a_teacher_has_no_such_part(student: Exported, tmp_path: Path) -> None:
    alone = replace(student.loaded, info=replace(student.loaded.info, train=None))
    assert compare_with_teacher(replace(student, loaded=alone), INPUTS, tmp_path) is None
    assert alone.info.teacher is None


NOTHING = "The Frechet distance, the kernel distance and mIoU were not measured, "
ONE = Judged(1.0, 0.5, "1.00 ± 0.50")


def quality_with(*names: str) -> Quality:
    figures = tuple(Figure(name, f"{name} ↓", f"what {name} is", ONE, ONE, "the student leads") for name in names)
    return Quality("data", 9, figures)


@pytest.mark.parametrize(
    ("quality", "has_photos", "why", "command"),
    [
        (
            None,
            True,
            NOTHING + "as no judge was given.",
            "spade export 'my run' --extractor FEATURES.onnx --train-segmenter",
        ),
        (
            quality_with("frechet", "kernel", "l1"),
            True,
            "mIoU was not measured, as no judge of it was given.",
            "spade export 'my run' --extractor FEATURES.onnx --train-segmenter",
        ),
        (
            quality_with("miou"),
            True,
            "The Frechet distance and the kernel distance were not measured, as no judge of it was given.",
            "spade export 'my run' --extractor FEATURES.onnx --train-segmenter",
        ),
        (
            None,
            False,
            NOTHING + "as the student was trained without photos.",
            "spade eval 'my run' earth --labels LABELS --images PHOTOS --extractor FEATURES.onnx --train-segmenter",
        ),
    ],
)
def test_what_was_not_measured_is_told_with_its_command(
    quality: Quality | None, has_photos: bool, why: str, command: str
) -> None:
    assert unmeasured(quality, Path("my run"), "earth", has_photos=has_photos) == Unmeasured(why, command)


def test_nothing_is_missing_where_all_was_measured() -> None:
    assert unmeasured(quality_with("frechet", "kernel", "miou"), Path("r"), "earth", has_photos=True) is None


def test_the_figures_of_photos_follow_the_costs(student: Exported, runs: Path) -> None:
    quality = quality_with("frechet", "kernel", "miou")
    found = compared(student, runs, quality=quality)
    assert found.unmeasured is None
    assert student_rows(found)[-3:] == [(f"{name} ↓", ONE.text, ONE.text) for name in ("frechet", "kernel", "miou")]
    assert found.to_json()["quality"]["figures"][0]["teacher"] == {"value": 1.0, "interval": 0.5, "text": ONE.text}


def test_photos_are_known_of_the_embedded_data_and_of_folders_with_photos(student: Exported) -> None:
    info = student.loaded.info

    def of(data: dict[str, Any] | None) -> bool:
        return knows_photos(replace(info, data=data))

    folders = DataConfig("custom", labels_dir=Path("l"), images_dir=Path("i"), crop_size=(32, 32), load_size=(32, 32))
    assert of(DataConfig(labels_only=True).to_json())  # the embedded data always has its photos
    assert of(folders.to_json())
    assert not of(replace(folders, images_dir=None, labels_only=True).to_json())
    assert not of(None)
    assert not of({"preset": "of another version"})
    assert not knows_photos(None)
